"""Inversion, sampling, captures and training on every kind of mesh: the numbers of one device, and their bits along `data`."""

import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxdiff import Tap
from jaxdiff.data.video import write_video
from jaxdiff.flow import invert
from jaxdiff.store import ActivationStore
from jaxdiff.study.models import ASSETS
from tests.flow.pipelines import inputs, tiny_wan

ON_EIGHT = """
import dataclasses, math, sys
import jax, jax.numpy as jnp, numpy as np
from jaxdiff import Edit, Tap
from jaxdiff.errors import ConfigError
from jaxdiff.flow import invert, sample
from jaxdiff.mesh import data_size, parse_mesh, shard_batch
from jaxdiff.reducers import Grid
from tests.flow.pipelines import inputs, spread_weights, tiny_cogvideox, tiny_ltx, tiny_wan

TAPS = (
    Tap("block_out"), Tap("block_out", "frame_mean"), Tap("mlp_out", Grid(2, 3)), Tap("block_out", "moments"),
    Tap("block_in", "project"), Tap("self_attention_map"), Tap("self_attention_out", "full", blocks=(-1,)),
    Tap("mlp_out", lambda x, grid: x[:, 1::3, 0], name="own"),
)
CLIPS = 8

def frames_apart(factors, key, sigma):
    return factors * jnp.where(jnp.eye(factors.shape[-1]), 1.0, 0.25)

def reversed_tokens(h, key, sigma):
    return h + 0.1 * h[:, ::-1]

EDITS = (Edit("self_attention_map", (0,), frames_apart), Edit("mlp_out", (-1,), reversed_tokens))

def run(pipeline, x, text, flag):
    mesh = parse_mesh(flag, jax.devices()[: math.prod(int(part.split("=")[1]) for part in flag.split(","))])
    pipeline, clips = spread_weights(pipeline, mesh), data_size(mesh)
    rows = []
    for i in range(0, CLIPS, clips):
        part = shard_batch((x[i : i + clips], text[i : i + clips]), mesh)
        there = invert(pipeline, *part, steps=2, taps=TAPS)
        captured = {name: np.moveaxis(np.asarray(value, np.float32), 2, 0) for name, value in there.captured.items()}
        rows.append({"latents": np.asarray(there.latents), **captured})
        if GUIDED:
            back = sample(pipeline, there.latents, part[1], steps=2, solver="euler", guidance_scale=2.0,
                          negative=0 * part[1], taps=TAPS[:1], edits=EDITS)
            guided = np.moveaxis(np.asarray(back.captured["block_out.mean"]), 2, 0)
            rows[-1] |= {"back": np.asarray(back.latents), "guided": guided}
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

def compare(what, got, want):
    assert got.keys() == want.keys() and len(want) == 9 + 2 * GUIDED
    for name, value in want.items():
        assert got[name].shape == value.shape, (what, name)
        error = np.abs(got[name] - value).max() / np.abs(value).max()
        # Whole tokens are bfloat16: the last bit of one may turn.
        assert error <= (2 ** -8 if name.endswith("full") else 1e-5), (what, name, error)

GUIDED = sys.argv[1] == "tiny_wan8"
pipeline = {"tiny_wan8": lambda: tiny_wan(2, 8, 12), "tiny_wan3": lambda: tiny_wan(2, 3, 8), "tiny_ltx": tiny_ltx,
            "tiny_cogvideox": tiny_cogvideox}[sys.argv[1]]()
text = inputs(CLIPS, text_dim=8)[1]
x = jax.random.normal(jax.random.key(3), (CLIPS, *map(int, sys.argv[2].split("x")), 4))
one = run(pipeline, x, text, "data=1")
for flag in sys.argv[3:]:
    got = run(pipeline, x, text, flag)
    if "," not in flag and flag.startswith("data"):
        for name, value in one.items():
            np.testing.assert_array_equal(got[name], value, err_msg=name)
    compare(flag, got, one)
    print(flag)
"""

