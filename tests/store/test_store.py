"""The store on one device: both ways in agree, only whole clips are committed, mistakes are named."""

import json
import math
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.store import ActivationStore, layout
from jaxdiff.store.index import INDEX
from jaxdiff.store.layout import Layout
from tests.store import program as p


def chunk_files(path):
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in path.rglob("c.*")}


def one_array(path, slots, shape, dtype=jnp.float32, clips=2):
    return ActivationStore.create(path, clips=clips, slots=slots, specs={"x": jax.ShapeDtypeStruct(shape, dtype)})


def values(slots, shape, batch, seed=0, dtype=np.float32):
    """[slots, rows, B, ...]"""
    full = (slots, shape[0], batch, *shape[1:])
    return np.random.default_rng(seed).standard_normal(full).astype(dtype)


# ------------------------------------------------------------------------------------------ both ways in


def test_streamed_and_returned_captures_are_stored_bit_identically(tmp_path):
    for stream in (True, False):
        with p.create(tmp_path / str(stream), 5) as store:
            p.run(store, stream=stream)
    p.assert_same(p.arrays(tmp_path / "True"), p.arrays(tmp_path / "False"))
    p.assert_same(p.arrays(tmp_path / "True"), p.reference(5))
    files = chunk_files(tmp_path / "True")
    assert len(files) == 5 * len(p.SPECS)
    assert files == chunk_files(tmp_path / "False")


def test_the_next_batch_does_not_retrace(tmp_path):
    with p.create(tmp_path / "s", 7) as store:
        before = p.traces[0]
        p.run(store)
        assert p.traces[0] == before + 1
        assert store.finished() == set(range(7))


def test_slots_may_arrive_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_BYTES", 2 * 3 * 4 * 4)  # two slots a chunk, so that chunks interleave
    data = values(5, (3, 4), 2)
    with one_array(tmp_path / "s", 5, (3, 4)) as store:
        sink = store.sink([1, 0])
        emit = jax.jit(lambda sink, x, slot: sink.emit({"x": x}, slot))
        for slot in (3, 0, 4, 2, 1):
            emit(sink, data[slot], slot)
        store.finish([1, 0])
        np.testing.assert_array_equal(store.read("x", [1, 0]), np.moveaxis(data, 2, 0))


def test_padding_is_not_stored(tmp_path):
    data = values(2, (3, 4), 3)
    with one_array(tmp_path / "s", 2, (3, 4)) as store:
        store.write([-1, 1, -1], {"x": data})
        store.finish([-1, 1, -1], [{}, {"error": 0.5}, {}])
        assert store.finished() == {1}
        assert store.records() == {1: {"error": 0.5}}
        np.testing.assert_array_equal(store.read("x"), data[None, :, :, 1])
    assert len(chunk_files(tmp_path / "s")) == 1


def test_a_run_that_was_given_up_leaves_nothing_in_the_next_run_of_its_clips(tmp_path):
    data = values(2, (1, 4), 2)
    with one_array(tmp_path / "s", 2, (1, 4)) as store:
        emit = jax.jit(lambda sink, x, slot: sink.emit({"x": x}, slot))
        emit(store.sink([0, 1]), data[0] + 1, 0)  # slot 1 never comes
        sink = store.sink([0, 1])
        for slot in (0, 1):
            emit(sink, data[slot], slot)
        store.finish([0, 1])
        np.testing.assert_array_equal(store.read("x"), np.moveaxis(data, 2, 0))


# ------------------------------------------------------------------------------------------ on disk


