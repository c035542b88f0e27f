"""What a compiled inversion sends between devices: the four all-to-alls of an attention, a layer's weights, and nothing else."""

ON_EIGHT = """
import re, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxdiff.scaling.hlo import collectives
from jaxdiff import Tap
from jaxdiff.errors import ConfigError
from jaxdiff.flow import invert
from jaxdiff.flow.placement import placed, placement_of
from jaxdiff.mesh import data_size, parse_mesh, replicate, shard_batch
from tests.flow.pipelines import inputs, spread_weights, tiny_wan

LAYERS, STEPS, TOKENS, HEADS, DIM = 3, 2, 8, 8, 4
TAPS = (Tap("block_out"), Tap("block_out", "frame_mean"), Tap("self_attention_map"), Tap("mlp_out", "full"))
pipeline = tiny_wan(LAYERS, heads=HEADS, head_dim=DIM)
width = HEADS * DIM

def compiled(flag):
    mesh = parse_mesh(flag)
    split = spread_weights(pipeline, mesh)
    x, text = shard_batch(inputs(data_size(mesh), text_dim=8), mesh)
    placement = placement_of((split,), x)

    def run(pipeline, x, text):
        with placed(placement):
            return invert(pipeline, x, text, steps=STEPS, taps=TAPS)

    hlo = jax.jit(run).lower(split, x, text).compile().as_text()
    gathered = [tuple(map(int, m.split(","))) for m in re.findall(r"= \\w+\\[([\\d,]*)\\]\\S* all-gather\\(", hlo)]
    return collectives(hlo), gathered, split

# Ulysses: queries, keys and values one way, the output back.
found, gathered, _ = compiled("seq=8")
least = 4 * (TOKENS // 8) * width * 4 * LAYERS * STEPS
assert least <= found["all-to-all"]["bytes"] <= 1.05 * least, (found, least)
assert found["all-to-all"]["count"] == 4 * LAYERS * STEPS, found
assert gathered == [(1, TOKENS, 16)], gathered  # the velocity, patch by patch: neither activations nor captures
kept = (width + 2 * width + HEADS * 2 * 2) * 4  # mean, frame means and map of a block
assert found["all-reduce"]["bytes"] == kept * LAYERS * STEPS, (found, kept)
assert found.keys() == {"all-to-all", "all-gather", "all-reduce"}

# FSDP: matrices of one layer at a time, in and behind the loop over layers, and nothing that a batch made.
found, gathered, split = compiled("data=2,fsdp=4")
stacked = {leaf.shape for leaf in jax.tree.leaves(split.transformer.params["blocks"]) if not leaf.sharding.is_fully_replicated}
assert stacked and all(shape[0] == LAYERS for shape in stacked)
whole = {leaf.shape for leaf in jax.tree.leaves(split) if not leaf.sharding.is_fully_replicated} - stacked
assert {*gathered} <= {shape[1:] for shape in stacked} | whole, gathered
assert {shape[1:] for shape in stacked} <= {*gathered}
assert found.keys() == {"all-gather"}, found
per_layer = sum(4 * np.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(split.transformer.params["blocks"])
                if not leaf.sharding.is_fully_replicated)
rest = sum(4 * leaf.size for leaf in jax.tree.leaves(split) if leaf.shape in whole)
assert per_layer * LAYERS * STEPS <= found["all-gather"]["bytes"] <= (per_layer * LAYERS + rest) * STEPS, found

# What cannot be done over seq is refused before anything runs.
def refused(flag, place, words, **options):
    mesh = parse_mesh(flag)
    clips = shard_batch(inputs(data_size(mesh), text_dim=8), mesh)
    try:
        invert(place(mesh), *clips, steps=STEPS, taps=TAPS, **options)
    except ConfigError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)

class Sink:
    emit = None

refused("seq=8", lambda mesh: replicate(pipeline, mesh), "tap mlp_out.full: a sink takes whole clips", sink=Sink())
columns = lambda mesh: NamedSharding(mesh, P(None, None, "tensor"))
cut = lambda mesh: jax.tree.map(
    lambda leaf: jax.device_put(leaf, columns(mesh) if leaf.ndim == 3 else NamedSharding(mesh, P())), pipeline)
refused("seq=4,tensor=2", cut, "split over fsdp alone")
print("done")
"""


def test_an_inversion_sends_what_ulysses_needs_and_gathers_a_layer_at_a_time(run_with_devices):
    assert run_with_devices(8, ON_EIGHT).split() == ["done"]
