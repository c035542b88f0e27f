"""The experiments on a tiny model: one block disturbed, attention cut."""

import csv
import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxdiff
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.probes.linear import LinearProbe
from jaxdiff.study import ablation, intervention
from jaxdiff.study.ablation import AblationConfig, cuts_of, run_ablation
from jaxdiff.study.clips import load_data, store_metadata
from jaxdiff.study.config import StudyConfig
from jaxdiff.study.disturbed import NO_OP, ROUND_TRIP, fit_probes
from jaxdiff.study.finished import READ, reopen
from jaxdiff.study.intervention import InterventionConfig, choose_clips, disturb, run_intervention
from jaxdiff.study.reading import invert_clips
from jaxdiff.workdir import Workdir
from tests import wan_variants as variants
from tests.study import fake

SCENES, SIDE, FRAMES = 6, 32, 5
BLOCKS = 2  # of the tiny model


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """The workdir of a study of random clips through a random model: its store, names of its clips, DONE."""
    root = tmp_path_factory.mktemp("study")
    rng, rows = np.random.default_rng(0), ["clip,possible,group,category"]
    for scene in range(SCENES):
        for possible in (0, 1):
            folder = root / "clips" / f"{scene}_{possible}"
            folder.mkdir(parents=True)
            for frame in range(FRAMES):
                pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{frame}.png")
            rows.append(f"{folder.name},{possible},{scene},{'ab'[scene % 2]}")
    (root / "clips" / "labels.csv").write_text("\n".join(rows) + "\n")
    recorded = json.loads((variants.GOLDENS / "wan_variants.json").read_text())
    model = variants.write_pipeline(root / "model", recorded, "ti2v_5b")
    config = StudyConfig(
        str(model), dataset="labelled", data_dir=root / "clips", frames=FRAMES, steps=3, text_embeddings="zeros",
        capture_sigmas=(0.0, 0.5), clips_per_device=12, controls=(), error_steps=0, outer=3, inner=2,
    )  # fmt: skip
    folder = root / "work"
    with Workdir(folder, config) as work:
        data = load_data(config, folder, 0)
        cond = jaxdiff.Conditioning(text=jnp.zeros((1, 1, variants.TEXT_DIM)))
        pipeline = jaxdiff.load(model)
        invert_clips(
            pipeline, data.clips, cond, config.reading(), folder / "store/trained", metadata=store_metadata(data)
        )
        names = io.BytesIO()
        np.savez(names, names=np.array([clip.name for clip in data.clips]))
        work.write("predictions.npz", names.getvalue())
        work.write_result({})
        work.finish()
    return folder


def count_traces(patch, module, edit, place, method):
    """How often the function `edit` had been traced whenever `method` was left; filled while the patch holds."""
    seen, traces, f, call = [], [0], getattr(module, edit), getattr(place, method)

    def counted(*args):
        traces[0] += 1
        return f(*args)

    def noted(*args, **kwargs):
        result = call(*args, **kwargs)
        seen.append(traces[0])
        return result

    patch.setattr(module, edit, counted)
    patch.setattr(place, method, noted)
    return seen


@pytest.fixture(scope="module")
def intervened(studied, tmp_path_factory):
    config = InterventionConfig(studied, clips=4, probe_sigmas=(0.5,))
    workdir = tmp_path_factory.mktemp("intervention") / "run"
    with pytest.MonkeyPatch.context() as patch:
        traces = count_traces(patch, intervention, "disturb", intervention.Maker, "again")
        run_intervention(config, workdir)
    return config, workdir, traces