@pytest.mark.parametrize(("limit", "chunk"), [(1 << 20, (1, 5, 6, 4)), (3 * 96, (1, 3, 6, 4)), (40, (1, 1, 2, 4))])
def test_arrays_survive_any_chunking(tmp_path, monkeypatch, limit, chunk):
    monkeypatch.setattr(layout, "CHUNK_BYTES", limit)
    assert Layout("x", (2, 5, 6, 4), "float32", tuple(range(6))).chunk == chunk
    data = values(5, (6, 4), 2)
    with one_array(tmp_path / "s", 5, (6, 4)) as store:
        assert store.array("x").chunk_layout.write_chunk.shape == chunk
        store.write([0, 1], {"x": data})
        store.finish([0, 1])
        np.testing.assert_array_equal(store.read("x"), np.moveaxis(data, 2, 0))
        np.testing.assert_array_equal(store.read("x", [1], [4, 0]), np.moveaxis(data, 2, 0)[1:, [4, 0]])
    _, slots, rows, _ = chunk
    assert len(chunk_files(tmp_path / "s")) == 2 * -(-5 // slots) * -(-6 // rows)


def test_the_largest_real_capture_is_cut_by_slot_and_row():
    # Wan 1.3B at 480p, every token: one row is 96 MiB, far over the limit, and stays whole.
    full = Layout("block_out.full", (10, 20, 30, 32760, 1536), "bfloat16", tuple(range(30)))
    assert full.chunk == (1, 1, 1, 32760, 1536)
    mean = Layout("block_out.mean", (10, 20, 30, 1536), "float32", tuple(range(30)))
    assert mean.chunk == (1, 20, 30, 1536)


def test_values_that_equal_the_fill_value_are_stored(tmp_path):
    data = np.full((2, 1, 1, 3), np.nan, np.float32)
    with one_array(tmp_path / "s", 2, (1, 3)) as store:
        store.write([0], {"x": data})
        store.finish([0])
        assert np.isnan(store.read("x")).all()
    assert len(chunk_files(tmp_path / "s")) == 1


@pytest.mark.parametrize("dtype", ["float64", "int32", "uint8", "bool"])
def test_other_dtypes_round_trip(tmp_path, dtype):
    data = (values(2, (3, 4), 1) * 100).astype(dtype)
    with one_array(tmp_path / "s", 2, (3, 4), np.dtype(dtype)) as store:
        store.write([0], {"x": data})
        store.finish([0])
        assert store.read("x").dtype == dtype
        np.testing.assert_array_equal(store.read("x")[0], data[:, :, 0])


def test_float16_is_refused_because_activations_overflow_it(tmp_path):
    with pytest.raises(ConfigError, match="float16; a store holds float32, bfloat16"):
        one_array(tmp_path / "s", 2, (3, 4), jnp.float16)


def test_plain_tensorstore_reads_the_folder(tmp_path):
    import tensorstore as ts

    with p.create(tmp_path / "s", 3, metadata={"sigmas": np.linspace(0, 1, 4)}) as store:
        p.run(store)
    for name, expected in p.reference(3).items():
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/s/{name}/"}}
        array = ts.open(spec).result()
        assert array.domain.labels[:3] == ("clip", "slot", "block")
        np.testing.assert_array_equal(array.read().result(), expected)
    group = json.loads((tmp_path / "s" / "zarr.json").read_text())
    assert (group["zarr_format"], group["node_type"]) == (3, "group")
    assert group["attributes"]["metadata"]["sigmas"] == np.linspace(0, 1, 4).tolist()


def test_names_that_file_systems_dislike_are_encoded(tmp_path):
    spec = {"a/b %é..": jax.ShapeDtypeStruct((1, 2), jnp.float32)}
    data = values(1, (1, 2), 1)
    with ActivationStore.create(tmp_path / "s", clips=1, slots=1, specs=spec) as store:
        store.write([0], {"a/b %é..": data})
        store.finish([0])
        np.testing.assert_array_equal(store.read("a/b %é..")[0], data[:, :, 0])
    assert sorted(x.name for x in (tmp_path / "s").iterdir()) == ["a%2Fb %25%C3%A9..", INDEX, "zarr.json"]
    for name in ("", ".", ".."):
        with pytest.raises(ConfigError, match="cannot name"):
            ActivationStore.create(tmp_path / "t", clips=1, slots=1, specs={name: spec["a/b %é.."]})


# ------------------------------------------------------------------------------------------ configuration


def test_the_description_comes_back(tmp_path):
    metadata = {"sigmas": np.array([0.1, 1 / 3], np.float64), "seed": np.int64(3), "label": None}
    options = {"names": ["a", "b"], "rows": {"block_out.mean": [0, 4, 9]}, "metadata": metadata}
    with p.create(tmp_path / "s", 2, **options) as store:
        digest = store.config_hash
    store = ActivationStore.open(tmp_path / "s")
    assert (store.clips, store.slots, store.names) == (2, len(p.CAPTURED), ["a", "b"])
    assert store.rows == {"block_out.mean": [0, 4, 9], "mlp_out.full": [0, 1, 2]}
    assert store.specs == p.SPECS
    assert store.metadata == {"sigmas": [0.1, 1 / 3], "seed": 3, "label": None}
    assert store.config_hash == digest
    assert store.clip_bytes == len(p.CAPTURED) * p.ROWS * p.WIDTH * (4 + p.TOKENS * 2)
    assert store.path == tmp_path / "s"


def test_another_configuration_is_refused_and_every_differing_key_shown(tmp_path):
    config = {"steps": 50, "solver": {"name": "euler", "order": 1}, "only_before": True}
    p.create(tmp_path / "s", 2, metadata=config).close()
    other = {"steps": 100, "solver": {"name": "heun", "order": 1}, "only_now": [1]}
    with pytest.raises(ConfigError) as error:
        p.create(tmp_path / "s", 3, names=["0", "1", "x"], metadata=other)
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert lines == [
        "clips: 2 in the store, 3 now",
        "metadata.only_before: true in the store, absent now",
        "metadata.only_now: absent in the store, [1] now",
        'metadata.solver.name: "euler" in the store, "heun" now',
        "metadata.steps: 50 in the store, 100 now",
        'names: ["0", "1"] in the store, ["0", "1", "x"] now',
    ]


def test_another_capture_is_refused(tmp_path):
    one_array(tmp_path / "s", 2, (3, 4)).close()
    with pytest.raises(ConfigError, match=r"arrays\.x\.dtype: \"float32\" in the store, \"bfloat16\" now"):
        one_array(tmp_path / "s", 2, (3, 4), jnp.bfloat16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["a"]}, "1 names were given for 2 clips"),
        ({"specs": {}}, "at least one array"),
        ({"rows": {"mean": [1]}}, r"row labels were given for \['mean'\]"),
        ({"rows": {"mlp_out.full": [1]}}, "3 rows, but 1 row labels"),
        ({"metadata": {"x": math.nan}}, "finite numbers"),
        ({"metadata": {"x": object()}}, "which JSON cannot"),
        ({"slots": 0}, r"needs the shape \[clips, slots, rows, ...\]"),
    ],
)
def test_impossible_configurations_are_refused_before_anything_is_made(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        p.create(tmp_path / "s", 2, **change)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an activation store"):
        p.create(tmp_path, 2)
    with pytest.raises(ConfigError, match="not an activation store"):
        p.create(tmp_path / "notes.txt", 2)
    with pytest.raises(MissingDataError, match="holds no activation store"):
        ActivationStore.open(tmp_path)
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(MissingDataError, match="does not describe an activation store"):
        p.create(tmp_path, 2)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_store_of_a_later_format_is_refused(tmp_path):
    p.create(tmp_path / "s", 2).close()
    header = tmp_path / "s" / "zarr.json"
    header.write_text(header.read_text().replace('"jaxdiff_store": 1', '"jaxdiff_store": 2'))
    with pytest.raises(ConfigError, match="format 2; this version reads 1"):
        ActivationStore.open(tmp_path / "s")


def test_what_a_killed_creation_left_is_replaced(tmp_path):
    draft = tmp_path / ".s.creating"
    draft.mkdir()
    (draft / "junk").write_text("")
    (tmp_path / "s").mkdir()  # an empty folder is as good as none
    p.create(tmp_path / "s", 2).close()
    assert [x.name for x in tmp_path.iterdir()] == ["s"]


def test_two_processes_cannot_write_to_one_store(tmp_path):
    with p.create(tmp_path / "s", 2), pytest.raises(ConfigError, match="written by another process"):
        p.create(tmp_path / "s", 2)
    p.create(tmp_path / "s", 2).close()  # free again


# ------------------------------------------------------------------------------------------ commitment


def test_a_store_is_continued_where_it_stopped(tmp_path):
    with p.create(tmp_path / "s", 5) as store:
        store.write([3, 1], p.program(np.stack([p.clip(3), p.clip(1)]), p.SLOT)[1])
        store.finish([3, 1])
    before = chunk_files(tmp_path / "s")
    with p.create(tmp_path / "s", 5) as store:
        assert store.finished() == {1, 3}
        seen = []
        p.run(store, before_finish=lambda ids: seen.extend(ids[ids >= 0].tolist()))
    assert seen == [0, 2, 4]
    p.assert_same(p.arrays(tmp_path / "s"), p.reference(5))
    assert before.items() <= chunk_files(tmp_path / "s").items()


def test_unfinished_clips_cannot_be_read(tmp_path):
    with one_array(tmp_path / "s", 2, (1, 2)) as store:
        store.write([0], {"x": values(2, (1, 2), 1)})
        with pytest.raises(MissingDataError, match=r"no finished clip 0: 0 of 2"):
            store.read("x", [0])
        assert store.read("x").shape == (0, 2, 1, 2)


def test_a_reader_sees_clips_that_are_committed_later(tmp_path):
    with p.create(tmp_path / "s", 3) as store:
        reader = ActivationStore.open(tmp_path / "s")
        assert reader.finished() == set()
        p.run(store)
        assert reader.finished() == {0, 1, 2}
        assert list(reader.records()) == [0, 1, 2]
        p.assert_same({n: reader.read(n) for n in reader.specs}, p.reference(3))
        with pytest.raises(ConfigError, match="not open for writing"):
            reader.write([0], {})


@pytest.mark.parametrize("tail", [b'{"clip": 2, "na', b'{"clip": 2}', b"\x00\x00\x00", b'{"cl\x00\x00\x00\n', b"7\n"])
def test_a_torn_last_line_is_ignored_and_overwritten(tmp_path, tail):
    with p.create(tmp_path / "s", 4) as store:
        ids = [0, 1]
        store.write(ids, p.program(np.stack([p.clip(i) for i in ids]), p.SLOT)[1])
        store.finish(ids)
    index = tmp_path / "s" / INDEX
    whole = index.read_bytes()
    index.write_bytes(whole + tail)
    assert ActivationStore.open(tmp_path / "s").finished() == {0, 1}
    assert index.read_bytes() == whole + tail  # reading changes nothing
    with p.create(tmp_path / "s", 4) as store:
        assert store.finished() == {0, 1}
        assert index.read_bytes() == whole
        p.run(store)
    p.assert_same(p.arrays(tmp_path / "s"), p.reference(4))
    assert [json.loads(line)["clip"] for line in index.read_text().splitlines()] == [0, 1, 2, 3]


def test_damage_before_the_last_line_is_named(tmp_path):
    with p.create(tmp_path / "s", 4) as store:
        p.run(store)
    index = tmp_path / "s" / INDEX
    lines = index.read_text().splitlines()
    index.write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]) + "\n")
    for opened in (ActivationStore.open, lambda path: p.create(path, 4)):
        with pytest.raises(MissingDataError, match=r"index\.jsonl, line 2, is damaged"):
            opened(tmp_path / "s")
    assert len(index.read_text().splitlines()) == 4  # refused, not repaired behind the user's back


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_chunks_are_found_and_their_clips_named(tmp_path, damage):
    with p.create(tmp_path / "s", 4) as store:
        p.run(store)
    chunk = tmp_path / "s" / "block_out.mean" / "c.2.0.0.0"
    data = bytearray(chunk.read_bytes())
    data[7] ^= 1
    if damage == "remove":
        chunk.unlink()
    else:
        chunk.write_bytes(data if damage == "flip" else data[:-9])
    store = ActivationStore.open(tmp_path / "s")
    with pytest.raises(MissingDataError, match=r"'block_out.mean' of .* is damaged for clips 2: remove"):
        store.read("block_out.mean")
    assert store.read("block_out.mean", [0, 1, 3]).shape[0] == 3  # nothing else is lost
    index = tmp_path / "s" / INDEX  # the advice of the message works
    index.write_text("".join(x + "\n" for x in index.read_text().splitlines() if '"clip": 2,' not in x))
    with p.create(tmp_path / "s", 4) as store:
        assert store.finished() == {0, 1, 3}
        p.run(store)
    p.assert_same(p.arrays(tmp_path / "s"), p.reference(4))


