"""What the benchmarks rest on, without timing anything."""

import jax
import pytest

from benchmarks import demo, depth
from jaxdiff.flow import invert
from jaxdiff.taps import Tap
from tests.imports import ROOT


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
