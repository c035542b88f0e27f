"""The latent store: what is written comes back, what was half-written is written again, and what is wrong is said."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.store import ActivationStore, LatentHeader, LatentStore, LatentWriter
from jaxdiff.store.index import INDEX

HEADER = LatentHeader("wan", "abc", (3, 2, 4, 5), (6, 7), True, 9, (16, 32), 8.0, "float32", 5)
NAMES, CAPTIONS = [f"clip{i}.mp4" for i in range(5)], [f"caption {i}, with a comma" for i in range(5)]


def arrays(ids, header=HEADER):
    """Latents, text and mask of some clips, each decided by its id alone."""
    draw = [np.random.default_rng(int(i)) for i in ids]
    latents = np.stack([rng.standard_normal(header.latent_shape).astype(np.float32) for rng in draw])
    text = np.stack([rng.standard_normal(header.text_shape).astype(np.float32) for rng in draw])
    return latents, text, np.stack([np.arange(header.text_shape[0]) <= i for i in ids])


def write(path, ids, header=HEADER):
    with LatentWriter.create(path, header, NAMES, CAPTIONS) as writer:
        writer.write(np.array(ids), *arrays(ids, header))
    return path


def test_clips_come_back_in_any_order_with_their_captions(tmp_path):
    write(tmp_path / "s", [0, 1, 2])
    write(tmp_path / "s", [4, 3])
    store = LatentStore.open(tmp_path / "s")
    assert store.header == HEADER and len(store) == 5
    assert store.names == tuple(NAMES) and store.captions == tuple(CAPTIONS) and not store.skipped
    assert store.nbytes == 5 * 3 * 2 * 4 * 5 * 4
    for found, expected in zip(store.read([4, 0, 2]), arrays([4, 0, 2]), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ConfigError, match=r"none at \[5\]"):
        store.read([0, 5])


def test_bfloat16_is_rounded_on_disk_and_float32_in_memory(tmp_path):
    header = dataclasses.replace(HEADER, dtype="bfloat16", masked=False, count=5)
    ids = np.arange(5)
    latents, text, _ = arrays(ids)
    with LatentWriter.create(tmp_path / "s", header, NAMES, CAPTIONS) as writer:
        with pytest.raises(ConfigError, match="masked=False"):
            writer.write(ids, *arrays(ids))
        writer.write(ids, latents, text)
    found = LatentStore.open(tmp_path / "s").read(range(5))
    assert found.latents.dtype == np.float32 and found.text_mask is None
    np.testing.assert_array_equal(found.latents, latents.astype(jax.numpy.bfloat16).astype(np.float32))
    size = sum(f.stat().st_size for f in (tmp_path / "s" / "latents").glob("c.*"))
    assert size < 0.6 * latents.nbytes


def test_a_killed_writer_goes_on_and_writes_a_half_written_clip_again(tmp_path):
    path = write(tmp_path / "run" / "store", [0, 1, 2])
    with pytest.raises(MissingDataError, match="2 of its 5 clips are missing"):
        LatentStore.open(path)
    # Killed after the arrays of clip 2 and before its line was whole: its chunks are junk as far as anyone knows.
    index = path / INDEX
    index.write_bytes(index.read_bytes()[:-9])
    chunk = next(f for f in (path / "latents").glob("c.2.*"))
    chunk.write_bytes(b"half")
    with LatentWriter.create(path, HEADER, NAMES, CAPTIONS) as writer:
        assert writer.finished() == {0, 1}
        writer.write(np.array([2, 3, 4, -1]), *arrays([2, 3, 4, 4]))
    store = LatentStore.open(tmp_path / "run")  # the folder of the command that wrote it
    np.testing.assert_array_equal(store.read(range(5)).latents, arrays(range(5))[0])


def test_a_clip_that_is_left_out_is_named_and_not_read(tmp_path):
    with LatentWriter.create(tmp_path / "s", HEADER, NAMES, CAPTIONS) as writer:
        writer.skip(1, "no such clip")
        writer.write(np.array([0, 2, 3, 4]), *arrays([0, 2, 3, 4]))
    store = LatentStore.open(tmp_path / "s")
    assert store.skipped == {"clip1.mp4": "no such clip"}
    assert len(store) == store.header.count == 4 and store.names == tuple(NAMES[i] for i in (0, 2, 3, 4))
    np.testing.assert_array_equal(store.read([1]).latents, arrays([2])[0])


def test_what_is_no_latent_store_and_what_is_damaged_is_refused(tmp_path):
    with pytest.raises(MissingDataError, match="holds no activation store"):
        LatentStore.open(tmp_path)
    with ActivationStore.create(
        tmp_path / "a", clips=1, slots=1, specs={"x": jax.ShapeDtypeStruct((2, 2), np.float32)}
    ):
        pass
    with pytest.raises(MissingDataError, match="of activations, not of latents"):
        LatentStore.open(tmp_path / "a")
    path = write(tmp_path / "s", [0, 1, 2, 3, 4])
    with pytest.raises(ConfigError, match="vae_fingerprint"):
        LatentWriter.create(path, dataclasses.replace(HEADER, vae_fingerprint="other"), NAMES, CAPTIONS)
    with pytest.raises(ConfigError, match="4 names"):
        LatentWriter.create(path, HEADER, NAMES[:4], CAPTIONS)
    with pytest.raises(ConfigError, match="float16"):
        dataclasses.replace(HEADER, dtype="float16")
    chunk = next(f for f in (path / "latents").glob("c.3.*"))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\0")
    store = LatentStore.open(path)
    store.read([0, 1, 2, 4])
    with pytest.raises(MissingDataError, match="damaged for clips 3"):
        store.read([2, 3])
    header = json.loads((path / "zarr.json").read_text())
    del header["attributes"]["metadata"]["latents"]["family"]
    (path / "zarr.json").write_text(json.dumps(header))
    with pytest.raises(MissingDataError, match="not of latents"):
        LatentStore.open(path)