def test_a_clip_with_missing_slots_is_not_committed(tmp_path):
    with one_array(tmp_path / "s", 3, (1, 2)) as store:
        emit = jax.jit(lambda sink, x, slot: sink.emit({"x": x}, slot))
        emit(store.sink([1]), jnp.zeros((1, 1, 2)), 1)
        with pytest.raises(ConfigError, match=r"1 clips cannot be finished: clip 1 lacks 2 of 3 slots of 'x'"):
            store.finish([1])
        with pytest.raises(ConfigError, match=r"clip 0 lacks 3 of 3 slots"):
            store.finish([0])
        assert not store.finished()
    assert (tmp_path / "s" / INDEX).read_bytes() == b""


def test_arrays_are_synced_before_their_clip_is_committed(tmp_path, monkeypatch):
    from jaxdiff.store.index import Index

    original, present = Index.append, []

    def append(self, entries):
        present.append({e["clip"]: len(list((tmp_path / "s").rglob(f"c.{e['clip']}.*"))) for e in entries})
        original(self, entries)

    monkeypatch.setattr(Index, "append", append)
    with p.create(tmp_path / "s", 3) as store:
        p.run(store)
    assert present == [{0: 2, 1: 2}, {2: 2}]  # both arrays of every clip lie under their final names


# ------------------------------------------------------------------------------------------ mistakes