CASES = {
    # Eight heads: Ulysses.
    "tiny_wan8": ("3x8x8", "data=8", "fsdp=4", "seq=2", "data=2,fsdp=2,seq=2"),
    # Three heads: a ring.
    "tiny_wan3": ("4x6x8", "seq=8"),
    "tiny_ltx": ("3x4x4", "data=2,seq=4"),
    "tiny_cogvideox": ("3x8x8", "fsdp=4,seq=2"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_mesh_gives_the_numbers_of_one_device(name, run_with_devices):
    assert run_with_devices(8, ON_EIGHT, name, *CASES[name]).split() == list(CASES[name][1:])


TRAINED = """
import math, re, sys
import jax, numpy as np
from jaxdiff.conditioning import Conditioning
from jaxdiff.lamo import DriftLoss
from jaxdiff.mesh import SEQ, parse_mesh, shard_batch
from jaxdiff.models.lora import LoRA
from jaxdiff.scaling.hlo import collectives
from jaxdiff.store import LatentBatch
from jaxdiff.train.finetune import FineTuning, rows, trainable, training_loss
from jaxdiff.train.loop import Recipe, TrainState, fit, update
from tests.flow.pipelines import spread_weights, tiny_cogvideox, tiny_wan

EMPTY = Conditioning(text=np.zeros((1, 3, 8), np.float32))
RECIPE = Recipe(steps=2, learning_rate=1e-4, warmup=1, ema=0.9)

def run(pipeline, shape, flag, lora):
    mesh = parse_mesh(flag, jax.devices()[: math.prod(int(part.split("=")[1]) for part in flag.split(","))])
    pipeline = spread_weights(pipeline, mesh)
    config = FineTuning(RECIPE, batch=4, lora=lora, losses={"drift": DriftLoss()}, prompt_dropout=0.5)
    params, frozen = trainable(pipeline.transformer, lora, jax.random.key(0))
    rng = np.random.default_rng(0)
    x, text = rng.standard_normal((8, *shape)).astype(np.float32), rng.standard_normal((8, 3, 8)).astype(np.float32)

    def batch(step):
        which = rows(step, config.batch, 8, 0)
        return x[which], text[which], None

    losses, loss = [], training_loss(pipeline, config)
    state = fit(loss, params, RECIPE, (frozen, EMPTY), batches=batch, mesh=mesh,
                report=lambda step, metrics: losses.append(metrics["loss"]), report_every=1)
    if "data=2" in flag and mesh.shape.get(SEQ) == 2 and mesh.size == 4:
        given = np.int32(0), shard_batch(batch(0), mesh)
        hlo = jax.jit(update(loss, RECIPE, mesh=mesh)).lower(state, (frozen, EMPTY), given).compile().as_text()
        found, tokens, width = collectives(hlo), math.prod(shape[:3]) // 4, 96
        # Queries, keys, values and output, forwards and backwards; what is recomputed in between is sent again.
        least = 4 * 2 * (tokens // 2) * width * 4 * 2  # of two clips, two layers, in bytes
        assert 2 * least <= found["all-to-all"]["bytes"] <= 3 * least, (found, least)
        gathered = re.findall(r"= \\w+\\[([\\d,]*)\\]\\S* all-gather\\(", hlo)
        assert gathered == [f"2,{tokens},16"], gathered  # the output of two clips, patch by patch
    return losses, state

name, shape, tuned, flag = sys.argv[1:]
pipeline = {"wan8": lambda: tiny_wan(2, 8, 12), "wan3": lambda: tiny_wan(2, 3, 8), "cogvideox": tiny_cogvideox}[name]()
given = pipeline, (*map(int, shape.split("x")), 4)
lora = LoRA(2, 4.0) if tuned == "lora" else None
(losses, one), (others, got) = run(*given, "data=1", lora), run(*given, flag, lora)
np.testing.assert_allclose(others, losses, rtol=1e-5)
moments = lambda state: [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
for a, b in zip(moments(one), moments(got), strict=True):  # averages of gradients, and of their squares
    np.testing.assert_allclose(b, a, rtol=0, atol=5e-5 * np.abs(a).max())
for a, b in zip(jax.tree.leaves((one.params, one.ema)), jax.tree.leaves((got.params, got.ema)), strict=True):
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5)
print("same")
"""

TRAININGS = (
    "wan8 3x8x8 full data=2,seq=2",
    "wan3 4x6x8 lora seq=2",  # three heads: a ring
    "cogvideox 3x8x8 lora data=1,fsdp=2,seq=2",
)


@pytest.mark.parametrize("case", TRAININGS)
def test_training_over_seq_gives_the_gradients_and_weights_of_one_device(case, run_with_devices):
    assert run_with_devices(4, TRAINED, *case.split()).strip() == "same"


CODED = """
import dataclasses, re
import jax, numpy as np
from jaxdiff.mesh import parse_mesh, replicate, shard_batch, spread_rows
from jaxdiff.models.network import Network
from jaxdiff.models.wan import Wan, WanVAE, WanVAEConfig
from jaxdiff.pipeline import Pipeline, _decode
from jaxdiff.scaling.hlo import collectives

pipeline = Pipeline(None, Wan(), None, Network.init(WanVAE, dataclasses.replace(WanVAEConfig.nano(), base_dim=8), 0))
video = np.random.default_rng(0).integers(0, 256, (2, 5, 64, 32, 3), np.uint8)
latents = pipeline.encode(video)
decoded = pipeline.decode(latents)
mesh = parse_mesh("data=2,seq=2")
on = replicate(pipeline, mesh)
for f, x, want in ((on.encode, video, latents), (on.decode, np.asarray(latents), decoded)):
    own = spread_rows(shard_batch(x, mesh), mesh)
    assert own.sharding.shard_shape(own.shape)[2] * 2 == x.shape[2]
    np.testing.assert_allclose(f(own), want, rtol=0, atol=1e-5 * np.abs(want).max())
hlo = _decode.lower(on.vae, own).compile().as_text()
found = collectives(hlo)
assert found.keys() == {"collective-permute", "all-gather"}, found
# Borders of frames; and rows of the one attention, which is of whole frames of latents.
gathered = {tuple(map(int, m.split(","))) for m in re.findall(r"= \\w+\\[([\\d,]*)\\]\\S* all-gather\\(", hlo)}
assert {np.prod(shape[:-1]) for shape in gathered} == {np.prod(latents.shape[2:4])}, gathered
rows = {int(m.split(",")[-3]) for m in re.findall(r"= \\w+\\[([\\d,]*)\\]\\S* collective-permute\\(", hlo)}
assert rows <= {1, 2}, rows
print("same")
"""


def test_a_vae_over_seq_has_the_numbers_of_one_device_and_exchanges_borders(run_with_devices):
    assert run_with_devices(4, CODED).strip() == "same"


PROCESS = """
import sys
import jax, numpy as np
port, rank, path = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
from jaxdiff import Tap
from jaxdiff.flow import invert
from jaxdiff.mesh import data_size, parse_mesh, shard_batch
from tests.flow.pipelines import inputs, spread_weights, tiny_wan

mesh = parse_mesh("fsdp=2,seq=4")  # weights are split over the processes, tokens within them
split = spread_weights(jax.tree.map(np.asarray, tiny_wan(2, 8, 4)), mesh)
x, text = shard_batch(jax.tree.map(np.asarray, inputs(data_size(mesh), text_dim=8)), mesh)
run = invert(split, x, text, steps=2, taps=(Tap("block_out"), Tap("self_attention_map")))
own = {"latents": run.latents, **run.captured}
for name, value in own.items():
    (part,) = (shard for shard in value.addressable_shards if shard.replica_id == 0)
    np.save(f"{path}/{name}.{rank}.npy", part.data)
"""


def test_two_processes_on_one_mesh_hold_their_own_clips_and_the_numbers_of_one(run_with_devices, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda rank: run_with_devices(4, PROCESS, port, rank, tmp_path), range(2)))
    one = invert(tiny_wan(2, 8, 4), *inputs(2, text_dim=8), steps=2, taps=(Tap("block_out"), Tap("self_attention_map")))
    for name, value in {"latents": one.latents[None, None], **one.captured}.items():
        for rank in range(2):
            want, got = (
                np.asarray(value[:, :, rank]),
                np.load(tmp_path / f"{name}.{rank}.npy").reshape(value[:, :, rank].shape),
            )
            assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), (name, rank)


