"""The report: one file that needs nothing else and claims only what its numbers bear."""

import dataclasses
import html
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.report import (
    ClipView,
    Curve,
    Estimate,
    Fidelity,
    FrameAttention,
    Grid,
    Group,
    Measure,
    Row,
    Study,
    Table,
    quality,
    write_report,
)
from jaxdiff.report.html import LIMIT, render
from jaxdiff.report.study import sentence
from tests.report.fake import LABELS, SIGMAS, TRAINED, study


class Page(HTMLParser):
    """Collects addresses, ids, text, and whether every element is closed."""

    VOID = frozenset({"meta", "img", "br", "line", "circle", "path", "use", "rect"})

    def __init__(self, text):
        super().__init__()
        self.addresses, self.ids, self.tags, self.words, self.open, self.wrong = [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "data", "poster", "action")]
        self.ids += [v for k, v in attributes if k == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def full():
    return study(clips=1, size=16)


@pytest.fixture(scope="module")
def text(full):
    return render(full)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_report_needs_nothing_outside_itself(text, page):
    outside = [a for a in page.addresses if not a.startswith(("#", "data:image/"))]
    assert not outside
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r"base64,[\w+/=\s]+", "", text))
    inside = [a[1:] for a in page.addresses if a.startswith("#")]
    assert set(inside) <= set(page.ids)


def test_every_element_is_closed(page):
    assert page.wrong == []
    assert page.open == []


def test_equal_studies_give_equal_bytes(text):
    assert render(study(clips=1, size=16)) == text


def test_a_report_is_written_whole(tmp_path, full):
    write_report(tmp_path / "report.html", full)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text().endswith("</html>\n")


def test_every_number_of_the_study_is_in_the_text(full, page):
    def points(value):
        return f"{value:+.1f}".replace("-", "−")

    expected = []
    estimates = [r.estimate for r in full.rows] + [r.pairwise for r in full.rows if r.pairwise]
    for groups in (full.categories, full.protocols, full.replicates):
        estimates += [e for g in groups for e in g.values.values()]
    for e in estimates:
        expected.append(f"{100 * e.value:.1f} %")
        if math.isfinite(e.low):
            expected.append(f"{100 * e.low:.1f}–{100 * e.high:.1f}")
    for r in full.rows:
        if r.gap:
            expected += [points(100 * r.gap.value), points(100 * r.gap.low)]
    for g in full.grids:
        expected += [f"{100 * v:.1f}" for v in np.ravel(g.accuracy)]
        expected += [f"{100 * a:.1f}–{100 * b:.1f}" for a, b in zip(g.low.ravel(), g.high.ravel(), strict=True)]
    for c in full.surprise:
        expected += [f"{100 * v:.1f} %" for v in c.y]
    for c in (*full.fidelity.self_convergence, *full.panels[0].curves):
        expected += [f"{v:.4g}" for v in c.y]
    expected += [f"{m.value:.4g}" for m in full.fidelity.noise]
    expected += ["−0.03 (95 % interval −0.13 to +0.07)", f"{np.median(full.fidelity.round_trip):.4g}"]
    for item in full.attention:
        own = np.einsum("lktt->lk", item.maps).mean(1) / item.maps.shape[-1]
        expected += [f"{100 * v:.1f} %" for v in own]
    expected += [str(v) for row in full.tables[0].rows for v in row]
    missing = [e for e in expected if e not in page.text]
    assert not missing


def test_every_statement_of_the_study_is_in_the_text(full, page):
    expected = [
        full.title,
        full.command,
        *full.notes,
        *full.conditional_on,
        *full.facts.values(),
        *full.facts,
    ]
    expected += [v for pair in full.skipped for v in pair]
    expected += [v for c in full.checks for v in (c.name, c.value, c.bar)] + ["missed", "met"]
    expected += [r.name for r in full.rows] + [r.note for r in full.rows]
    expected += ["penalties", "0.001, 0.01, 0.1, 1.0", "zeros", "training", "0.12.8", "cpu:0 cpu"]
    missing = [e for e in expected if e not in page.text]
    assert not missing


def test_controls_and_comparisons_stand_apart(page):
    text = page.text
    order = [text.index(t) for t in ("read while the clip", "should be at chance", "may be as good: cheaper")]
    result = text[order[0] : text.index("Aims set before")]
    places = {r: result.index(r) for r in ("Raw pixels", "should be at chance", "may be as good", "Quadratic latents")}
    assert places["should be at chance"] < places["Raw pixels"] < places["may be as good"] < places["Quadratic latents"]


def test_a_null_control_above_chance_is_flagged(page):
    result = page.text[: page.text.index("Aims set before")]
    assert result.count("interval above chance") == 1  # structure-less: 51.9-55.9


def rows(states, *nulls, gap=None):
    kinds = [Row("states", "Trained", states, "states")]
    return tuple(kinds + [Row(f"n{i}", f"Null {i}", n, "null", gap=gap) for i, n in enumerate(nulls)])