def test_wrong_ids_are_refused(tmp_path):
    with one_array(tmp_path / "s", 1, (1, 2)) as store:
        for ids, message in [
            ([2], r"clip ids \[2\] are out of range"),
            ([0, 0], "repeated"),
            ([0.5], "must be integers"),
            ([[0]], "must be integers"),
        ]:
            with pytest.raises(ConfigError, match=message):
                store.sink(ids)
        store.write([0], {"x": values(1, (1, 2), 1)})
        store.finish([0])
        for call in (lambda: store.sink([0]), lambda: store.write([0], {}), lambda: store.finish([0])):
            with pytest.raises(ConfigError, match=r"clips \[0\] of .* finished already"):
                call()


def test_wrong_captures_are_refused_while_tracing(tmp_path):
    with one_array(tmp_path / "s", 1, (3, 4)) as store:
        sink = store.sink([0, 1])
        emit = jax.jit(lambda sink, captured: sink.emit(captured, 0))
        for captured, message in [
            ({"y": jnp.zeros((3, 2, 4))}, r"given \['y'\], but its store holds \['x'\]"),
            ({"x": jnp.zeros((3, 2, 5))}, r"float32\[3, 2, 5\], but the store expects float32\[3, 2, 4\]"),
            ({"x": jnp.zeros((3, 1, 4))}, r"expects float32\[3, 2, 4\]"),
            ({"x": jnp.zeros((3, 2, 4), jnp.bfloat16)}, r"is bfloat16"),
        ]:
            with pytest.raises(ConfigError, match=message):
                emit(sink, captured)
            written = {name: np.asarray(value)[None] for name, value in captured.items()}
            with pytest.raises(ConfigError):
                store.write([0, 1], written)