def test_a_finished_study_is_reopened_as_it_was(studied):
    study = reopen(studied)
    assert len(study.clips) == 12 and study.ids == tuple(range(12))
    assert study.config.data_dir == studied.parent / "clips" and study.config.capture_sigmas == (0.0, 0.5)
    np.testing.assert_array_equal(study.sigmas, [0.0, 0.5])
    features, candidates = study.token_means([1])
    np.testing.assert_array_equal(features[1], study.store.read(READ)[:, 1, 1])
    assert [(c.block, c.sigma) for c in candidates] == [(0, 0.5), (1, 0.5)]
    few = study.scenes(1)  # of each of the two categories
    assert {clip.group for clip in few.clips} == {"0", "1"} and few.ids == tuple(
        i for i, clip in enumerate(study.clips) if clip.group in "01"
    )


def test_an_unfinished_study_is_refused(studied, tmp_path):
    with pytest.raises(MissingDataError, match=r"DONE, config\.json, predictions\.npz, store/trained missing"):
        reopen(tmp_path)


def test_all_disturbed_blocks_run_one_program(intervened):
    base, no_op, *blocks = intervened[2]
    assert base == 0 and no_op > 0 and blocks == [no_op] * BLOCKS


def test_every_block_moves_the_logit_and_alpha_0_does_not(intervened):
    _, workdir, _ = intervened
    result = json.loads((workdir / "result.json").read_bytes())
    assert (result["clips"], result["scenes"], result["probe_sigmas"]) == (4, 4, [0.5])
    assert [row["block"] for row in result["blocks"]] == [*range(BLOCKS)]
    # Two programs, which round differently, and 8 bits in between.
    assert abs(result[NO_OP]["delta"]["value"]) < 0.05 * result["logit_spread"]
    for row in result["blocks"]:
        assert abs(row["delta"]["value"]) > 10 * abs(result[NO_OP]["delta"]["value"])
        assert (
            row["latent_change"]
            != result[NO_OP]["latent_change"]
            == pytest.approx(result[ROUND_TRIP]["latent_change"], rel=0.01)
        )
        assert row["delta"]["low"] < row["delta"]["value"] < row["delta"]["high"]
    page = (workdir / "report.html").read_text()
    assert "How much less possible the video looks" in page and "How well each block tells" in page


def test_the_logit_is_that_of_probes_which_saw_no_clip_of_the_scene(intervened, studied):
    _, workdir, _ = intervened
    study = reopen(studied)
    probes = fit_probes(study, [1])
    labels, (features, _) = study.labels, study.token_means([1])
    assert probes.fold.shape == (12,) and all(len(set(probes.fold[labels.groups == g])) == 1 for g in labels.groups)
    for number, fitted in enumerate(probes.fitted):
        train = probes.fold != number
        again = LinearProbe(fitted[0].penalty).fit(features[0][train], labels.possible[train])
        np.testing.assert_array_equal(again.coef_, fitted[0].coef_)
    held = probes.logits(features, probes.fold)
    wrong = (held < 0) != labels.possible  # a negative logit of impossible says possible
    np.testing.assert_allclose(1 - wrong.mean(1), probes.result.grid[READ], atol=1e-9)
    with open(workdir / "intervention.csv") as file:
        lines = list(csv.DictReader(file))
    cells = [float(line["value"]) for line in lines if line["row"] == "block_01" and line["probe_block"] in ("0", "1")]
    whole = [float(line["value"]) for line in lines if line["row"] == "block_01" and line["probe_block"] == "all"]
    assert np.mean(cells) == pytest.approx(whole[0], rel=1e-6)


