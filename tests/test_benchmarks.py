"""What the benchmarks rest on; what is timed here is a toy, and only to see that everything runs."""

import dataclasses
import json
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import demo, depth, feeding, gpu, gpu_sizes, guided, rows, run, solvers, suites
from benchmarks.rows import PeerMissing, Row, Settings
from benchmarks.timing import MIN_PAIRS, Bar, Interval, interleaved, unpaired
from jaxdiff.conditioning import Conditioning
from jaxdiff.flow import invert
from jaxdiff.kernels import conv2d
from jaxdiff.models.network import Network
from jaxdiff.models.wan import Wan, WanTransformer
from jaxdiff.scaling.operations import products
from jaxdiff.taps import Tap
from tests.imports import ROOT

TOY = Settings(pairs=1, tiny=True, budget=1e9)


def test_every_family_that_can_be_loaded_is_benchmarked_for_depth():
    assert not depth.uncovered()


def test_the_demo_that_is_timed_is_the_one_that_make_runs():
    makefile = " ".join((ROOT / "Makefile").read_text().replace("\\\n", " ").split())
    assert f"experiments.study {' '.join(demo.COMMAND)} --workdir=runs/demo" in makefile


@pytest.mark.parametrize("name", depth.DEPTHS)
def test_a_program_does_not_grow_with_depth(name):
    def run(pipeline, latents, cond):
        return invert(pipeline, latents, cond, steps=4, taps=(Tap("block_out", "mean"),))

    lines = {len(jax.jit(run).lower(*depth.abstract(name, n)).as_text().splitlines()) for n in (2, 40)}
    assert len(lines) == 1 and lines.pop() > 100


def test_operations_are_those_of_xla_and_count_a_loop_as_often_as_it_runs():
    x, w = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((1, 1, 3, 3), jnp.float32)

    def once(x, w):
        return jnp.einsum("nhwc,cd->nhwd", conv2d(x, w, 1, ((0, 0), (0, 0))), w[0, 0])

    def often(x, w):
        return jax.lax.scan(lambda x, _: (jax.jit(once)(x, w), None), x, length=5)[0]

    of_xla = int(jax.jit(once).lower(x, w).cost_analysis()["flops"])
    assert products(once, x, w) == of_xla == 2 * 2 * 64 * 3 * 3
    assert products(often, x, w) == 5 * of_xla
    with pytest.raises(ValueError, match="while loop"):
        products(lambda x, w: jax.lax.while_loop(lambda x: x.sum() < 0, lambda x: once(x, w), x), x, w)