def test_wrong_records_are_refused_and_nothing_is_committed(tmp_path):
    with one_array(tmp_path / "s", 1, (1, 2)) as store:
        store.write([0, 1], {"x": values(1, (1, 2), 2)})
        with pytest.raises(ConfigError, match="1 records were given for 2 clip ids"):
            store.finish([0, 1], [{}])
        with pytest.raises(ConfigError, match=r"the record of clip 1 .* finite"):
            store.finish([0, 1], [{}, {"error": math.inf}])
        assert not store.finished()
        store.finish([0, 1], [{"error": np.float32(0.5)}, {}])
        assert store.records() == {0: {"error": 0.5}, 1: {}}


def test_wrong_reads_are_refused(tmp_path):
    with p.create(tmp_path / "s", 2) as store:
        p.run(store)
        with pytest.raises(ConfigError, match=r"did you mean 'block_out\.mean'"):
            store.read("block_out.meen")
        with pytest.raises(ConfigError, match="has 0 to 3"):
            store.read("block_out.mean", slots=[4])
        assert store.read("mlp_out.full", slots=[]).dtype == ml_dtypes.bfloat16


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory") as error:
        p.create(tmp_path / "file" / "s", 2)
    assert error.value.exit_code == 75
    assert error.value.errno == 20
    assert os.listdir(tmp_path) == ["file"]
