"""Batches of clips on a mesh: fixed size, padded, split over `data`."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxdiff.errors import ConfigError
from jaxdiff.mesh import (
    Shard,
    abstract_mesh,
    clip_axes,
    data_mesh,
    data_size,
    micro_batches,
    own_mesh,
    pad_batch,
    parse_mesh,
    replicate,
    shard_batch,
    split_activations,
    weights_mesh,
    working_on,
)


def batches(n, clips_per_device):
    return list(micro_batches([(i, f"clip{i}") for i in range(n)], clips_per_device, data_mesh()))


def test_every_clip_is_in_exactly_one_batch_and_all_batches_have_one_size():
    for n in range(8):
        found = batches(n, 3)
        assert {len(b.clip_ids) for b in found} <= {3}
        assert {len(b.items) for b in found} <= {3}
        ids = np.concatenate([b.clip_ids for b in found]) if found else np.array([])
        assert ids[ids >= 0].tolist() == list(range(n))
        assert sum(b.real for b in found) == n


def test_padding_repeats_the_last_real_clip_and_has_id_minus_one():
    (_, last) = batches(4, 3)
    assert last.clip_ids.tolist() == [3, -1, -1]
    assert last.clip_ids.dtype == np.int32
    assert last.items == ("clip3",) * 3
    assert last.real == 1


def test_items_are_drawn_only_when_their_batch_is_asked_for():
    drawn = []

    def items():
        for i in range(10):
            drawn.append(i)
            yield i, None

    next(micro_batches(items(), 2, data_mesh()))
    assert drawn == [0, 1]


def test_pad_batch_repeats_the_last_row():
    padded = pad_batch({"a": np.array([[1.0], [2.0]])}, 4)
    assert padded["a"].tolist() == [[1.0], [2.0], [2.0], [2.0]]


@pytest.mark.parametrize("rows", [0, 5])
def test_pad_batch_refuses_what_cannot_be_padded(rows):
    with pytest.raises(ConfigError, match="cannot be padded to 4"):
        pad_batch(np.zeros((rows, 2)), 4)


def test_impossible_batches_are_refused():
    with pytest.raises(ConfigError, match="clips_per_device is 0"):
        batches(3, 0)
    with pytest.raises(ConfigError, match="negative"):
        list(micro_batches([(-1, None)], 1, data_mesh()))
    with pytest.raises(ConfigError, match="at least one device"):
        data_mesh([])
    with pytest.raises(ConfigError, match="'data'"):
        data_size(Mesh(np.array(jax.devices()[:1]), ("model",)))


ON_EIGHT = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxdiff.errors import ConfigError
from jaxdiff.mesh import Shard, data_mesh, micro_batches, parse_mesh, replicate, shard_batch, weights_mesh, working_on
from jaxdiff.models.layers import LowRank

mesh = data_mesh()
assert dict(mesh.shape) == {"data": 8}
x = shard_batch({"x": np.arange(16.0).reshape(16, 1)}, mesh)["x"]
assert [s.data.ravel().tolist() for s in x.addressable_shards] == [[2 * i, 2 * i + 1] for i in range(8)]
assert [s.data.shape for s in replicate(np.ones(3), mesh).addressable_shards] == [(3,)] * 8
(batch,) = micro_batches([(i, i) for i in range(5)], 2, mesh)
assert batch.clip_ids.tolist() == [0, 1, 2, 3, 4] + [-1] * 11

# Clips are spread over data and fsdp, and are the same along seq.
mixed = parse_mesh("seq=2,data=2,fsdp=2")
assert dict(mixed.shape) == {"data": 2, "fsdp": 2, "seq": 2} and list(mixed.shape)[-1] == "seq"
(batch,) = micro_batches([(i, i) for i in range(5)], 2, mixed)
assert len(batch.clip_ids) == 8
x = shard_batch(np.arange(8), mixed)
assert [s.data.tolist() for s in x.addressable_shards] == [[2 * i, 2 * i + 1] for i in range(4) for _ in "ab"]

# What is split over the mesh stays split, and a shard is gathered where it is read.
weight = jax.device_put(np.arange(24.0).reshape(2, 4, 3), NamedSharding(mixed, PartitionSpec(None, "fsdp")))
assert replicate(weight, mixed) is weight and replicate(weight, mesh).sharding.is_fully_replicated
def read(part):
    layers = Shard(part, ((-2, "fsdp"),))
    assert layers.dtype == weight.dtype
    return jax.lax.map(lambda layer: layer[...] * (1 + 0 * layer.part.sum()), layers)
whole = jax.shard_map(read, mesh=mixed, in_specs=PartitionSpec(None, "fsdp"), out_specs=PartitionSpec(), check_vma=False)
np.testing.assert_array_equal(jax.jit(whole)(weight), weight)
def read(part):  # also where an adapter stands beside it
    small = np.ones((2, 1))
    return LowRank(Shard(part, ((-2, "fsdp"),)), small, small, 1.0)[...].kernel
whole = jax.shard_map(read, mesh=mixed, in_specs=PartitionSpec(None, "fsdp"), out_specs=PartitionSpec(), check_vma=False)
np.testing.assert_array_equal(jax.jit(whole)(weight), weight)
with working_on("fsdp=8") as split:
    assert weights_mesh() is split and dict(split.shape) == {"data": 1, "fsdp": 8}
with working_on("seq=8"):
    assert weights_mesh() is None
try:
    parse_mesh("fsdp=2,seq=2")
except ConfigError as error:
    assert "for 4 devices, and there are 8; data=2 would use all of them" in str(error), error
try:
    shard_batch({"video": np.zeros((6, 2))}, mesh)
except ConfigError as error:
    assert "['video'] of shape (6, 2)" in str(error) and "8 devices" in str(error)
    print("done")
"""


