"""The compiled program: nothing of the weights is copied in the loops, nothing leaves the device, on any
mesh.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import io_callback

from jaxdiff import Tap
from jaxdiff.flow import invert
from tests.flow.pipelines import inputs, tiny_wan

LAYERS = 5  # a leading size that no activation has
TAPS = (Tap("block_out"), Tap("self_attention_map"))

INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?\S+ = \w+\[([\d,]*)\]\S* ([\w-]+)\(")
HOST = re.compile(r"\b(?:infeed|outfeed|send|recv)(?:-done)?\(|custom_call_target=\"[^\"]*callback[^\"]*\"")


def program(function, *args) -> str:
    return jax.jit(function).lower(*args).compile().as_text()


def opcodes(hlo: str, shapes: set[tuple[int, ...]]) -> set[str]:
    """What produces arrays of these shapes, apart from naming what is there already."""
    found = set()
    for line in hlo.splitlines():
        match = INSTRUCTION.match(line)
        if match and tuple(int(n) for n in match[1].split(",") if n) in shapes:
            found.add(match[2])
    return found - {"parameter", "get-tuple-element", "bitcast"}


def stacked_shapes(pipeline):
    leaves = jax.tree.leaves(pipeline.transformer.params)
    return {leaf.shape for leaf in leaves if leaf.ndim == 3 and leaf.shape[0] == LAYERS}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"taps": TAPS},
        {"taps": TAPS, "capture_at": (0, 2)},
        {"taps": TAPS, "capture_at": (1, 4), "solver": "fireflow"},
    ],
    ids=["bare", "every step", "some steps", "fireflow"],
)
def test_loops_copy_no_weights_and_no_captures_and_never_call_the_host(arguments):
    pipeline, (x, text) = tiny_wan(LAYERS), inputs(text_dim=8)

    def run(pipeline, x, text):
        return invert(pipeline, x, text, steps=4, **arguments)

    hlo = program(run, pipeline, x, text)
    assert "while(" in hlo
    assert len(stacked_shapes(pipeline)) == 4
    assert opcodes(hlo, stacked_shapes(pipeline)) == set()
    assert not HOST.search(hlo)
    captured = jax.eval_shape(run, pipeline, x, text).captured
    assert "copy" not in opcodes(hlo, {shape.shape for shape in captured.values()})


def test_these_checks_see_a_weight_that_is_changed_in_a_loop_and_a_callback():
    weights = jnp.ones((LAYERS, 32, 32))

    def loop(weights, x):
        def body(x, i):
            io_callback(print, None, i)
            return jnp.einsum("lij,j->i", jnp.sin(weights + i), x), None

        return jax.lax.scan(body, x, jnp.arange(3.0))[0]

    hlo = program(loop, weights, jnp.ones(32))
    assert opcodes(hlo, {weights.shape})
    assert HOST.search(hlo)