@pytest.mark.parametrize(
    ("states", "null", "gap", "words"),
    [
        (
            Estimate(0.68, 0.65, 0.71),
            Estimate(0.54, 0.52, 0.56),
            None,
            "is linearly decodable from the states",
        ),
        (
            Estimate(0.58, 0.55, 0.61),
            Estimate(0.55, 0.52, 0.57),
            None,
            "not clearly above every null control",
        ),
        (
            Estimate(0.58, 0.55, 0.61),
            Estimate(0.55, 0.52, 0.57),
            Estimate(0.03, 0.01, 0.05),
            "is linearly decodable",
        ),
        (
            Estimate(0.68, 0.65, 0.71),
            Estimate(0.54, 0.52, 0.56),
            Estimate(0.14, -0.01, 0.3),
            "not clearly above",
        ),
        (Estimate(0.52, 0.49, 0.55), Estimate(0.50, 0.48, 0.52), None, "That is not evidence of absence"),
        (Estimate(0.68), Estimate(0.54), None, "That is not evidence of absence"),  # no interval, no claim
    ],
)
def test_the_sentence_claims_what_the_intervals_bear(states, null, gap, words):
    text = sentence(Study("t", rows=rows(states, null, gap=gap)))
    assert words in text
    assert f"{100 * states.value:.1f} %" in text
    assert "chance is 50 %" in text
    assert " absent" not in text


def test_without_null_controls_the_sentence_says_so():
    assert "No null control was run" in sentence(Study("t", rows=rows(Estimate(0.68, 0.65, 0.71))))


def test_an_inversion_without_probes_is_reported_by_the_same_writer():
    part = Fidelity(round_trip=np.array([30.0, 31.0, 35.0]), autoencoder=np.array([33.0, 34.0, 36.0]))
    text = Page(render(Study("Inversion", fidelity=part, skipped=(("a.mp4", "empty"),)))).text
    assert "3 clips inverted to noise and sampled back; median round-trip PSNR 31.0 dB" in text
    assert "the autoencoder alone gives 34.0 dB; 1 skipped." in text
    assert "self-convergence was not measured" in text
    assert "heatmap" not in text
    assert "Result" not in text


def test_a_title_alone_is_a_valid_report():
    page = Page(render(Study("Nothing yet")))
    assert page.open == []
    assert "Nothing yet" in page.text


def test_text_cannot_become_markup():
    evil = "<script>alert(1)</script>&\"'"
    made = Study(
        evil,
        rows=(Row("states", evil, Estimate(0.6, 0.55, 0.65), "states", note=evil),),
        grids=(Grid(evil, np.full((2, 2), 0.5), np.array([0.0, 1.0]), (evil, "0"), inputs=1),),
        surprise=(Curve(evil, np.array([0.5]), np.array([0.5])),),
        clips=(ClipView(evil, np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.uint8), note=evil),),
        tables=(Table(evil, (evil,), ((evil,),), evil),),
        skipped=((evil, evil),),
        notes=(evil,),
        config={evil: evil},
        command=evil,
    )
    page = Page(render(made))
    assert "script" not in page.tags
    assert page.open == []
    assert page.text.count("alert(1)") >= 10


def test_unmeasured_cells_are_dashes_not_numbers():
    accuracy = np.array([[0.5, np.nan], [0.6, 0.7]])
    text = render(Study("t", grids=(Grid("g", accuracy, np.array([0.0, 0.5]), ("in", "0"), inputs=1),)))
    assert "nan" not in Page(text).text
    assert "–" in Page(text).text


def test_the_lowest_sigma_is_not_called_clean_when_it_is_not():
    grid = Grid("g", np.full((2, 2), 0.5), np.array([0.1, 0.5]), ("in", "0"), inputs=1)
    text = Page(render(Study("t", grids=(grid,)))).text
    assert "cleanest" not in text
    assert "σ = 0.1, not 0" in text


def test_the_clean_end_says_where_the_rise_begins(page):
    assert "the interval of every input row holds chance" in page.text
    assert "3 of 5 blocks have an interval above chance (about 0.1 would by luck alone)" in page.text
    assert "the first is block 2 (60.1 %)" in page.text


def test_latents_that_finer_pooling_reads_are_not_hidden_behind_their_average(full):
    def with_latents(low):
        rows = tuple(
            dataclasses.replace(row, estimate=Estimate(low + 0.03, low, low + 0.06)) if row.key == "latents" else row
            for row in full.rows
        )
        return render(dataclasses.replace(full, rows=rows))

    said = "Pooled more finely, the same latents reach 62.0 %"
    assert said in with_latents(0.59)
    assert "Pooled more finely" not in with_latents(0.48)


def test_the_rows_below_the_blocks_are_explained(full):
    named = dataclasses.replace(
        full, grids=(dataclasses.replace(full.grids[0], labels=("latents", "x_sigma", *"01234")),)
    )
    assert "averaged over all tokens as the blocks are" in render(named)