def test_interrupted_it_goes_on_to_the_same_result(intervened, tmp_path, monkeypatch):
    config, workdir, _ = intervened
    made, again = [], intervention.Maker.again

    def stop(self, trajectory, told, row, clips):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(row.name)
        return again(self, trajectory, told, row, clips)

    monkeypatch.setattr(intervention.Maker, "again", stop)
    with pytest.raises(KeyboardInterrupt):
        run_intervention(config, tmp_path / "run")
    monkeypatch.setattr(intervention.Maker, "again", lambda *args: made.append(args[3].name) or again(*args))
    run_intervention(config, tmp_path / "run")
    assert made == [ROUND_TRIP, NO_OP, "block_00", "block_01"]  # nothing twice
    for name in ("result.json", "intervention.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (workdir / name).read_bytes()


def test_a_disturbance_has_the_size_asked_for_and_is_the_clips_own():
    line = np.linspace(-1.0, 1.0, 64, dtype=np.float32)
    h = jnp.asarray(np.stack([[line, 3 * line]] * 2))  # [2, 2, 64]
    keys = jax.random.split(jax.random.key(0), 2)
    run = jax.jit(disturb)
    moved = np.asarray(run(h, keys, 0.5, 0.5)) - np.asarray(h)
    ratio = moved.std(-1) / np.asarray(h).std(-1)
    np.testing.assert_allclose(ratio, 0.5, rtol=0.4)  # 64 draws: standard error 9 %
    assert np.abs(moved[0] - moved[1]).max() > 0.1
    np.testing.assert_array_equal(run(h[::-1], keys[::-1], 0.5, 0.5), run(h, keys, 0.5, 0.5)[::-1])
    np.testing.assert_array_equal(run(h, keys, 0.5, 0.0), h)
    flat = run(jnp.ones_like(h), keys, 0.5, 1.0)
    assert 0 < np.abs(np.asarray(flat) - 1).max() < 1e-5  # no spread: the floor of 1e-6


def test_possible_clips_are_taken_from_all_scenes_and_categories_first():
    clips = fake.clips(4)  # two possible in each of 4 scenes, two scenes in each category
    chosen = [clips[i] for i in choose_clips(clips, 4)]
    assert all(clip.possible for clip in chosen) and len({clip.group for clip in chosen}) == 4
    assert {clip.category for clip in (clips[i] for i in choose_clips(clips, 2))} == {"O1", "O2"}
    assert len(choose_clips(clips, 100)) == 8
    with pytest.raises(ConfigError, match="no possible clip"):
        choose_clips([dataclasses.replace(clip, possible=False) for clip in clips], 4)


@pytest.mark.parametrize(
    "make",
    [lambda s: InterventionConfig(s, alpha=0.0), lambda s: InterventionConfig(s, clips=0),
     lambda s: AblationConfig(s, cuts=("frame",)), lambda s: AblationConfig(s, cuts=("text", "text")),
     lambda s: intervention.rows_of(InterventionConfig(s, blocks=(2,)), BLOCKS),
     lambda s: cuts_of(AblationConfig(s, blocks=(0, 0)), BLOCKS)],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(make, studied):
    with pytest.raises(ConfigError):
        make(studied)


def test_attention_is_cut_block_by_block_and_read_again(studied, tmp_path, monkeypatch):
    traces = count_traces(monkeypatch, ablation, "own_frame_only", ablation, "invert_clips")
    run_ablation(AblationConfig(studied, cuts=("frames",), blocks=(1,)), tmp_path / "run")
    assert traces[0] > 0 and traces == [traces[0]] * 2  # one program, whatever is cut
    result = json.loads((tmp_path / "run/result.json").read_bytes())
    assert [(row["cut"], row["blocks"]) for row in result["cuts"]] == [("frames", [1]), ("frames", [0, 1])]
    for row in result["cuts"]:
        assert row["lost"]["value"] == pytest.approx(result["uncut"]["value"] - row["accuracy"]["value"])
    study = reopen(studied)
    uncut = study.store.read(READ)
    for name, same in (("frames_01", True), ("frames_all", False)):
        read = jaxdiff.ActivationStore.open(tmp_path / "run/store" / name).read(READ)
        # At sigma 0, the first evaluation, block 0 is the same unless it is cut itself.
        assert (np.abs(read[:, 0, 0] - uncut[:, 0, 0]).max() < 1e-4) == same
        assert np.abs(read[:, 0, 1] - uncut[:, 0, 1]).max() > 1e-3
    assert "What is still decodable when one block is cut" in (tmp_path / "run/report.html").read_text()
