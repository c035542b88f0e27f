"""Compiling for a pod: what it says of a program, checked where it can be counted otherwise, and what it says without libtpu."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import drift, flops
from experiments import compile_pod
from experiments._collectives import collectives
from experiments.compile_pod import Config, mesh_of, run
from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.mesh import data_mesh
from jaxdiff.models.wan import WanTransformerConfig

TINY = WanTransformerConfig(
    num_attention_heads=2, attention_head_dim=8, text_dim=8, freq_dim=16, ffn_dim=24, num_layers=2, rope_max_seq_len=16
)


@pytest.mark.parametrize("model", ["cogvideox-5b", "wan2.1-t2v-1.3b"])
def test_operations_by_hand_are_those_of_the_program(model):
    config = Config(model, "invert", "cpu", steps=1)
    pipeline = compile_pod.outlined(config, data_mesh())
    latents, text = compile_pod._batch(config, data_mesh(), pipeline, ())

    def denoise(pipeline, latents, text):
        return pipeline.denoise(latents, jnp.float32(500), Conditioning(text=text))

    counted = flops.products(denoise, pipeline, latents, text)
    assert compile_pod.flops(config) == pytest.approx(counted, rel=0.01)


def test_operations_of_a_training_step_are_those_of_the_program():
    counted, _ = drift.operations()
    assert compile_pod.flops(Config("cogvideox-5b", "finetune_lora", "cpu")) == pytest.approx(counted, rel=0.05)


def test_the_drift_loss_is_far_below_a_hundredth_of_a_training_step():
    step, loss = drift.operations((1, 5, 8, 8, 16))
    assert 0 < loss < 1e-4 * step


def test_a_program_is_compiled_and_described(tmp_path, monkeypatch):
    monkeypatch.setattr(WanTransformerConfig, "nano", classmethod(lambda cls: TINY))
    run(Config("nano", "finetune_lora", "cpu", rank=2), tmp_path)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["hbm_gb_per_device"] >= found["argument_gb_per_device"] + found["temporary_gb_per_device"] > 0
    assert found["flops_per_device"] > 0 and found["devices"] == 1 and "fits" not in found


HLO = """HloModule m

%body.1 (p: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %gather = bf16[8,4]{1,0} all-gather(%x), dimensions={0}
  ROOT %t = (s32[], bf16[8]) tuple(%i, %y)
}

%cond.1 (p: (s32[], bf16[8])) -> pred[] {
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

%cond.2 (p: (s32[], bf16[8])) -> pred[] {
  %n = s32[] constant(2)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.2 (a: bf16[8]) -> f32[] {
  %w = (s32[], bf16[8]) while(%init), condition=%cond.1, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  %v = (s32[], bf16[8]) while(%w), condition=%cond.2, body=%body.1
  %start = (f32[2], f32[8]) all-gather-start(%z), dimensions={0}
  %sum = f32[10]{0} all-reduce(%q), to_apply=%add
}
"""


def test_collectives_in_loops_count_as_often_as_they_run():
    assert collectives(HLO) == {
        "all-gather": {"count": 6, "bytes": (3 + 2) * 64 + 32},
        "all-reduce": {"count": 1, "bytes": 40},
    }


def test_what_cannot_be_compiled_for_is_said(monkeypatch):
    with pytest.raises(ConfigError, match=r"no TPU 'v99'; there are v5p, v6e, v5e"):
        mesh_of(Config("nano", topology="v99:2x2"))
    with pytest.raises(ConfigError, match="for 7 devices, and there are 1"):
        mesh_of(Config("nano", topology="cpu", mesh="data=7"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "jaxdiff\[tpu\]"'):
        mesh_of(Config("nano", topology="v5p:2x2x1"))
    assert jax.device_count() == 1


def test_a_program_that_needs_more_memory_than_there_is_does_not_fit(tmp_path, monkeypatch, capsys):
    def full(config, mesh):
        raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM: 54.5G of 31.2G\nmore")

    monkeypatch.setattr(compile_pod, "compile_program", full)
    run(Config("nano", topology="cpu"), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["fits"] is False
    assert "54.5G of 31.2G" in capsys.readouterr().out
