"""What the benchmarks rest on, without timing anything."""

import jax
import pytest

from benchmarks import depth
from jaxdiff.flow import invert
from jaxdiff.taps import Tap


def test_every_family_that_can_be_loaded_is_benchmarked_for_depth():
    assert not depth.uncovered()


@pytest.mark.parametrize("name", depth.DEPTHS)
def test_a_program_does_not_grow_with_depth(name):
    def run(pipeline, latents, cond):
        return invert(pipeline, latents, cond, steps=4, taps=(Tap("block_out", "mean"),))

    lines = {len(jax.jit(run).lower(*depth.abstract(name, n)).as_text().splitlines()) for n in (2, 40)}
    assert len(lines) == 1 and lines.pop() > 100
