"""What the benchmarks rest on, without timing anything."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import demo, depth, flops, guided
from jaxdiff.flow import invert
from jaxdiff.kernels import conv2d
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


def test_operations_are_those_of_xla_and_count_a_loop_as_often_as_it_runs():
    x, w = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((1, 1, 3, 3), jnp.float32)

    def once(x, w):
        return jnp.einsum("nhwc,cd->nhwd", conv2d(x, w, 1, ((0, 0), (0, 0))), w[0, 0])

    def often(x, w):
        return jax.lax.scan(lambda x, _: (jax.jit(once)(x, w), None), x, length=5)[0]

    of_xla = int(jax.jit(once).lower(x, w).cost_analysis()["flops"])
    assert flops.products(once, x, w) == of_xla == 2 * 2 * 64 * 3 * 3
    assert flops.products(often, x, w) == 5 * of_xla
    with pytest.raises(ValueError, match="while loop"):
        flops.products(lambda x, w: jax.lax.while_loop(lambda x: x.sum() < 0, lambda x: once(x, w), x), x, w)


def test_motion_guidance_adds_at_most_three_per_cent_to_a_step_of_cogvideox_5b():
    plain, led = guided.operations()
    assert 1.0 < led / plain < 1.03