def test_batches_split_over_data_and_fsdp_and_repeat_over_other_axes(run_with_devices):
    assert run_with_devices(8, ON_EIGHT).split() == ["done"]


def test_shards_carry_their_partition_on_one_device_too():
    mesh = data_mesh()
    assert shard_batch(np.zeros((4, 2)), mesh).sharding.spec == PartitionSpec("data")
    assert replicate(np.zeros(3), mesh).sharding.spec == PartitionSpec()


def test_a_mesh_flag_says_axes_and_sizes_and_everything_else_is_refused():
    (device,) = jax.devices()
    assert parse_mesh("auto", [device]) is None
    assert dict(parse_mesh("auto", [device] * 2).shape) == {"data": 2}
    assert dict(parse_mesh("fsdp=2", [device] * 2).shape) == {"data": 1, "fsdp": 2}
    assert dict(parse_mesh("data=2,fsdp=3,tensor=2", [device] * 12).shape) == {"data": 2, "fsdp": 3, "tensor": 2}
    assert dict(abstract_mesh("seq=2,data=3").shape) == {"data": 3, "seq": 2}
    assert dict(abstract_mesh("").shape) == {"data": 1}
    for text in ("data", "data=x", "rows=2", "data=1,data=2", "fsdp=0", ""):
        with pytest.raises(ConfigError, match="is no axis and size"):
            parse_mesh(text, [device])
        if text:
            with pytest.raises(ConfigError, match="is no axis and size"):
                abstract_mesh(text)
    with pytest.raises(ConfigError, match="is for 4 devices, and there are 1; 2 does not divide 1"):
        parse_mesh("data=2,fsdp=2", [device])


def test_the_mesh_of_a_flag_is_that_of_the_process_while_it_runs():
    before = own_mesh()
    assert dict(before.shape) == {"data": len(jax.local_devices())}
    with working_on("data=1,fsdp=1") as mesh:
        assert own_mesh() is mesh and clip_axes(mesh) == ("data", "fsdp") and data_size(mesh) == 1
    assert own_mesh() == before and weights_mesh() is None
    with pytest.raises(ConfigError, match="for 2 devices"), working_on("seq=2"):
        pass


def test_a_shard_is_read_whole():
    with pytest.raises(TypeError, match="read whole"):
        Shard(np.zeros(3), ())[0]


def test_activations_are_split_where_weights_are_and_nowhere_else():
    x = np.zeros((2, 3), np.float32)
    for text, found in (("data=1,fsdp=1", True), ("data=1", False)):
        with jax.sharding.use_abstract_mesh(parse_mesh(text).abstract_mesh):
            program = "".join(str(jax.make_jaxpr(split_activations)(x)).split())
        assert ("spec=P(('data','fsdp')" in program) == found, program
    assert split_activations(x) is x
