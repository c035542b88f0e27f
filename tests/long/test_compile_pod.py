"""Compiling for a pod: what it says of a program, checked where it can be counted otherwise, and what it says without libtpu."""

import importlib.util
import json

import jax
import pytest

from benchmarks import drift
from experiments.compile_pod import Config, run
from jaxdiff.errors import ConfigError
from jaxdiff.mesh import data_mesh, parse_mesh
from jaxdiff.models.wan import WanTransformerConfig
from jaxdiff.scaling import roofline, search
from jaxdiff.scaling.models import MODELS, outline
from jaxdiff.scaling.programs import Work, program_of
from jaxdiff.scaling.roofline import CHIPS, operations
from jaxdiff.scaling.slices import devices_of

TINY = WanTransformerConfig(
    num_attention_heads=2, attention_head_dim=8, text_dim=8, freq_dim=16, ffn_dim=24, num_layers=2, rope_max_seq_len=16
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(WanTransformerConfig, "nano", classmethod(lambda cls: TINY))


def by_hand(model):
    """Operations of a forward pass: projections and MLP of every block, and the scores of both attentions."""
    latents, config = MODELS[model].latents(), outline(MODELS[model]).transformer.config
    patch, width, layers = MODELS[model].patch, config.width, config.num_layers
    tokens = latents[0] * (latents[1] // patch) * (latents[2] // patch)
    if model.startswith("cogvideox"):  # text and video attend to each other
        both = tokens + 226
        return layers * (8 * both * width**2 + 16 * both * width**2 + 4 * both**2 * width)
    text, hidden = (256, 4 * width) if model.startswith("ltx") else (512, getattr(config, "ffn_dim", 0))
    own = 8 * tokens * width**2 + 4 * tokens**2 * width
    cross = 4 * (tokens + text) * width**2 + 4 * tokens * text * width
    return layers * (own + cross + 4 * tokens * width * hidden)


@pytest.mark.parametrize("model", ["cogvideox-5b", "ltx-13b", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b"])
def test_operations_that_are_counted_are_those_of_the_formula(model):
    assert operations(Work(model, "invert", steps=1)) == pytest.approx(by_hand(model), rel=0.02)


def test_operations_of_a_training_step_are_those_of_the_benchmark():
    counted, _ = drift.operations()
    # The kernel for TPUs forms the scores and their gradient twice in its backward pass, for the queries and for the keys.
    twice = 42 * 2 * 2 * 17776**2 * 3072
    assert operations(Work("cogvideox-5b", "finetune_lora")) == pytest.approx(counted + twice, rel=0.02)


def test_the_drift_loss_is_far_below_a_hundredth_of_a_training_step():
    step, loss = drift.operations((1, 5, 8, 8, 16))
    assert 0 < loss < 1e-4 * step


def test_a_sample_with_guidance_is_two_evaluations_a_step(tiny):
    assert operations(Work("nano", "sample", steps=3)) == pytest.approx(2 * operations(Work("nano", "invert", steps=3)))


def test_arguments_are_counted_in_parts(run_with_devices):
    code = """
from jaxdiff.scaling.programs import Work, program_of
from jaxdiff.scaling.slices import devices_of, mesh_on
work = Work("wan2.1-t2v-14b", "invert")
for text in ("data=8", "fsdp=8", "fsdp=4,seq=2"):
    print(program_of(work, mesh_on(devices_of("cpu"), text)).argument_bytes() / 1e9)
"""
    whole, split, shared = map(float, run_with_devices(8, code).splitlines()[-3:])
    assert whole == pytest.approx(28.6, rel=0.01)  # 14.3 billion weights in bfloat16
    assert split < whole / 7 and shared == pytest.approx(2 * split, rel=0.05)


def test_a_program_is_compiled_and_described(tmp_path, tiny, capsys):
    run(Config("nano", "finetune_lora", "cpu", rank=2), tmp_path)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["hbm_gb_per_device"] >= found["argument_gb_per_device"] + found["temporary_gb_per_device"] > 0
    assert found["flops"] == found["flops_per_device"] > 0 and found["devices"] == 1 and "fits" not in found
    weights = 2 * sum(leaf.size for leaf in jax.tree.leaves(outline(MODELS["nano"]).transformer.params))
    assert found["traffic_bytes_per_device"] > weights
    assert "temporaries" in capsys.readouterr().out


def test_a_search_keeps_what_is_done_and_ranks_what_fits(tmp_path, tiny, monkeypatch, capsys):
    work = Work("nano", "invert", steps=2)
    assert search.meshes(work, 8)[:4] == ["data=8", "data=4,fsdp=2", "data=2,fsdp=4", "data=1,fsdp=8"]
    assert search.meshes(work, 8)[-1] == "data=1,fsdp=4,seq=2"  # two heads
    assert search.meshes(Work("nano", "finetune"), 8) == search.meshes(work, 8)
    tried = []

    def measured(work, mesh, chip):
        tried.append(dict(mesh.shape))
        if mesh.shape["fsdp"] == 2 and len(tried) < 3:
            raise KeyboardInterrupt
        fits = mesh.shape["fsdp"] > 1
        return {
            "mesh": f"data={mesh.shape['data']},fsdp={mesh.shape['fsdp']}", "fits": fits, "why": "54.5G of 31.2G",
            "clips_per_hour": 1.0 / mesh.shape["fsdp"], "argument_gb_per_device": 1.0, "flops_per_device": 1.0,
        }  # fmt: skip

    monkeypatch.setattr(search, "measure", measured)

    class Four:
        def __init__(self, text):
            self.shape = {"data": 1, "fsdp": 1} | {k: int(v) for k, v in (part.split("=") for part in text.split(","))}

    texts = ["data=4", "data=2,fsdp=2", "data=1,fsdp=4"]
    with pytest.raises(KeyboardInterrupt):
        search.search(work, texts, Four, CHIPS["v5e"], tmp_path)
    found = search.search(work, texts, Four, CHIPS["v5e"], tmp_path)
    assert [entry["mesh"] for entry in found] == ["data=2,fsdp=2", "data=1,fsdp=4", "data=4,fsdp=1"]
    assert [shape["fsdp"] for shape in tried] == [1, 2, 2, 4]  # the first was kept
    assert search.best(tmp_path) == found[0]


def test_what_cannot_be_compiled_for_is_said(monkeypatch):
    with pytest.raises(ConfigError, match=r"no TPU 'v99'; there are v5p, v6e, v5e"):
        devices_of("v99:2x2")
    with pytest.raises(ConfigError, match="for 7 devices, and there are 1"):
        parse_mesh("data=7", devices_of("cpu"))
    with pytest.raises(ConfigError, match="give no --mesh=data=1 with it"):
        Config("nano", mesh="data=1", search=True)
    with pytest.raises(ConfigError, match=r"80 frames of 480x832 do not fit WanPipeline: frames must be 4k \+ 1"):
        Work("wan2.1-t2v-1.3b", "invert", frames=80)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "jaxdiff\[tpu\]"'):
        devices_of("v5p:2x2x1")
    assert jax.device_count() == 1


def test_a_program_that_needs_more_memory_than_there_is_does_not_fit(tmp_path, tiny, monkeypatch, capsys):
    def full(traced):
        raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM: 54.5G of 31.2G\nmore")

    monkeypatch.setattr(roofline, "compile_traced", full)
    run(Config("nano", "invert", "cpu", steps=2), tmp_path)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["fits"] is False and found["flops"] > 0
    assert "54.5G of 31.2G" in capsys.readouterr().out


def test_arguments_that_do_not_fit_are_not_compiled(tiny):
    small = roofline.Chip(memory=10.0, flops=1.0, bandwidth=1.0, interconnect=1.0)
    found = roofline.measure(Work("nano", "invert", steps=2), data_mesh(), small)
    assert not found["fits"] and "the arguments alone are" in found["why"]
    assert program_of(Work("nano", "invert"), data_mesh()).argument_bytes() > 10


def test_a_training_step_runs_the_flash_kernel_on_each_device_for_its_own_clips(run_with_devices):
    code = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding
from jaxdiff import kernels
from jaxdiff.kernels import attention, tpu
from jaxdiff.mesh import clip_spec, parse_mesh

def splash(q, k, v, scale, lengths=None):
    assert q.shape[0] == 1 and (lengths is None or lengths.shape == (1,)), q.shape
    return kernels.attention(q, k, v, scale=scale, lengths=lengths, implementation="dense")

tpu.splash, mesh = splash, parse_mesh("data=2,fsdp=2")
q, k, v = jax.device_put(jax.random.normal(jax.random.key(0), (3, 4, 6, 2, 8)).astype(jnp.bfloat16))
lengths = jnp.array([6, 5, 4, 3])

def loss(q, k, v):
    return kernels.attention(q, k, v).astype(jnp.float32).sum() + kernels.attention(q, k, v, lengths=lengths).sum()

def step(q, k, v):
    with kernels.compiling_for("tpu", 4), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)

put = lambda x: jax.device_put(x, NamedSharding(mesh, clip_spec(mesh)))
ours = jax.jit(step)(*map(put, (q, k, v)))
for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(jax.value_and_grad(loss, (0, 1, 2))(q, k, v)), strict=True):
    np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0.02, atol=0.02)
print("done")
"""
    assert run_with_devices(4, code).split() == ["done"]
