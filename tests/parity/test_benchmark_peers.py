"""The peers of the suite gpu compute what ours does, and run; at a toy size on the CPU."""

import pytest

from benchmarks import gpu_peers
from benchmarks.rows import Settings

TOY = Settings(pairs=1, tiny=True)


def test_hooks_read_what_taps_read():
    errors = gpu_peers.check(TOY)["errors"]
    assert set(errors) == {"output", "block means, pool=False", "block means, pool=True"}
    assert max(errors.values()) <= 1e-5


def test_forwards_with_and_without_hooks_are_timed_at_both_shapes():
    found = gpu_peers.eager(TOY)
    assert found["ceiling_tflops"] > 0
    for shape in ("study", "long"):
        assert set(found[shape]["1"]) == {"ceiling", "none", "cpu", "pool"}
        assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in found[shape]["1"].values())


@pytest.mark.parametrize("pool", [False, True])
def test_hooks_are_gone_after_a_reading(pool):
    model = gpu_peers._model(gpu_peers.gpu_sizes.of("study", True))
    gpu_peers._reading(model, gpu_peers._forward(model, gpu_peers.gpu_sizes.of("study", True), 1), pool)()
    assert not any(block._forward_hooks for block in model.blocks)
