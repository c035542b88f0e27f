"""What a study asks of every family: an untrained control whose gates are open, and attention that can be cut."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.models.layers import timestep_embedding
from jaxdiff.models.network import Network
from jaxdiff.study.ablation import FRAMES, TEXT, Cut, edits_of
from jaxdiff.study.controls import untrained
from jaxdiff.taps import MAP_SITE, Edit, Full, Tap
from tests.study import tiny

TAPS = (Tap("block_in", Full(), name="before"), Tap("block_out", Full(), name="after"), Tap(MAP_SITE, name="map"))
EVERYWHERE = tuple(range(tiny.LAYERS))


@pytest.fixture(scope="module", params=[name for name in tiny.FAMILIES if name != "wan_experts"])
def family(request):
    return request.param, tiny.FAMILIES[request.param]()


def changed(params, others) -> set[str]:
    """Names of the leaves that differ."""
    pairs = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(others), strict=True)
    return {"/".join(str(key.key) for key in path) for (path, a), b in pairs if not np.array_equal(a, b)}


GATES = {
    "wan": {"blocks/modulation"},
    "ltx": {"blocks/modulation"},
    "ltx2": {"blocks/video/modulation", "blocks/audio/modulation"},
    "cogvideox": {"blocks/attention_modulation/table/bias", "blocks/mlp_modulation/table/bias"},
    "cosmos": {"time_embedding/into/kernel", "time_embedding/out/kernel"},
}


@functools.partial(jax.jit, static_argnames="taps")
def evaluate(pipeline, x, cond, edits, taps=TAPS):
    """Velocity, maps, and the relative size of what each block adds, [L]. With two edits in place that may cut nothing."""
    velocity, captured = pipeline.evaluate(x, jnp.float32(0.7), cond, taps=taps, edits=edits)
    before, after = (captured[name].astype(jnp.float32) for name in ("before", "after"))
    return (
        velocity,
        captured["map"],
        jnp.linalg.norm(after - before, axis=(2, 3)) / jnp.linalg.norm(before, axis=(2, 3)),
    )


def cuts(pipeline, frames=(), text=()):
    return edits_of(pipeline, Cut(FRAMES, frames, "")) + edits_of(pipeline, Cut(TEXT, text, ""))


def test_an_untrained_control_is_a_fresh_network_with_open_gates(family):
    name, pipeline = family
    control = untrained(pipeline, 7).transformer
    fresh = Network.init(control.module, control.config, 7)
    assert changed(fresh.params, control.params) == GATES[name]
    assert any("query/kernel" in leaf for leaf in changed(pipeline.transformer.params, control.params))
    x, cond = tiny.inputs()

    def added(network):
        one = dataclasses.replace(pipeline, transformer=network)
        return np.asarray(evaluate(one, x, cond, cuts(pipeline))[2])

    # A block that is open adds branches of full size to its tokens; fresh CogVideoX blocks add a twentieth.
    assert np.all(added(control) > 0.4) and np.all(added(control) > 1.2 * added(fresh))


def test_both_experts_are_untrained_each_with_weights_of_its_own():
    pipeline = tiny.experts()
    control = untrained(pipeline, 7)
    for part, seed in (("transformer", 7), ("transformer_2", 8)):
        fresh = Network.init(pipeline.transformer.module, pipeline.transformer.config, seed).params
        assert changed(fresh, getattr(control, part).params) == GATES["wan"]


def test_one_is_added_to_every_gate_of_cosmos_at_every_timestep():
    pipeline = tiny.cosmos()
    network, width = pipeline.transformer, pipeline.transformer.config.width
    opened = network.replace(pipeline.family.open_gates(network))
    time = network.params["time_embedding"]
    features = timestep_embedding(jnp.array([[0.0], [0.3], [1.0]]), width)
    before, after = (net.bind().time_embedding(features) for net in (network, opened))
    # One hidden unit gave way, and with it what it added.
    unit = jax.nn.silu(features @ time["into"]["kernel"][:, :1]) @ time["out"]["kernel"][:1]
    added = np.broadcast_to(np.repeat([0.0, 0.0, 1.0], width), before.shape)
    np.testing.assert_allclose(after - before + unit, added, atol=1e-5)


def test_cut_paths_carry_nothing_and_the_others_still_do(family):
    _, pipeline = family
    x, cond = tiny.inputs()
    other, told = x.at[:, 0].add(1.0), jax.tree.map(lambda leaf: leaf + 1.0, cond)

    def answers(edits):
        """How much the last two frames answer to the first frame, and the velocity to the text."""
        plain, frame, text = (evaluate(pipeline, *args, edits)[0] for args in ((x, cond), (other, cond), (x, told)))
        return float(jnp.abs(frame - plain)[:, 1:].max()), float(jnp.abs(text - plain).max())

    assert answers(cuts(pipeline, EVERYWHERE, EVERYWHERE)) == (0.0, 0.0)
    assert min(answers(cuts(pipeline))) > 1e-3
    # Of block 0 alone: block 1 still looks at other frames, and at the text.
    assert answers(cuts(pipeline, (0,), EVERYWHERE))[0] > 1e-4
    assert answers(cuts(pipeline, EVERYWHERE, (0,)))[1] > 1e-4


def test_a_map_that_is_read_where_frames_are_cut_is_the_identity(family):
    _, pipeline = family
    first, second = np.asarray(evaluate(pipeline, *tiny.inputs(), cuts(pipeline, (1,)))[1])
    np.testing.assert_allclose(second, np.broadcast_to(np.eye(tiny.FRAMES), second.shape), atol=1e-6)
    assert first.min() > 1e-4
    np.testing.assert_allclose(first.sum(-1), 1, rtol=1e-5)


def test_a_cut_of_no_block_is_no_cut():
    pipeline = tiny.cogvideox()
    x, cond = tiny.inputs()
    for ours, bare in zip(evaluate(pipeline, x, cond, cuts(pipeline)), evaluate(pipeline, x, cond, ()), strict=True):
        np.testing.assert_allclose(ours, bare, atol=1e-5)  # bfloat16 states are behind the last of them


def test_a_backbone_without_the_site_refuses_the_cut():
    pipeline = tiny.ltx()
    module = type("Bare", (pipeline.transformer.module,), {"sites": ("block_out",)})
    bare = dataclasses.replace(pipeline, transformer=dataclasses.replace(pipeline.transformer, module=module))
    for kind, name in ((TEXT, "attention to the text"), (FRAMES, "self-attention between frames")):
        with pytest.raises(ConfigError, match=f"LTX offers no place to cut {name}"):
            edits_of(bare, Cut(kind, (0,), ""))
    x, cond = tiny.inputs()
    with pytest.raises(ConfigError, match="unknown site of this backbone 'text_attention'"):
        pipeline.evaluate(x, 0.5, cond, edits=(Edit("text_attention", None, lambda h, key, sigma: h),))