def test_operations_by_hand_are_those_of_the_program():
    size = gpu_sizes.of("long", tiny=True)
    network = Network.abstract(WanTransformer, size.config)

    def forward(network, x, when, text):
        return Wan().denoise(network, x, when, Conditioning(text=text))[0]

    shapes = size.latents, size.latents[:1], size.text
    counted = products(forward, network, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    assert size.flops() == counted


def test_motion_guidance_adds_at_most_three_per_cent_to_a_step_of_cogvideox_5b():
    plain, led = guided.operations()
    assert 1.0 < led / plain < 1.03


# ------------------------------------------------------------------------------------------------ timing and verdicts


@pytest.mark.parametrize(
    ("bar", "interval", "pairs", "met"),
    [
        (Bar(1.5, at_least=True), (1.6, 1.9), MIN_PAIRS, True),
        (Bar(1.5, at_least=True), (1.1, 1.4), MIN_PAIRS, False),
        (Bar(1.5, at_least=True), (1.4, 1.6), MIN_PAIRS, "undecided"),
        (Bar(1.5, at_least=False), (1.1, 1.4), MIN_PAIRS, True),
        (Bar(1.5, at_least=False), (1.6, 1.9), MIN_PAIRS, False),
        (Bar(1.5, at_least=True), (1.6, 1.9), MIN_PAIRS - 1, "undecided"),
    ],
)
def test_a_bar_is_met_where_the_whole_interval_is_on_its_side_and_enough_was_timed(bar, interval, pairs, met):
    assert bar.verdict(Interval(1.5, *interval), pairs) == met


def test_calls_of_a_round_are_interleaved_and_no_one_always_follows_the_same_other():
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = interleaved(calls | {"own": lambda: 7.0}, 16, warmup=0)
    assert all(sorted(order[i : i + 3]) == ["a", "b", "c"] for i in range(0, len(order), 3))
    before_b = {order[i - 1] for i in range(1, len(order)) if order[i] == "b"}
    assert before_b >= {"a", "c"}
    assert (seconds["own"] == 7.0).all() and (seconds["a"] < 1.0).all()


def test_no_round_starts_after_the_limit():
    seconds = interleaved({"a": lambda: time.sleep(0.05), "b": lambda: 7.0}, 100, warmup=0, limit=0.12)
    assert 1 < len(seconds["a"]) == len(seconds["b"]) < 5


def test_a_case_that_fails_is_listed_and_the_others_run_on(monkeypatch, capsys):
    def broken(settings):
        raise AssertionError("the outputs differ")

    monkeypatch.setattr(run, "case", lambda suite, name: broken)
    (row,) = run.run_case("cpu", "forward", TOY)
    assert row.missing == "failed: AssertionError: the outputs differ" and "Traceback" in capsys.readouterr().err


def test_the_interval_of_two_processes_covers_their_ratio():
    rng = np.random.default_rng(0)
    found = unpaired(3 * rng.lognormal(0, 0.1, 40), rng.lognormal(0, 0.1, 40))
    assert found.low < 3 < found.high and found.high - found.low < 1


# ------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("suite", suites.SUITES)
def test_every_case_that_is_listed_exists(suite):
    assert all(callable(suites.case(suite, name)) for name in suites.SUITES[suite])


def test_a_peer_that_cannot_be_imported_is_listed_and_not_dropped(monkeypatch):
    def lacking(settings):
        rows.need("numpy", "no_such_library")

    monkeypatch.setattr(run, "case", lambda suite, name: lacking)
    found = run.run_case("cpu", "forward", TOY)
    content = run.content("cpu", ["forward"], TOY, {}, found)
    assert list(content["missing"]) == ["forward"] and "no_such_library" in content["missing"]["forward"]


def test_what_is_written_has_every_bar_with_its_verdict_and_every_repeat(tmp_path):
    found = [
        rows.measured("a", Interval(2.0, 1.9, 2.1), 20, Bar(1.8, at_least=True), seconds={"a": [1.0, 2.0, 6.0]}),
        rows.number("b", 5, Bar(4, at_least=False)),
        rows.missing("c", "no card", Bar(3, at_least=True)),
        Row("d", 1.0),
    ]
    run.write(tmp_path / "new" / "out.json", run.content("cpu", ["x"], TOY, {"cpu": "here"}, found))
    content = json.loads((tmp_path / "new" / "out.json").read_text())
    assert content["bars"] == [
        {"name": "a", "value": 2.0, "interval": [1.9, 2.1], "bar": ">= 1.8", "met": True},
        {"name": "b", "value": 5.0, "interval": None, "bar": "<= 4", "met": False},
        {"name": "c", "value": None, "interval": None, "bar": ">= 3", "met": "undecided"},
    ]
    assert content["rows"][0]["seconds"] == {"a": [1.0, 2.0, 6.0]} and content["rows"][0]["medians"] == {"a": 2.0}
    assert content["missing"] == {"c": "no card"}
    assert [row.unjudged().met for row in found] == ["undecided", "undecided", "undecided", None]


def test_outputs_that_differ_are_not_timed():
    assert rows.compared("x", [1.0, 2.0], [1.0, 2.00002], 1e-4)["x"] == pytest.approx(1e-5, rel=0.01)
    with pytest.raises(AssertionError, match="x: the outputs differ"):
        rows.compared("x", [1.0, 2.1], [1.0, 2.0], 1e-4)
    with pytest.raises(AssertionError, match="differ by nan"):
        rows.compared("x", [1.0, np.nan], [1.0, 2.0], 1e-4)


def test_a_store_that_is_fed_by_many_devices_keeps_every_value_and_says_when_they_waited(tmp_path):
    load = feeding.Load("toy", {"a": (2, 8), "b": (3, 2, 2)}, slots=5, evaluation=0.01)
    fed = feeding.feed(load, tmp_path / "paced", 6, paced=True, batches=2)
    assert fed.bytes == 2 * 6 * 5 * 28 * 4 and fed.blocked == 0.0 and load.rate == 28 * 4 / 0.01
    assert fed.seconds >= 10 * 0.01 and 0 < fed.deepest <= 2 * 6 * 5 * 28 * 4
    store = feeding.ActivationStore.open(tmp_path / "paced")
    assert store.finished() == set(range(12)) and len({store.read("b", [i]).tobytes() for i in range(7)}) == 7


def test_a_solver_is_cheaper_only_where_more_evaluations_stay_closer():
    def points(*at_most):
        return {
            n: {"at_most_contrast_error": error, "at_most_feature_error": 1.0}
            for n, error in zip((8, 16, 32), at_most, strict=True)
        }

    assert solvers.cheapest(points(2.0, 0.9, 0.5), "contrast_error") == 16
    assert solvers.cheapest(points(0.9, 1.1, 0.5), "contrast_error") == 32
    assert solvers.cheapest(points(0.9, 0.9, 1.0), "contrast_error") is None
    found = solvers.judged({"a": points(2.0, 0.9, 0.5), "b": points(2.0, 2.0, 0.5)}, {}, {})
    assert [(row.value, row.met, row.witness["solver"]) for row in found] == [(16, True, "a"), (None, False, None)]


# ------------------------------------------------------------------------------------------------ the suite gpu


def made_up():
    """What the parts print, with made-up seconds: a clip takes ours 1 ms in a forward of 1 GFLOP, and theirs 3 ms with hooks."""

    def seconds(factor, batch=1):
        return [factor * batch * 1e-3] * MIN_PAIRS

    told = {"device": "card", "versions": {}, "ceiling_tflops": 1.0, "ceiling_flops": 1e9, "flops": 1e9, "shapes": {}}
    forward = {"ceiling": seconds(0.8), "forward": seconds(1), "control": seconds(1)}
    reads = {name: seconds(1) for name in ("none", "means", "maps", "control")}
    two = {"ceiling": seconds(0.8), "forward": seconds(1, 2), "control": seconds(1, 2)}
    modes = {"none": 1, "pool": 2, "cpu": 3}
    eager = {"1": {mode: seconds(factor) for mode, factor in modes.items()}}
    return {
        "check": {"errors": {"output": 1e-6}},
        "long": told | {"forward": forward, "reads": reads, "steps": 1, "copy_gb_s": 4000.0},
        "study": told | {"by_batch": {"1": forward, "2": two}, "best_batch": 2, "steps": 4,
                         "reads": {name: [8 * s for s in values] for name, values in reads.items()},
                         "streaming": {name: seconds(1) for name in ("none", "streamed", "control")}},
        "forward_14b": told | {"forward": forward},
        "eager": told | {"study": eager, "long": eager},
        "compiled": told | {shape: {"torch 1": seconds(1), "other 2": seconds(1.2, 2)} for shape in ("study", "long")},
        "encode": {"seconds": {"encode": [0.5]}},
        "probes": {"ours": [0.01] * 3, "peer": [20.0] * 3, "sets": 600, "gap": 1e-6, "fits": 120_000},
        "finetune": told | {"device": "NVIDIA H200", "flops": 989e9, "seconds": {"ceiling": seconds(1), "step": seconds(2)},
                            "witness": {"remat": "block"}},
    }  # fmt: skip


@pytest.fixture
def bars(monkeypatch):
    """Every bar of the suite gpu, of made-up parts."""
    gpu.outcome.cache_clear()
    monkeypatch.setattr(gpu, "run_part", lambda module, name, settings, timeout: made_up()[name])
    found = [row for name in suites.SUITES["gpu"] for row in run.run_case("gpu", name, Settings(budget=1e9))]
    gpu.outcome.cache_clear()
    assert not [row for row in found if row.missing]
    return {row.name: row for row in found if row.bar is not None}


def test_the_numbers_of_the_suite_gpu_follow_from_what_its_parts_measure(bars):
    expected = {
        "Wan 1.3B forward, 32,760 tokens, bf16 / matmul ceiling": 0.8,
        # Two clips in 2 ms; the ceiling does 1 GFLOP in 0.8 ms.
        "Wan 1.3B, study shape of 5,376 tokens, batch 2 / matmul ceiling": 0.8,
        "Wan 14B forward, 32,760 tokens, bf16 / matmul ceiling": 0.8,
        "diffusers eager + hooks + .cpu() / ours with captures, 5,376 tokens": 3.0,
        "diffusers eager + hooks that pool on the GPU / ours with captures, 32,760 tokens": 2.0,
        "diffusers, fastest compiled recipe, no captures / ours with captures, 5,376 tokens": 1.0,
        "fine-tune step, Wan 1.3B, 32,760 tokens: model operations / peak (MFU)": 0.5,
        "probes: 120,000 fits, scikit-learn in two processes / ours": 2000.0,
        "IntPhys-dev study of 360 clips, GPU time: released code / ours at equal fidelity, projected":
            360 * (100 * 3e-3 + 0.5) / (360 * (gpu.EVALUATIONS * 1e-3 + 0.5) + 6.0),
    }  # fmt: skip
    assert {name: bars[name].value for name in expected} == pytest.approx(expected)
    assert len(bars) == 18


def test_a_part_that_fails_or_has_no_time_left_is_listed_with_the_reason(monkeypatch):
    gpu.outcome.cache_clear()
    (row,) = run.run_case("gpu", "finetune", Settings(budget=1.0, tiny=True))
    assert "out of time" in row.missing

    def fails(*args):
        raise PeerMissing("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(gpu, "run_part", fails)
    (row,) = run.run_case("gpu", "peers", TOY)
    assert row.missing == "RESOURCE_EXHAUSTED"
    gpu.outcome.cache_clear()


def test_what_a_part_had_measured_when_it_ended_is_not_lost_and_what_came_to_its_end_is_not_measured_again(
    monkeypatch, tmp_path
):
    told = made_up()
    told["study"].pop("streaming")
    printed = {name: f"noise\n{json.dumps(found)}\n".encode() for name, found in told.items()}
    started: list[str] = []

    def process(command, timeout, **options):
        started.append(name := command[3])
        if name == "study":
            raise subprocess.TimeoutExpired(command, timeout, output=printed[name])
        done = json.dumps(told[name] | {"complete": True}).encode() if name == "long" else b""
        return subprocess.CompletedProcess(command, 1, printed[name] + done, b"RESOURCE_EXHAUSTED")

    monkeypatch.setattr(subprocess, "run", process)
    settings = Settings(budget=1e9, folder=str(tmp_path))
    for name in ("long", "finetune"):
        assert not [row for row in run.run_case("gpu", name, settings) if row.missing]
    *measured, streamed = run.run_case("gpu", "study", settings)
    assert "out of time" in streamed.missing and not [row for row in measured if row.missing]
    assert gpu.part("finetune", settings)["stopped"].endswith("ended with 1: RESOURCE_EXHAUSTED")
    gpu.outcome.cache_clear()
    run.run_case("gpu", "long", settings)
    assert started == ["long", "finetune", "study"]
    run.run_case("gpu", "long", dataclasses.replace(settings, pairs=settings.pairs + 1))  # what was kept is of fewer
    assert started == ["long", "finetune", "study", "long"]
    gpu.outcome.cache_clear()


def test_the_sizes_are_those_of_the_published_models():
    expected = {"long": (32_760, 283e12), "study": (5_376, 19.4e12), "forward_14b": (32_760, 1678e12)}
    for name, (tokens, operations) in expected.items():
        size = gpu_sizes.of(name, tiny=False)
        assert size.tokens == tokens
        assert size.flops() == pytest.approx(operations, rel=0.01)