def test_known_trajectories_are_drawn_and_listed():
    curve = Curve(
        "state", np.array([0.5, 1.0]), np.array([0.9991, 0.9912]), np.array([0.998, 0.99]), np.array([1.0, 0.993])
    )
    page = render(Study(title="t", fidelity=Fidelity(known=(curve,))))
    assert "cosine with the known trajectory" in page and "0.9912" in page and "0.99–0.993" in page


def test_statistics_of_the_noise_are_named_once():
    part = Fidelity(noise=(Measure("noise: kurtosis", 0.5, 0.0),))
    text = render(Study("t", fidelity=part))
    assert "<td>kurtosis</td>" in text and "noise: kurtosis" not in text


def test_clips_beyond_the_budget_are_left_out_and_counted(monkeypatch):
    made = study(clips=4, size=16)
    one = len(quality.clips(made.clips[:1]))
    monkeypatch.setattr(quality, "CLIP_BUDGET", 2.5 * one)
    text = quality.clips(made.clips)
    assert text.count('class="clip"') == 2
    assert "2 more clips left out" in text


def test_a_large_study_stays_under_the_limit():
    rng = np.random.default_rng(0)
    sigmas = np.linspace(0, 0.99, 11)
    labels = ("latents", "state", *map(str, range(40)))
    accuracy = rng.uniform(0.4, 0.9, (42, 11))
    grids = tuple(
        Grid(f"Model {i}", accuracy, sigmas, labels, "states", 2, accuracy - 0.03, accuracy + 0.03) for i in range(5)
    )
    maps = rng.dirichlet(np.ones(21), (40, 4, 21))
    video = rng.integers(0, 255, (33, 256, 256, 3), np.uint8)  # noise: the worst case for a codec
    clips = tuple(ClipView(f"clip {i}", video, video[::-1]) for i in range(3))
    text = render(
        Study("large", grids=grids, attention=(FrameAttention("m", maps, tuple(range(40)), 0.5),), clips=clips)
    )
    assert len(text.encode()) < LIMIT


def test_headline_for_the_result_file_is_what_the_report_shows(full):
    headline = full.headline()
    assert headline["states"] == {"value": 0.6823, "low": 0.6541, "high": 0.7104}
    assert headline["chance"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    none = Study("t", rows=(Row("latents", "Latents", Estimate(0.5), "null"),)).headline()
    assert none["latents"] == {"value": 0.5, "low": None, "high": None}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Grid("g", TRAINED, SIGMAS[1:], LABELS),
            r"Grid 'g'\.accuracy has shape \(7, 10\); expected \(7, 9\)",
        ),
        (lambda: Row("a", "A", Estimate(0.5), "nul"), "kind 'nul'; expected one of states, null, comparison"),
        (lambda: Curve("c", np.zeros(3), np.zeros(2)), r"Curve 'c'\.y has shape"),
        (lambda: ClipView("c", np.zeros((2, 4, 4, 3)), np.zeros((3, 4, 4, 3))), r"reconstruction has shape"),
        (lambda: FrameAttention("a", np.zeros((2, 1, 5, 5)), (0,), 0.5), r"maps has shape"),
        (lambda: Fidelity(mistakes=np.zeros(3, bool)), "needs Fidelity.clip_error"),
        (lambda: Table("t", ("a", "b"), ((1,),)), "a row of 1 cells under 2 columns"),
        (lambda: Study("t", rows=rows(Estimate(0.5)) * 2), "'states' more than once"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_no_matplotlib_before_a_report_is_written(run_python):
    code = "import sys, jaxdiff.report; print('matplotlib' in sys.modules, 'PIL' in sys.modules)"
    assert run_python(code).split() == ["False", "False"]


def test_a_study_is_a_value(full):
    assert dataclasses.replace(full, title="b").title == "b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        full.title = "c"


def test_escaping_keeps_the_words(text, full):
    assert html.escape("spatio-temporal continuity") in text
    assert "σ 0.8 or 0.9 in 4 of 5 folds" in text


def test_controls_of_further_reads_are_a_part_of_their_own_and_do_not_weaken_the_claim():
    full = Study("rows", rows=study(clips=0).rows)
    row = Row("untrained.mlp", "untrained: MLP outputs", Estimate(0.69, 0.66, 0.72), "null")
    more = dataclasses.replace(full, rows=(*full.rows, Row("mlp", "MLP outputs", Estimate(0.7), "states"), row))
    assert sentence(more) == sentence(full)
    shown = render(more)
    assert shown.index("Null controls of the further reads") > shown.index("Shuffled labels")
    assert shown.count("class=main") == 1
    assert "Null controls of the further reads" not in render(full)


def test_more_series_than_a_page_is_wide_become_rows():
    keys = [f"series{i}" for i in range(9)]
    wide = Group("permanence", {key: Estimate(0.5, 0.4, 0.6) for key in keys})
    shown = render(Study("many", categories=(wide, dataclasses.replace(wide, name="shape"))))
    assert shown.count("<th></th>") == 1 and all(f"<td>{key}</td>" in shown for key in keys)
