import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdiff.errors import CheckpointError
from ports import filling, transforms
from ports.filling import load_params, save_params
from ports.safetensors_reader import Checkpoint
from ports.safetensors_writer import SafetensorsWriter
from ports.table import Ignore, Rule, partition_specs
from ports.transforms import conv3d, drop_first, linear
from tests.reference import random_state

LAYERS, WIDTH, HIDDEN = 3, 70, 37  # wider than one copied strip, and no multiple of it

TABLE = (
    Rule("proj.weight", "out/kernel", linear, spec=("fsdp", "tensor")),
    Rule("proj.bias", "out/bias"),
    Rule("blocks.{block}.ffn.weight", "blocks/mlp/kernel", linear, spec=("fsdp", "tensor")),
    Rule("blocks.{block}.norm.weight", "blocks/norm/scale", keep_float32=True),
    Rule("blocks.{block}.table", "blocks/modulation", drop_first, keep_float32=True),
    Rule("down.{i}.conv.{part}", "down/{i}/conv/{part}", conv3d),
    Ignore("rope.freqs", "computed here"),
)
SHAPES = {
    "proj.weight": (24, 40),
    "proj.bias": (24,),
    **{f"blocks.{i}.ffn.weight": (WIDTH, HIDDEN) for i in range(LAYERS)},
    **{f"blocks.{i}.norm.weight": (WIDTH,) for i in range(LAYERS)},
    **{f"blocks.{i}.table": (1, 6, WIDTH) for i in range(LAYERS)},
    "down.0.conv.kernel": (5, 4, 3, 2, 1),
    "down.1.conv.kernel": (6, 5, 1, 2, 3),
}


