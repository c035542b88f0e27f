"""`--prompt` of the binaries, on a checkpoint folder with a text encoder."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from experiments.invert import Config, run
from jaxdiff.data.worlds import WorldConfig
from jaxdiff.data.worlds.layout import write_intphys
from jaxdiff.flow.schedule import UniPCFlow
from jaxdiff.models.network import Network
from jaxdiff.models.wan import Wan, WanTransformer, WanTransformerConfig, WanVAE, WanVAEConfig
from jaxdiff.pipeline import Pipeline
from jaxdiff.store import ActivationStore
from ports.writer import save_pipeline
from tests.text import write_text


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tiny checkpoint with a text encoder, and a folder with one clip."""
    folder = tmp_path_factory.mktemp("inputs")
    small = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "ffn_dim": 16}
    transformer = Network.init(WanTransformer, dataclasses.replace(WanTransformerConfig.nano(), **small), 0)
    vae = Network.init(WanVAE, dataclasses.replace(WanVAEConfig.nano(), base_dim=4), 0)
    save_pipeline(Pipeline(transformer, Wan(), UniPCFlow(shift=1.0), vae), folder / "checkpoint")
    write_text(folder / "checkpoint")
    index = json.loads((folder / "checkpoint/model_index.json").read_text())
    index |= {"text_encoder": ["transformers", "UMT5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"]}
    (folder / "checkpoint/model_index.json").write_text(json.dumps(index))
    write_intphys(WorldConfig(frames=17, size=32), 0, 1, folder / "world", depth=False, masks=False)
    shutil.copytree(folder / "world/dev/O1/01/1/scene", folder / "videos/clip")
    return folder


def invert(inputs, workdir, **flags):
    base = {"checkpoint": inputs / "checkpoint", "videos": inputs / "videos", "frames": 17, "steps": 2}
    base |= {"capture_sigmas": (0.0, 0.5), "fidelity_clips": 0}
    run(Config(**base, **flags), workdir)
    store = ActivationStore.open(workdir / "store")
    return {name: store.read(name) for name in store.specs}, json.loads((workdir / "result.json").read_text())


def test_a_folder_with_a_text_encoder_takes_prompts_and_the_empty_one_by_default(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDIFF_CACHE", str(inputs / "cache"))
    empty, result = invert(inputs, tmp_path / "empty")
    assert result["text"] == "prompt: ''"
    ball, result = invert(inputs, tmp_path / "ball", prompt="a red ball")
    assert result["text"] == "prompt: 'a red ball'"
    assert len(list((inputs / "cache" / "text").iterdir())) == 2
    assert empty.keys() == ball.keys() and empty
    for name, values in empty.items():
        assert np.isfinite(values).all() and (values != ball[name]).any()
