import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxdiff
from jaxdiff.errors import ConfigError
from jaxdiff.mesh import abstract_mesh
from ports import inspect
from ports.convert import convert
from tests.ports.test_folder import VAE_WEIGHTS, WEIGHTS, folder, state, unread, vae_state, whole

__all__ = ["folder", "state", "unread", "vae_state", "whole"]  # fixtures


def look(capsys, checkpoint, **flags):
    code = inspect.run(inspect.Config(checkpoint, **flags))
    return code, capsys.readouterr().out


def test_it_counts_what_load_would_hold_and_reads_nothing(whole, unread, capsys, state, vae_state):
    code, out = look(capsys, whole)
    assert code == 0
    assert "WanPipeline" in out and out.rstrip().endswith("will load")
    count = sum(value.size for value in state.values())
    assert f"{count:,}" in out
    assert f"{count + sum(value.size for value in vae_state.values()):,}" in out
    assert "taps: " in out and "block_out" in out and "frame_mean" in out
    assert "no text encoder" in out


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_bytes_of_a_device_are_those_that_load_places(whole, dtype):
    opened, _ = inspect.inspect_folder(whole)
    mesh, pipeline = abstract_mesh(""), jaxdiff.load(whole, dtype=dtype)
    for name, component in opened.components.items():
        found = inspect.describe(component, mesh, np.dtype(dtype) if dtype == "float32" else inspect.jnp.bfloat16)
        leaves = inspect.jax.tree.leaves(getattr(pipeline, name))
        assert found["loaded_bytes"] == found["device_bytes"] == sum(leaf.nbytes for leaf in leaves)
        assert found["parameters"] == sum(leaf.size for leaf in leaves)


COMMAND = """
import sys
from ports import inspect
sys.argv = ["inspect", *sys.argv[1:]]
try:
    inspect.main()
except SystemExit as stop:
    print("exit", stop.code)
"""


def test_the_command_takes_flags_and_ends_with_the_exit_code(folder, run_python):
    out = run_python(COMMAND, f"--checkpoint={folder}", "--mesh=data=2,fsdp=2", "--compilation_cache=")
    assert "mesh data=2, fsdp=2" in out and out.endswith("exit 0\n")


def test_everything_in_the_way_of_loading_is_listed_and_the_exit_code_says_so(whole, unread, capsys, state, vae_state):
    save_file({**state, "new": np.zeros(2, np.float32)}, whole / WEIGHTS)
    save_file({**vae_state, "newer": np.zeros(3, np.float32)}, whole / VAE_WEIGHTS)
    code, out = look(capsys, whole)
    assert code == 5 and "will NOT load" in out
    assert "extra    new (2,)" in out and "extra    newer (3,)" in out


def test_a_converted_folder_is_described_alike(whole, tmp_path, unread, capsys, monkeypatch):
    monkeypatch.undo()
    convert(whole, tmp_path / "out")
    opened, converted = (inspect.inspect_folder(path)[0] for path in (whole, tmp_path / "out"))
    for name, component in opened.components.items():
        said = [inspect.describe(c, abstract_mesh(""), np.float32) for c in (component, converted.components[name])]
        assert said[0] == said[1]


@pytest.mark.parametrize("text", ["data", "data=0", "data=2,data=2", "=3", "a=b"])
def test_a_mesh_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="--mesh"):
        abstract_mesh(text)