def abstract(dtype=jnp.float32):
    def leaf(*shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    return {
        "out": {"kernel": leaf(40, 24), "bias": leaf(24)},
        "blocks": {
            "mlp": {"kernel": leaf(LAYERS, HIDDEN, WIDTH)},
            "norm": {"scale": leaf(LAYERS, WIDTH)},
            "modulation": leaf(LAYERS, 6, WIDTH),
        },
        # Integer keys, as lists of modules have them.
        "down": {0: {"conv": {"kernel": leaf(3, 2, 1, 4, 5)}}, 1: {"conv": {"kernel": leaf(1, 2, 3, 5, 6)}}},
    }


@pytest.fixture
def state():
    return random_state(SHAPES)


def saved(tmp_path, state):
    save_file(state, tmp_path / "model.safetensors")
    return Checkpoint(tmp_path)


# ---------------------------------------------------------------------------------------------------
# transforms


@pytest.mark.parametrize(
    ("transform", "torch_shape", "leaf_shape"),
    [
        (transforms.as_is, (3,), (3,)),
        (transforms.linear, (3, 4), (4, 3)),
        (transforms.linear1x1, (3, 4, 1, 1), (4, 3)),
        (transforms.linear1x1x1, (3, 4, 1, 1, 1), (4, 3)),
        (transforms.conv2d, (2, 3, 4, 5), (4, 5, 3, 2)),
        (transforms.conv3d, (2, 3, 4, 5, 6), (4, 5, 6, 3, 2)),
        (transforms.drop_first, (1, 6, 5), (6, 5)),
        (transforms.gain2d, (7, 1, 1), (7,)),
        (transforms.gain3d, (7, 1, 1, 1), (7,)),
        (transforms.patch_matmul(3, (1, 2, 4)), (5, 3, 1, 2, 4), (24, 5)),
        (transforms.patch_matmul(3, (2, 4)), (5, 3, 2, 4), (24, 5)),
        (transforms.patch_linear(3, (2, 1, 4)), (5, 24), (24, 5)),
        (transforms.patch_rows(8, transforms.linear), (24, 5), (5, 24)),
        (transforms.patch_rows(8, transforms.as_is), (24,), (24,)),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_each_transform_is_inverted_exactly_and_knows_both_shapes(transform, torch_shape, leaf_shape):
    x = np.random.default_rng(0).standard_normal(torch_shape)
    leaf = transform.forward(x)
    assert leaf.shape == leaf_shape == transform.leaf_shape(torch_shape)
    assert transform.torch_shape(leaf_shape) == torch_shape
    np.testing.assert_array_equal(transform.inverse(np.array(leaf)), x)


def test_transforms_do_what_the_layers_need():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal(4), rng.standard_normal((3, 4))
    np.testing.assert_allclose(x @ transforms.linear.forward(weight), weight @ x, rtol=1e-12)  # float64 rounding

    # A convolution whose stride is its kernel sees each patch once: the sum over (C, t, h, w) is a product of
    # the patch, flattened channels-last, with the matrix.
    kernel, patch = rng.standard_normal((5, 3, 1, 2, 4)), rng.standard_normal((1, 2, 4, 3))
    made = patch.reshape(-1) @ transforms.patch_matmul(3, (1, 2, 4)).forward(kernel)
    np.testing.assert_allclose(made, np.einsum("octhw,thwc->o", kernel, patch), rtol=1e-12)
    made = patch.reshape(-1) @ transforms.patch_linear(3, (1, 2, 4)).forward(kernel.reshape(5, -1))
    np.testing.assert_allclose(made, np.einsum("octhw,thwc->o", kernel, patch), rtol=1e-12)
    rows = np.arange(24).reshape(3, 1, 2, 4)  # (C, t, h, w)
    np.testing.assert_array_equal(
        transforms.patch_rows(8, transforms.as_is).forward(rows.reshape(-1)), np.moveaxis(rows, 0, -1).reshape(-1)
    )

    conv = transforms.conv3d.forward(rng.standard_normal((2, 3, 4, 5, 6)))
    assert conv.flags.owndata is False  # a view: nothing is read until it is copied


# -------------------------------------------------------------------------------- loading


def test_every_leaf_holds_its_tensor_in_its_layout_and_blocks_are_rows(tmp_path, state):
    params = load_params(saved(tmp_path, state), TABLE, abstract())
    assert jax.tree.structure(params) == jax.tree.structure(abstract())
    np.testing.assert_array_equal(params["out"]["kernel"], state["proj.weight"].T)
    np.testing.assert_array_equal(params["out"]["bias"], state["proj.bias"])
    for i in range(LAYERS):
        np.testing.assert_array_equal(params["blocks"]["mlp"]["kernel"][i], state[f"blocks.{i}.ffn.weight"].T)
        np.testing.assert_array_equal(params["blocks"]["modulation"][i], state[f"blocks.{i}.table"][0])
    for i in range(2):
        expected = state[f"down.{i}.conv.kernel"].transpose(2, 3, 4, 1, 0)
        np.testing.assert_array_equal(params["down"][i]["conv"]["kernel"], expected)


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_dtype_policy_casts_once_and_keeps_float32_where_the_rule_says_so(tmp_path, state, stored, dtype):
    state = {name: value.astype(stored) for name, value in state.items()}
    params = load_params(saved(tmp_path, state), TABLE, abstract(), dtype)
    assert params["out"]["kernel"].dtype == dtype
    np.testing.assert_array_equal(params["out"]["kernel"], state["proj.weight"].T.astype(dtype))
    assert params["blocks"]["norm"]["scale"].dtype == params["blocks"]["modulation"].dtype == jnp.float32
    for i in range(LAYERS):
        expected = state[f"blocks.{i}.norm.weight"].astype(np.float32)
        np.testing.assert_array_equal(params["blocks"]["norm"]["scale"][i], expected)


def test_without_a_dtype_leaves_take_their_own(tmp_path, state):
    params = load_params(saved(tmp_path, state), TABLE, abstract(jnp.bfloat16))
    assert params["out"]["bias"].dtype == jnp.bfloat16
    assert params["blocks"]["modulation"].dtype == jnp.float32


def test_ignored_tensors_are_ignored_and_only_they(tmp_path, state):
    load_params(saved(tmp_path, state | {"rope.freqs": np.zeros(3, np.float32)}), TABLE, abstract())
    with pytest.raises(CheckpointError, match=r"extra    rope\.other"):
        load_params(saved(tmp_path, state | {"rope.other": np.zeros(3, np.float32)}), TABLE, abstract())


class Unread(Checkpoint):
    def view(self, name):
        raise AssertionError(f"{name} was read")


def test_all_misfits_are_listed_together_before_any_weight_is_read(tmp_path, state):
    state["blocks.1.ffn.wieght"] = state.pop("blocks.1.ffn.weight")  # misspelt: missing and extra
    state["blocks.3.norm.weight"] = state["blocks.2.norm.weight"]  # a fourth block
    state["proj.weight"] = np.ascontiguousarray(state["proj.weight"].T)  # misshaped
    state["down.0.conv.kernel"] = state["down.0.conv.kernel"][0]  # of another rank
    state["blocks.0.norm.weight"] = np.zeros(WIDTH, np.int8)  # quantised
    del state["blocks.2.table"]  # missing, and nothing like it
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        load_params(Unread(tmp_path), TABLE, abstract())
    message = str(raised.value)
    assert f"{tmp_path}: the weights do not fit the model, 7 problem(s)" in message
    for line in (
        "missing  blocks.1.ffn.weight (70, 37), for leaf blocks/mlp/kernel; the checkpoint has blocks.1.ffn.wieght",
        "extra    blocks.1.ffn.wieght (70, 37): this model has no place for it; the model has blocks.1.ffn.weight",
        "extra    blocks.3.norm.weight (70,): this model has no place for it",
        "shape    proj.weight is (40, 24) in the checkpoint, (24, 40) in the model (out/kernel, linear)",
        "shape    down.0.conv.kernel is (4, 3, 2, 1) in the checkpoint, (5, 4, 3, 2, 1) in the model",
        "dtype    blocks.0.norm.weight is int8",
        "missing  blocks.2.table (1, 6, 70), for leaf blocks/modulation",
    ):
        assert line in message
    assert message.count("\n") == 7


def without(leaf):
    return tuple(rule for rule in TABLE if getattr(rule, "leaf", None) != leaf)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (without("out/bias"), "leaf out/bias (24,) is filled by no rule"),
        ((*TABLE, Rule("p.{x}", "out/{x}")), "leaf out/bias (24,) is filled by proj.bias and p.{x}"),
        ((*TABLE, Ignore("proj.{x}", "no")), "proj.bias is matched by proj.bias and proj.{x}"),
        (
            (*without("out/bias"), Rule("proj.weight", "out/bias")),
            "proj.weight fills both out/kernel and out/bias",
        ),
        (
            (*without("out/bias"), Rule("proj.bias", "out/bias", transforms.linear)),
            "(no tensor becomes (24,) by linear)",
        ),
    ],
    ids=[
        "unfilled leaf",
        "leaf filled twice",
        "tensor matched twice",
        "tensor used twice",
        "impossible transform",
    ],
)
def test_a_table_that_is_not_one_to_one_is_an_error(tmp_path, state, table, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_params(saved(tmp_path, state), table, abstract())


# -------------------------------------------------------------------------------- writing


def test_saving_gives_back_the_very_tensors_that_were_loaded(tmp_path, state):
    params = load_params(saved(tmp_path, state), TABLE, abstract())
    save_params(params, TABLE, tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")  # by the safetensors library
    assert again.keys() == state.keys()
    for name, value in state.items():
        assert again[name].dtype == value.dtype
        np.testing.assert_array_equal(again[name], value)


def test_loading_gives_back_the_very_leaves_that_were_saved(tmp_path):
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), abstract(jnp.bfloat16))
    save_params(params, TABLE, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as reader:
        assert reader.dtype("proj.weight") == ml_dtypes.bfloat16
        assert reader.dtype("blocks.0.table") == np.float32
        loaded = load_params(reader, TABLE, abstract(), jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_equal_parameters_give_equal_bytes_in_whatever_order_the_tree_is(tmp_path, state):
    params = load_params(saved(tmp_path, state), TABLE, abstract())
    save_params(params, TABLE, tmp_path / "a.safetensors")
    save_params(dict(reversed(params.items())), TABLE[::-1], tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    header = (tmp_path / "a.safetensors").read_bytes()
    header = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}  # readers of torch files insist on it


def test_a_tree_that_the_table_cannot_name_is_not_written(tmp_path, state):
    params = load_params(saved(tmp_path, state), TABLE, abstract())
    with pytest.raises(CheckpointError, match="leaf extra"):
        save_params(params | {"extra": params["out"]["bias"]}, TABLE, tmp_path / "b.safetensors")
    assert not list(tmp_path.glob("b.*"))


def test_an_unfinished_file_never_gets_its_name(tmp_path):
    path = tmp_path / "x.safetensors"
    announced = {"a": (np.float32, (2,)), "b": (np.float32, (2,))}

    def write(**values):
        with SafetensorsWriter(path, announced) as writer:
            for name, value in values.items():
                writer.write(name, value)

    with pytest.raises(CheckpointError, match="not written, tensors are missing: b"):
        write(a=np.ones(2, np.float32))
    with pytest.raises(CheckpointError, match=r"a is \(3,\), announced as \(2,\)"):
        write(a=np.ones(3, np.float32))
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------
# placement

SHARDED = """
import sys, jax, numpy as np
from jax.sharding import Mesh, PartitionSpec
from ports import filling
from ports.safetensors_reader import Checkpoint
from ports.table import partition_specs
from tests.ports.test_table import TABLE, abstract

mesh = Mesh(np.array(jax.devices()).reshape(2, 4, 1), ("data", "fsdp", "seq"))
table = [rule for rule in TABLE if "ffn" not in rule.source]  # its 37 rows do not divide by 4
tree = abstract()
del tree["blocks"]["mlp"]
shardings = partition_specs(table, tree, mesh)
kernel = shardings["out"]["kernel"]
assert kernel.spec == PartitionSpec("fsdp", None), kernel  # this mesh has no tensor axis
assert shardings["blocks"]["norm"]["scale"].is_fully_replicated

buffers, whole = [], filling.aligned_empty
def recorded(shape, dtype):
    buffers.append(shape)
    return whole(shape, dtype)
filling.aligned_empty = recorded
reader = Checkpoint(sys.argv[1])
params = filling.load_params(reader, table, tree, shardings=shardings)
assert params["out"]["kernel"].sharding == kernel
assert {s.data.shape for s in params["out"]["kernel"].addressable_shards} == {(10, 24)}
np.testing.assert_array_equal(params["out"]["kernel"], reader.view("proj.weight").T)
np.testing.assert_array_equal(params["blocks"]["norm"]["scale"][1], reader.view("blocks.1.norm.weight"))
assert buffers.count((10, 24)) == 4 and (40, 24) not in buffers, buffers  # once, for all replicas
assert buffers.count((3, 70)) == 1, buffers
print("fine")
"""


def test_a_sharded_load_reads_each_slice_once_and_never_the_whole_leaf(tmp_path, state, run_with_devices):
    state = {name: value for name, value in state.items() if "ffn" not in name}
    save_file(state, tmp_path / "model.safetensors")
    assert run_with_devices(8, SHARDED, str(tmp_path)).strip() == "fine"


def test_one_sharding_serves_every_leaf(tmp_path, state):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = load_params(saved(tmp_path, state), TABLE, abstract(), shardings=place)
    plain = load_params(saved(tmp_path, state), TABLE, abstract())
    jax.tree.map(np.testing.assert_array_equal, params, plain)


def test_a_spec_axis_that_the_mesh_lacks_is_replicated():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves(partition_specs(TABLE, abstract(), mesh)))


MEMORY = """
import resource, sys
from pathlib import Path
import jax, jax.numpy as jnp
from ports.safetensors_reader import Checkpoint
from ports.filling import load_params
from ports.table import Rule
from ports.transforms import linear

groups, rows, width = 6, 8, 1024
table = tuple(Rule(f"blocks.{{block}}.{i}.weight", f"blocks/{i}", linear) for i in range(groups))

def tree(groups, rows):
    leaf = jax.ShapeDtypeStruct((rows, width, width), jnp.float32)
    return {"blocks": {str(i): leaf for i in range(groups)}}

def peak():
    status = Path("/proc/self/status")  # getrusage counts the parent in: its peak survives exec on Linux
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

load_params(Checkpoint(sys.argv[1] + "/warm"), table, tree(1, 1))
before = peak()
params = load_params(Checkpoint(sys.argv[1] + "/full"), table, tree(groups, rows))
beyond = peak() - before
result = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(beyond, result, result // groups)
"""


def test_the_host_holds_little_more_than_the_result_while_it_loads(tmp_path, run_python):
    width = 1024
    weight = np.full((width, width), 0.5, ml_dtypes.bfloat16)
    for name, groups, rows in (("warm", 1, 1), ("full", 6, 8)):
        (tmp_path / name).mkdir()
        shards = {  # in two files, as large checkpoints are
            f"model-{half}.safetensors": [
                f"blocks.{row}.{i}.weight" for i in range(groups) for row in range(half, rows, 2)
            ]
            for half in (0, 1)
        }
        shards = {file: names for file, names in shards.items() if names}
        for file, names in shards.items():
            save_file(dict.fromkeys(names, weight), tmp_path / name / file)
        weight_map = {tensor: file for file, names in shards.items() for tensor in names}
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (tmp_path / name / "model.safetensors.index.json").write_text(index)
    beyond, result, group = map(int, run_python(MEMORY, str(tmp_path)).split())
    assert beyond > 0.9 * result  # the measure does see the result
    # 1.2 of the largest group (32 MB of 192): reading the file whole (96 MB), or building the tree twice,
    # does not fit.
    assert beyond < result + 1.2 * group


@pytest.mark.parametrize("kind", [np.float32, ml_dtypes.bfloat16])
def test_the_copy_by_parts_equals_a_plain_copy(kind):
    x = np.random.default_rng(0).standard_normal((101, 7, 45)).astype(np.float32)
    # A matrix of several tiles each way, not whole ones.
    m = np.random.default_rng(1).standard_normal((300, 1544)).astype(kind)
    cubes = [x, x.T, x[::2].transpose(1, 2, 0), x[0, 0], x.transpose(2, 0, 1)[:, 3:9]]
    for source in (*cubes, m, m[:, 8:], m.T, m.T[8:], m.T[3:], m.T[::2], m[1:, 16:40].T, m[:, ::-1].T):
        target = np.zeros(source.shape, ml_dtypes.bfloat16)
        filling._copy(target, source)
        np.testing.assert_array_equal(target, source.astype(ml_dtypes.bfloat16))
