"""`experiments.physics_suite` from end to end with every variant, on a network of one block."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.physics_suite import Config, run
from jaxdiff.models.layers import ConfigFromDict
from jaxdiff.models.network import Network
from jaxdiff.models.wan import WanTransformer
from jaxdiff.pipeline import outline
from jaxdiff.study import diffphy, methods
from jaxdiff.study.models import ASSETS
from jaxdiff.study.physics_suite_config import METHODS, VARIANTS


@dataclasses.dataclass(frozen=True)
class PatchesConfig(ConfigFromDict):
    """Nothing to say."""


class Patches(nnx.Module):
    """An autoencoder without a convolution, which takes no time to compile: of every fourth frame the means of four by four pixels."""

    def __init__(self, config, *, rngs):
        self.config, self.gain = config, nnx.Param(jnp.ones(()))

    def encode(self, video):
        batch, size = video.shape[0], video.shape[2]
        means = video[:, ::4].reshape(batch, -1, size // 4, 4, size // 4, 4, 3).mean((3, 5))
        return jnp.concatenate([jnp.pad(means, [(0, 0)] * 4 + [(0, 13)])] * 2, -1)  # mean and deviation, of 16 channels

    def normalise(self, latents):
        return latents

    def denormalise(self, latents):
        return latents

    def decode(self, latents):
        wide = latents[..., :3].repeat(4, 2).repeat(4, 3)
        return self.gain[...] * jnp.concatenate([wide[:, :1], wide[:, 1:].repeat(4, 1)], 1)


@pytest.fixture
def model(monkeypatch):
    """A name under which binaries find one block of random weights behind `Patches`."""
    nano = outline(ASSETS / "nano")
    small = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16, "ffn_dim": 32}
    network = Network.init(WanTransformer, dataclasses.replace(nano.transformer.config, **small), 0)
    pipeline = dataclasses.replace(nano, transformer=network, vae=Network.init(Patches, PatchesConfig()))
    for name in ("load", "outline"):
        monkeypatch.setattr(f"jaxdiff.pipeline.{name}", lambda folder: pipeline)
    return "patches"


def test_all_variants_are_scored_alike_and_a_run_that_was_stopped_ends_in_the_same_bytes(
    model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(diffphy, "VALIDATED_ON", 16)
    config, folder = Config("smoke", model, clips=8, limit=2, scenes=1, critic_clips=16, blocks=1), tmp_path / "run"
    real = methods.Comparison.sampled

    class Stop(Exception):
        pass

    def stops(self, title, *given, **options):
        if title == "sample seed 1, rwr":
            raise Stop
        return real(self, title, *given, **options)

    with pytest.MonkeyPatch.context() as patch:  # when rwr is trained, before it is sampled
        patch.setattr(methods.Comparison, "sampled", stops)
        with pytest.raises(Stop):
            run(config, folder)
    assert {path.stem for path in (folder / "seed1").glob("*.npy")} == {"base", "plain", "plain-frame", "drift", "pidm"}
    kept = (folder / "seed1" / "pidm.npy").stat().st_mtime_ns
    run(config, folder)
    assert (folder / "seed1" / "pidm.npy").stat().st_mtime_ns == kept

    result = json.loads((folder / "result.json").read_text())
    assert set(result["scores"]) == set(METHODS) and set(result["differences"]) == set(METHODS) - {"plain"}
    assert {name: found["from"] for name, found in result["beside"].items()} == {
        "oro-frame": "plain-frame",
        "control": "plain-frame",
    }
    assert set(result["reference"]) == {"true", "autoencoder", "shuffled", "impossible"}
    assert result["reference"]["true"]["velocity"]["value"] < result["reference"]["shuffled"]["velocity"]["value"]
    assert result["without"]["true"]["permanence"] == 0 and set(result["critic"]) == {"auc", "auc_shuffled"}
    costs = result["costs"]
    assert set(costs) == set(VARIANTS) and {(c["steps"], c["clips"]) for c in costs.values()} == {(2, 4)}
    assert costs["oro"]["evaluations"] == 2 * costs["plain"]["evaluations"]
    assert costs["plain"]["operations"] == costs["drift"]["operations"] == costs["rwr"]["operations"]
    assert costs["plain"]["operations"] < min(costs["control"]["operations"], costs["oro"]["operations"])
    assert costs["rwr"]["before"] > 0 == costs["plain"]["before"]
    clips = {name: np.load(folder / "seed1" / f"{name}.npy") for name in METHODS}
    assert {video.shape for video in clips.values()} == {(2, 17, 32, 32, 3)}
    assert np.array_equal(clips["plain-frame"][:, 0], clips["control"][:, 0])  # what was told, through the VAE
    assert not np.array_equal(clips["plain"], clips["plain-frame"])
    page, words = (folder / "report.html").read_text(), (folder / "README.md").read_text()
    assert page.count('class="moving"') == 2 and "Budgets" in page
    assert "| control (InterDyn), told |" in words and "## Clips without a number" in words
    assert (folder / "clips.csv").read_text().count("\n") == 1 + 2 * len(METHODS)

    before, trained = (folder / "result.json").read_bytes(), (folder / "metrics.jsonl").read_text().count('"run"')
    run(config, folder)
    assert "complete" in capsys.readouterr().out
    for path in ("DONE", "result.json", "README.md", "seed1/plain.npy", "seed1/control.npy"):
        (folder / path).unlink()
    shutil.rmtree(folder / "seed1" / "plain")  # killed before its first checkpoint
    run(config, folder)
    assert (folder / "result.json").read_bytes() == before
    assert (folder / "metrics.jsonl").read_text().count('"run"') == trained + 1
