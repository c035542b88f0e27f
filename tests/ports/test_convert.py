import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff.errors import CheckpointError, ConfigError
from ports import stored
from ports.convert import Config, convert, run
from ports.folder import UNFINISHED
from tests.ports.test_folder import VAE_VALUES, VALUES, folder, state, unread, vae_state, whole
from tests.reference import write_folder
from tests.text import write_text

__all__ = ["folder", "state", "unread", "vae_state", "whole"]  # fixtures


@pytest.fixture
def converted(whole, tmp_path):
    convert(whole, tmp_path / "converted")
    return tmp_path / "converted"


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert [leaf.dtype for leaf in jax.tree.leaves(a)] == [leaf.dtype for leaf in jax.tree.leaves(b)]


def test_a_converted_folder_loads_as_the_same_bits_in_every_dtype(whole, converted):
    for dtype in (None, jnp.bfloat16):
        equal(jaxdiff.load(converted, dtype=dtype), jaxdiff.load(whole, dtype=dtype))
    assert not list(converted.rglob("*.safetensors"))


def test_a_converted_text_encoder_embeds_a_prompt_as_the_source_does(tmp_path, state, monkeypatch):
    monkeypatch.setenv("JAXDIFF_CACHE", "")
    folder = write_folder(tmp_path / "model", transformer=(VALUES, state))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder": ["transformers", "UMT5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    write_text(folder)
    convert(folder, tmp_path / "out")
    ours, theirs = (jaxdiff.load(path).condition("the ball", max_length=8).text for path in (tmp_path / "out", folder))
    np.testing.assert_array_equal(ours, theirs)
    assert np.abs(ours).max() > 0


def test_a_dtype_halves_what_is_stored_and_keeps_norms(whole, tmp_path):
    plain = convert(whole, tmp_path / "a")["transformer"]["bytes"]
    half = convert(whole, tmp_path / "b", dtype="bfloat16")["transformer"]["bytes"]
    assert plain / 2 <= half < plain
    equal(jaxdiff.load(tmp_path / "b", dtype=jnp.bfloat16), jaxdiff.load(whole, dtype=jnp.bfloat16))


def test_a_conversion_that_was_interrupted_is_named_and_begun_again(whole, tmp_path, monkeypatch):
    write = stored.write

    def killed(folder, leaves):
        write(folder, leaves)
        raise KeyboardInterrupt

    monkeypatch.setattr(stored, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        convert(whole, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial" / UNFINISHED).is_file()
    with pytest.raises(CheckpointError, match=r"a conversion that did not finish; run ports\.convert again"):
        jaxdiff.load(tmp_path / "out.partial")
    monkeypatch.setattr(stored, "write", write)
    convert(whole, tmp_path / "out")
    equal(jaxdiff.load(tmp_path / "out"), jaxdiff.load(whole))
    assert not (tmp_path / "out.partial").exists()


def test_a_half_copied_folder_is_refused_with_every_file(converted, unread):
    arrays = converted / "transformer" / stored.ARRAYS
    files = sorted(path for path in arrays.rglob("*") if path.is_file() and path.stat().st_size > 100)
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].unlink()
    pattern = rf"(?s)not whole.*2 file.*{re.escape(files[0].name)} has .*{re.escape(files[1].name)} is missing"
    with pytest.raises(CheckpointError, match=pattern):
        jaxdiff.load(converted)
    (converted / "transformer" / stored.MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="the conversion did not finish"):
        jaxdiff.load(converted)


def test_leaves_that_do_not_fit_the_configuration_are_listed(converted):
    file = converted / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"ffn_dim": 8, "cross_attn_norm": False}))
    pattern = r"(?s)extra    blocks/cross_norm/bias.*shape    blocks/mlp/into/kernel is \(2, 24, 32\).*\(2, 24, 8\)"
    with pytest.raises(CheckpointError, match=pattern):
        jaxdiff.load(converted)


def test_an_output_that_is_there_and_a_converted_source_are_refused(whole, converted, tmp_path):
    with pytest.raises(ConfigError, match="exists"):
        convert(whole, converted)
    with pytest.raises(ConfigError, match="converted already"):
        convert(converted, tmp_path / "again")


MESH = """
import sys, jax, numpy as np, jaxdiff
from jaxdiff.mesh import abstract_mesh
from ports import inspect
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "fsdp"))
one = jaxdiff.load(sys.argv[1])
for folder in sys.argv[1:]:
    many = jaxdiff.load(folder, mesh=mesh)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        assert b.sharding.mesh == mesh
        np.testing.assert_array_equal(a, b)
    kernel = many.transformer.params["blocks"]["mlp"]["into"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 12, 32), kernel.sharding
    for name, component in inspect.inspect_folder(folder)[0].components.items():
        said = inspect.describe(component, abstract_mesh("data=2,fsdp=2"), np.float32)["device_bytes"]
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(getattr(many, name)))
        assert said == held, (folder, name, said, held)
print("fine")
"""


def test_a_mesh_holds_the_same_bits_split_as_inspect_says(whole, converted, run_with_devices):
    assert run_with_devices(4, MESH, str(whole), str(converted)).strip() == "fine"


def test_the_command_reports_sizes_and_times(folder, tmp_path, capsys):
    run(Config(folder, tmp_path / "out"))
    out = capsys.readouterr().out
    assert re.search(r"transformer +\S+ GB, read [\d.]+ s, write [\d.]+ s", out)
    assert "jaxdiff.load opens it" in out
    equal(jaxdiff.load(tmp_path / "out"), jaxdiff.load(folder))


def test_the_vae_is_there(converted):
    assert json.loads((converted / "vae/config.json").read_text())["_class_name"] == VAE_VALUES["_class_name"]