INVERT = """
import sys
from experiments._main import run_binary
from experiments.invert import Config, run
sys.argv = ["invert", *sys.argv[1:]]
try:
    run_binary(run, Config)
except SystemExit as stop:
    print("exit", stop.code)
"""


def test_a_binary_on_pretended_devices_streams_the_same_store(tmp_path, run_python):
    scenes = np.random.default_rng(0).integers(0, 256, (3, 17, 4, 4, 3), np.uint8)
    for i, video in enumerate(scenes):
        write_video(tmp_path / "videos" / f"{i}.mp4", video.repeat(8, 1).repeat(8, 2))
    flags = (
        f"--checkpoint={ASSETS / 'nano'}", f"--videos={tmp_path / 'videos'}", "--frames=17", "--size=32", "--steps=4",
        "--capture_at=0,2,3", "--taps=block_out.mean,self_attention_map.frame_map", "--fidelity_clips=0",
        "--text_embeddings=zeros", "--stream",
    )  # fmt: skip
    one, many = tmp_path / "one", tmp_path / "many"
    for folder, devices, mesh in ((one, 1, "auto"), (many, 8, "data=2,fsdp=2,seq=2")):
        out = run_python(INVERT, *flags, f"--workdir={folder}", f"--cpu_devices={devices}", f"--mesh={mesh}")
        assert out.endswith("exit 0\n"), out
    stores = [ActivationStore.open(folder / "store") for folder in (one, many)]
    assert stores[0].config_hash == stores[1].config_hash and stores[1].finished() == {0, 1, 2}
    for name in stores[0].specs:
        want, got = (store.read(name) for store in stores)
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), name
