import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdiff.errors import CheckpointError
from ports.safetensors_reader import Checkpoint

KINDS = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float64": np.float64,
    "int64": np.int64,
    "uint8": np.uint8,
    "bool": np.bool_,
}


def some(shape, dtype=np.float32, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 3).astype(dtype)


def assemble(header: dict | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write_shards(folder, shards: dict[str, dict[str, np.ndarray]], weight_map=None):
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    held = {key: name for name, tensors in shards.items() for key in tensors}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map or held}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_every_dtype_reads_bit_exactly_what_the_safetensors_library_wrote(tmp_path):
    tensors = {name: some((3, 5), kind) for name, kind in KINDS.items()}
    tensors |= {"scalar": np.asarray(1.5, np.float32), "empty": np.zeros((0, 4), np.float32)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with Checkpoint(tmp_path / "x.safetensors") as reader:
        assert reader.names() == tuple(sorted(tensors))
        assert reader.nbytes() == sum(value.nbytes for value in tensors.values())
        for name, value in tensors.items():
            assert (reader.shape(name), reader.dtype(name)) == (value.shape, value.dtype)
            assert reader.view(name).dtype == value.dtype
            assert reader.view(name).tobytes() == value.tobytes()


def test_a_tensor_at_an_odd_offset_reads_bit_exactly(tmp_path):
    value = some((4, 3))
    data = b"\1" + value.tobytes()
    header = {"a": entry(0, 1, (1,), "U8"), "b": entry(1, 49, (4, 3))}
    (tmp_path / "x.safetensors").write_bytes(assemble(header, data))
    np.testing.assert_array_equal(Checkpoint(tmp_path / "x.safetensors").view("b"), value)


def test_a_row_slice_of_a_huge_tensor_is_read_alone(tmp_path):
    # 1 TiB, and only as a hole in a sparse file: reading more than the slice could not succeed.
    rows, width = 1 << 18, 1 << 20
    prefix = assemble({"huge": entry(0, rows * width * 4, (rows, width))}, b"")
    value = some(width)
    with open(tmp_path / "x.safetensors", "wb") as file:
        file.write(prefix)
        file.seek(len(prefix) + 777 * width * 4)
        file.write(value.tobytes())
        file.truncate(len(prefix) + rows * width * 4)
    with Checkpoint(tmp_path) as reader:
        np.testing.assert_array_equal(reader.view("huge")[777], value)
        reader.release("huge")
        np.testing.assert_array_equal(reader.view("huge")[777, ::2], value[::2])


def test_views_cannot_change_the_file(tmp_path):
    save_file({"a": some(4)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="read-only"):
        Checkpoint(tmp_path / "x.safetensors").view("a")[0] = 1


@pytest.mark.parametrize("kept", [0, 5, 8, 40, -41, -1])
def test_a_truncated_file_is_refused_with_both_sizes_wherever_it_ends(tmp_path, kept):
    file = tmp_path / "x.safetensors"
    save_file({"a": some((4, 5)), "b": some(3)}, file)
    whole = file.read_bytes()
    cut = whole[:kept]
    file.write_bytes(cut)
    header = int.from_bytes(whole[:8], "little")
    expected = len(whole) if len(cut) >= 8 + header else header if len(cut) >= 8 else ""
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: truncated.* {expected}.*{len(cut)}"):
        Checkpoint(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            assemble({"a": entry(0, 8, (2,))}, bytes(9)),
            "followed by unknown bytes.* 9|followed by unknown bytes",
        ),
        (assemble({"a": entry(0, 8, (3,))}, bytes(8)), "'a' is F32 .* needs 12 bytes, its offsets span 8"),
        (assemble({"a": entry(0, 8, (2,)), "b": entry(4, 12, (2,))}, bytes(12)), "'b' .* overlaps"),
        (assemble({"a": entry(0, 8, (2,)), "b": entry(12, 20, (2,))}, bytes(20)), "'b' .* hole"),
        (assemble({"a": entry(0, 8, (2,), "F4")}, bytes(8)), "'a' has dtype 'F4'; readable dtypes are"),
        (assemble({"a": entry(0, 8, (-2, -1))}, bytes(8)), "corrupt"),
        (assemble({"a": {"dtype": "F32"}}, b""), "corrupt"),
        (assemble(b"[1, 2]", b""), "corrupt"),
        (assemble(b"{not json", b""), "corrupt"),
        (assemble(b'{"a":' * 100_000, b""), "corrupt"),
        (assemble(b"\xff\xfe{}", b""), "corrupt"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
    ],
)
def test_a_corrupt_file_is_refused_by_name_and_reason(tmp_path, content, message):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: .*({message})"):
        Checkpoint(file)


def test_shards_read_as_one_checkpoint(tmp_path):
    shards = {f"m-{i}.safetensors": {f"t{i}": some((2, i + 1), seed=i), f"u{i}": some(i + 1)} for i in range(3)}
    write_shards(tmp_path, shards)
    with Checkpoint(tmp_path) as reader:
        assert [file.name for file in reader.files] == sorted(shards)
        for tensors in shards.values():
            for name, value in tensors.items():
                np.testing.assert_array_equal(reader.view(name), value)


def test_every_disagreement_of_shards_with_their_index_is_listed_at_once(tmp_path):
    shards = {
        "a.safetensors": {"x": some(2), "stray": some(2)},
        "b.safetensors": {"y": some(2), "z": some(2)},
    }
    weight_map = {
        "x": "a.safetensors",
        "absent": "a.safetensors",
        "y": "b.safetensors",
        "z": "a.safetensors",
        "lost": "c.safetensors",
        "out": "../d.safetensors",
    }
    write_shards(tmp_path, shards, weight_map)
    with pytest.raises(CheckpointError) as raised:
        Checkpoint(tmp_path)
    for part in (
        "a.safetensors holds 'stray', which the index does not list",
        "the index places 'absent' in a.safetensors, which does not hold it",
        "'z' lies in b.safetensors, but the index places it in a.safetensors",
        "shard c.safetensors is missing (1 tensors lie in it)",
        "'../d.safetensors' is no plain file name",
    ):
        assert part in str(raised.value)


def test_a_truncated_shard_is_named(tmp_path):
    write_shards(tmp_path, {"a.safetensors": {"x": some(2)}, "b.safetensors": {"y": some(9)}})
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"b\.safetensors: truncated"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json: not a shard index"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "x.pth", "y.ckpt"])
def test_a_pickle_is_refused_with_the_reason_and_the_way_out(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError, match=r"run any code.*python -m ports\.unpickle --checkpoint=") as raised:
        Checkpoint(tmp_path)
    assert name in str(raised.value)
    with pytest.raises(CheckpointError, match="run any code"):
        Checkpoint(tmp_path / name)


def test_a_pickle_beside_safetensors_is_left_alone(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\x80\x02.")
    save_file({"a": some(2)}, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).names() == ("a",)


def test_a_folder_without_weights_says_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors.*notes\.txt"):
        Checkpoint(tmp_path)


def test_a_lora_is_refused(tmp_path):
    save_file({"a": some(2)}, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(CheckpointError, match="LoRA"):
        Checkpoint(tmp_path)


def test_variants_stand_back_and_two_plain_files_are_ambiguous(tmp_path):
    save_file({"a": some(2)}, tmp_path / "model.fp16.safetensors")
    save_file({"b": some(2)}, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).names() == ("b",)
    save_file({"c": some(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"several sets of weights \(model\.safetensors, other\.safetensors\)"):
        Checkpoint(tmp_path)


def test_shards_without_their_index_are_recognised(tmp_path):
    for i in (1, 2):
        save_file({"a": some(2)}, tmp_path / f"model-0000{i}-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="shards without their index"):
        Checkpoint(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: cannot be read"):
        Checkpoint(tmp_path / "gone.safetensors")
