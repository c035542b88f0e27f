"""Pickles of torch become safetensors, bit for bit, and anything but tensors is refused."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import jaxdiff
from jaxdiff.errors import CheckpointError, ConfigError
from ports import original_wan
from ports.safetensors_reader import Checkpoint
from ports.unpickle import Config, find_pickles, run, unpickle
from tests.imports import ROOT
from tests.parity.test_original import WAN, WAN_VAE, drawn, equal, original_shapes

KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)


def tensors(kinds=KINDS):
    made = {str(kind): (torch.arange(6.0).reshape(2, 3) - 2).to(kind) for kind in kinds}
    return made | {"scalar": torch.tensor(1.5), "transposed": torch.randn(4, 3).T, "empty": torch.zeros(0, 3)}


@pytest.mark.parametrize("zipped", [True, False])
def test_every_dtype_and_layout_comes_out_bit_for_bit(tmp_path, zipped):
    kinds = KINDS if zipped else KINDS[:-1]  # torch itself cannot read a float8 of before there were zip archives
    torch.save(tensors(kinds), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    unpickle(tmp_path / "x.pth", tmp_path / "x.safetensors")
    made = load_file(tmp_path / "x.safetensors")
    assert len(made) == len(kinds) + 3
    for name, value in torch.load(tmp_path / "x.pth", weights_only=True).items():
        assert made[name].dtype == value.dtype and made[name].shape == value.shape
        assert made[name].reshape(-1).view(torch.uint8).equal(value.contiguous().reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("wrap", [lambda t: {"module": t, "step": 7}, lambda t: {"state_dict": {"model": t}}])
def test_wrappers_of_training_programs_are_taken_off(tmp_path, wrap):
    torch.save(wrap({"a": torch.ones(2)}), tmp_path / "x.pt")
    unpickle(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert list(load_file(tmp_path / "x.safetensors")) == ["a"]


def test_of_several_dicts_one_is_chosen_by_name(tmp_path):
    torch.save({"model": {"a": torch.ones(2)}, "ema": {"a": torch.zeros(2)}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: holds tensors in model, ema; choose one with --key"):
        unpickle(tmp_path / "x.pt", tmp_path / "x.safetensors")
    unpickle(tmp_path / "x.pt", tmp_path / "x.safetensors", "ema")
    assert not load_file(tmp_path / "x.safetensors")["a"].any()


def test_sharded_pickles_become_shards_with_an_index(tmp_path, capsys):
    shards = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    for name, file in shards.items():
        torch.save({name: torch.full((2,), ord(name))}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    run(Config(tmp_path, tmp_path))
    assert "the index of these shards" in capsys.readouterr().out
    with Checkpoint(tmp_path) as made:
        assert made.names() == ("a", "b")
        assert made.view("b").tolist() == [98, 98]


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path):
    torch.save({"a": Harm(str(tmp_path / "harm"))}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: torch\.load\(weights_only=True\) refuses it"):
        unpickle(tmp_path / "x.pth", tmp_path / "x.safetensors")
    (tmp_path / "y.pth").write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match=r"y\.pth: torch\.load"):
        unpickle(tmp_path / "y.pth", tmp_path / "y.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth", "y.pth"]


def test_outputs_that_are_there_or_of_another_kind_are_refused(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth")
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="exists"):
        unpickle(tmp_path / "x.pth", tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"ends with \.safetensors"):
        unpickle(tmp_path / "x.pth", tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="no such file"):
        unpickle(tmp_path / "z.pth", tmp_path / "z.safetensors")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CheckpointError, match="no pickle here"):
        find_pickles(tmp_path / "nothing")


def test_wans_folder_loads_once_its_pickles_are_rewritten(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "wan"
    path.mkdir()
    save_file(
        drawn(original_shapes("WanTransformer3DModel", WAN, original_wan.transformer_table), 0),
        path / "diffusion_pytorch_model.safetensors",
    )
    config = {"_class_name": "WanModel", "model_type": "t2v", "dim": 24, "num_heads": 2, "num_layers": 2}
    (path / "config.json").write_text(json.dumps(config))
    vae = drawn(original_shapes("AutoencoderKLWan", WAN_VAE, original_wan.vae_table), 1)
    torch.save(vae, path / "Wan2.1_VAE.pth")
    with pytest.raises(CheckpointError, match=r"ports\.unpickle"):
        jaxdiff.load(path)
    command = [sys.executable, "-m", "ports.unpickle", f"--checkpoint={path}", f"--out={path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"Wan2.1_VAE.safetensors: {len(vae)} tensors" in done.stdout
    loaded = jaxdiff.load(path)
    save_file(vae, path / "Wan2.1_VAE.safetensors")
    equal(loaded, jaxdiff.load(path))
