"""Fine-tuning: every family's own loss, adapters that leave weights alone, files that open, and errors before work."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from benchmarks import depth
from experiments.finetune import Config, run
from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import CheckpointError, ConfigError, MissingDataError
from jaxdiff.flow.schedule import FlowMatchEuler, UniPCFlow
from jaxdiff.flow.variance_preserving import VariancePreserving
from jaxdiff.lamo import DriftLoss
from jaxdiff.models.cogvideox import CogVideoX, CogVideoXTransformer, CogVideoXTransformerConfig
from jaxdiff.models.lora import LoRA, adapted, adapters_of, merged, new_adapters
from jaxdiff.models.network import Network
from jaxdiff.models.wan import Wan, WanTransformer, WanTransformerConfig
from jaxdiff.pipeline import Pipeline
from jaxdiff.store import LatentBatch, LatentHeader, LatentWriter
from jaxdiff.train.finetune import FineTuning, denoising_losses, draw_sigmas, finetune, rows, training_loss
from jaxdiff.train.loop import Recipe
from jaxdiff.train.losses import flow_matching_loss
from ports.lora_writer import find_targets, save_lora
from ports.writer import save_pipeline

CONFIG = WanTransformerConfig(
    num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, text_dim=8, freq_dim=16, ffn_dim=24,
    num_layers=2, rope_max_seq_len=16,
)  # fmt: skip
SHAPE = (4, 4, 4, 4)  # of a clip's latents
LORA = LoRA(2, 4.0)
RECIPE = Recipe(steps=3, learning_rate=1e-2, warmup=1, ema=0.9)
EMPTY = Conditioning(text=np.zeros((1, 3, 8), np.float32))


class InMemory:
    """Six clips."""

    def __init__(self, shape=SHAPE):
        rng = np.random.default_rng(0)
        self.latents = rng.standard_normal((6, *shape)).astype(np.float32)
        self.text = rng.standard_normal((6, 3, 8)).astype(np.float32)

    def __len__(self):
        return 6

    def read(self, indices):
        return LatentBatch(self.latents[indices], self.text[indices], None)


@pytest.fixture(scope="module")
def pipeline():
    network = Network.init(WanTransformer, CONFIG, 0)
    return Pipeline(network, Wan(), UniPCFlow(shift=3.0))


def tuning(**changes):
    return FineTuning(**{"recipe": RECIPE, "batch": 2, "lora": LORA, "prompt_dropout": 0.5, **changes})


@pytest.fixture(scope="module")
def tuned(pipeline, tmp_path_factory):
    """Three steps of a LoRA with the drift loss, what was reported, and the folder of the checkpoints."""
    seen, folder = [], tmp_path_factory.mktemp("tuned")
    options = {"empty": EMPTY, "report": lambda step, metrics: seen.append((step, metrics)), "report_every": 1}
    found = finetune(pipeline, InMemory(), tuning(losses={"drift": DriftLoss()}), folder, **options)
    return found, seen, folder


# ------------------------------------------------------------------------------------------------ the loss


class Noise(UniPCFlow):
    """A network that predicts the noise, in flow coordinates."""

    def velocity(self, output, x, sigma):
        return (output - x) / (1 - sigma)[:, None, None, None, None]

    def target(self, clean, noise, sigma):
        return noise


SCHEDULES = {"flow": UniPCFlow(3.0), "v": VariancePreserving(1.0), "noise": Noise(3.0)}


def batch(count=3, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal((count, *SHAPE)), jnp.float32) for _ in range(2)]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_network_that_is_right_has_the_straight_velocity_and_no_loss(kind):
    clean, noise = batch()
    sigma, schedule = jnp.array([0.1, 0.5, 0.9]), SCHEDULES[kind]
    x = (1 - sigma[:, None, None, None, None]) * clean + sigma[:, None, None, None, None] * noise
    right = schedule.target(clean, noise, sigma)
    np.testing.assert_allclose(schedule.velocity(right, x, sigma), noise - clean, atol=2e-5)
    pipeline = Pipeline(None, Says(right), schedule)
    extra = {"drift": DriftLoss(), "all": lambda predicted, clean, sigma: jnp.abs(predicted - clean).max()}
    losses = denoising_losses(pipeline, clean, noise, sigma, None, extra=extra)
    assert set(losses) == {"denoise", "drift", "all"}
    for value in losses.values():
        np.testing.assert_allclose(value, 0.0, atol=2e-5)
    pipeline = Pipeline(None, Says(right + 0.5), schedule)
    np.testing.assert_allclose(denoising_losses(pipeline, clean, noise, sigma, None)["denoise"], 0.25, rtol=1e-4)


class Says:
    """A family whose network says what it is told to; keeps the timesteps that it is told."""

    def __init__(self, output):
        self.output, self.told = output, []

    def validate(self, *_):
        pass

    def denoise(self, network, latents, timestep, cond, remat):
        self.told.append((latents, timestep))
        return self.output, {}


def test_the_loss_of_cogvideox_is_the_published_one_at_its_own_timesteps():
    schedule = VariancePreserving(3.0)
    sigma = draw_sigmas(schedule, jax.random.key(0), 3, 64)
    clean, noise = batch()
    family = Says(batch(seed=1)[0])
    ours = denoising_losses(Pipeline(None, family, schedule), clean, noise, sigma, None)["denoise"]
    state, timestep = family.told[0]
    assert np.array_equal(timestep, np.round(timestep)) and timestep.max() <= 999
    alpha = (1 - schedule.sigmas) / np.sqrt(schedule.sigmas**2 + (1 - schedule.sigmas) ** 2)
    alpha = alpha[np.asarray(timestep, int)][:, None, None, None, None]
    noisy = alpha * clean + np.sqrt(1 - alpha**2) * noise
    np.testing.assert_allclose(state, noisy, atol=1e-5)
    predicted = alpha * noisy - np.sqrt(1 - alpha**2) * family.output  # get_velocity(output, noisy) of its scheduler
    published = np.mean((predicted - clean) ** 2 / (1 - alpha**2))
    np.testing.assert_allclose(ours, published, rtol=1e-4)


def test_noise_levels_are_uniform_timesteps_or_shifted_logit_normals():
    key = jax.random.key(1)
    uniform = np.asarray(draw_sigmas(VariancePreserving(3.0), key, 4000, 64))
    levels = np.searchsorted(VariancePreserving(3.0).sigmas.astype(np.float32), uniform)
    assert abs(levels.mean() - 499.5) < 20 and levels.min() < 10 and levels.max() > 989
    flow = np.asarray(draw_sigmas(UniPCFlow(3.0), key, 4000, 64, logit_mean=0.3, logit_std=0.5))
    np.testing.assert_allclose(np.median(flow), 3 * 0.5744 / (1 + 2 * 0.5744), atol=0.01)
    dynamic = FlowMatchEuler(use_dynamic_shifting=True, base_shift=0.5, base_image_seq_len=64)
    medians = [np.median(draw_sigmas(schedule, key, 4000, 64)) for schedule in (dynamic, UniPCFlow(np.exp(0.5)))]
    np.testing.assert_allclose(*medians, rtol=1e-5)


class Field:
    """A network in the place of a transformer; keeps the texts that it is told."""

    def __init__(self):
        self.told = []

    def __call__(self, x, timestep, text, remat="none"):
        self.told.append(text)
        return jnp.tanh(x) + timestep[:, None, None, None, None] / 1000 + text.mean((1, 2))[
            :, None, None, None, None
        ], {}

    def validate(self, *_):
        pass

    def denoise(self, network, latents, timestep, cond, remat):
        return self(latents, timestep, cond.text)


def loss_of(field, given, empty=None, shift=1.0, **changes):
    pipeline = Pipeline(Network(None, None, {}), field, UniPCFlow(shift))
    return training_loss(pipeline, tuning(lora=None, **changes))({}, ((None, empty), given), jax.random.key(3))


def test_the_loss_of_a_flow_model_is_the_one_that_nano_is_trained_with():
    data, field = InMemory(), Field()
    ours, parts = loss_of(field, (data.latents, data.text, None), prompt_dropout=0.0, logit_mean=0.5)
    theirs = flow_matching_loss(field, data.latents, data.text, jax.random.key(3), prompt_dropout=0.0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert parts["denoise"] == ours


def test_dropped_prompts_and_their_masks_are_the_empty_one():
    data, field = InMemory(), Field()
    empty = Conditioning(text=np.ones((1, 3, 8), np.float32))
    for share in (1.0, 0.0, 0.5):
        loss_of(field, (data.latents, data.text, None), empty, prompt_dropout=share)
    always, never, half = field.told
    np.testing.assert_array_equal(always, np.ones_like(data.text))
    np.testing.assert_array_equal(never, data.text)
    dropped = np.all(np.asarray(half) == 1.0, (1, 2))
    assert 0 < dropped.sum() < 6
    np.testing.assert_array_equal(half[~dropped], data.text[~dropped])


# ------------------------------------------------------------------------------------------------ adapters


def test_a_new_adapter_changes_nothing_and_a_trained_one_is_the_sum_of_its_factors(pipeline):
    network, data = pipeline.transformer, InMemory()
    leaves = find_targets(network, LORA.targets)
    assert len(leaves) == 8  # query, key, value and out of self- and of cross-attention
    made = new_adapters(network.params, leaves, LORA, jax.random.key(0))
    inputs = data.latents[:1], jnp.array([500.0]), data.text[:1]
    run = jax.jit(lambda network: network(*inputs)[0])
    plain = run(network)
    np.testing.assert_array_equal(run(adapted(network, made, LORA.scale)), plain)
    drawn = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), made)
    changed = adapted(network, drawn, LORA.scale)
    np.testing.assert_allclose(run(changed), run(merged(changed)), atol=2e-5)
    assert np.abs(run(changed) - plain).max() > 1e-2


def test_training_moves_adapters_alone_and_logs_every_loss(pipeline, tuned):
    found, seen, _ = tuned
    assert [step for step, _ in seen] == [1, 2, 3]
    assert all({"denoise", "drift", "loss", "seconds_per_step"} <= set(metrics) for _, metrics in seen)
    for _, metrics in seen:
        np.testing.assert_allclose(metrics["loss"], metrics["denoise"] + metrics["drift"], rtol=1e-5)
    for factors in adapters_of(found.transformer).values():
        assert np.abs(factors["up"]).max() > 0  # zero at the start
    kernel = found.transformer.params["blocks"]["self_attention"]["query"]["kernel"]
    assert kernel.kernel is pipeline.transformer.params["blocks"]["self_attention"]["query"]["kernel"]
    assert found.transformer.params["out"]["kernel"] is pipeline.transformer.params["out"]["kernel"]


def test_the_saved_lora_loads_as_the_merged_model(tmp_path, pipeline, tuned):
    folder, network = save_pipeline(pipeline, tmp_path / "model"), tuned[0].transformer
    file = save_lora(network, tmp_path / "lora", LORA)
    ours, theirs = merged(network).params, jaxdiff.load(folder, lora=file).transformer.params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), ours, theirs)
    other = Network.init(WanTransformer, dataclasses.replace(CONFIG, num_layers=1), 0)
    other = save_pipeline(dataclasses.replace(pipeline, transformer=other), tmp_path / "other")
    with pytest.raises(CheckpointError, match="the LoRA does not fit the model"):
        jaxdiff.load(other, lora=file)


def test_a_kind_of_layer_or_a_whole_name_is_a_target_and_others_are_refused(pipeline):
    network = pipeline.transformer
    assert find_targets(network, ["attn1.to_q"]) == ("blocks/self_attention/query/kernel",)
    assert find_targets(network, ["proj_out", "ffn.net.2"]) == ("out/kernel", "blocks/mlp/out/kernel")
    with pytest.raises(ConfigError, match=r"'to_w' is no linear layer of this transformer; there are .*to_q"):
        find_targets(network, ["to_q", "to_w"])
    with pytest.raises(ConfigError, match="a layer of one block"):
        find_targets(network, ["blocks.0.attn1.to_q"])
    cog = Network.abstract(CogVideoXTransformer, CogVideoXTransformerConfig())
    assert len(find_targets(cog, LORA.targets)) == 4


# ------------------------------------------------------------------------------------------------ runs


def test_a_finished_run_is_not_trained_again_and_other_parameters_are_refused(pipeline, tuned):
    found, _, folder = tuned
    again = finetune(pipeline, InMemory(), tuning(losses={"drift": DriftLoss()}), folder, empty=EMPTY)
    jax.tree.map(np.testing.assert_array_equal, again.transformer.params, found.transformer.params)
    with pytest.raises(CheckpointError, match="is of other parameters than are trained here"):
        finetune(pipeline, InMemory(), tuning(lora=LoRA(3, 4.0)), folder, empty=EMPTY)


def test_every_clip_is_seen_once_an_epoch_in_an_order_of_its_own():
    seen = np.concatenate([rows(step, 4, 6, 0) for step in range(3)])
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6].tolist() != seen[6:].tolist()
    assert rows(1, 4, 6, 0).tolist() == seen[4:8].tolist() != rows(1, 4, 6, 1).tolist()


def test_what_cannot_be_trained_is_refused_at_once(pipeline):
    options = {"empty": EMPTY}
    with pytest.raises(ConfigError, match="at least 3 are needed"):
        finetune(pipeline, InMemory((2, 4, 4, 4)), tuning(losses={"drift": DriftLoss()}), **options)
    with pytest.raises(ConfigError, match=r"\[B, T', H', W', 4\]"):
        finetune(pipeline, InMemory((4, 4, 4, 5)), tuning(), **options)
    with pytest.raises(ConfigError, match="takes the pixels of each clip's first frame"):
        finetune(dataclasses.replace(pipeline, family=CogVideoX(image_to_video=True)), InMemory(), tuning(), **options)
    with pytest.raises(ConfigError, match="two networks"):
        finetune(dataclasses.replace(pipeline, transformer_2=pipeline.transformer), InMemory(), tuning(), **options)
    with pytest.raises(ConfigError, match="'nothing' is no linear layer"):
        finetune(pipeline, InMemory(), tuning(lora=LoRA(2, 2.0, ("nothing",))), **options)


# ------------------------------------------------------------------------------------------------ the binary


def write_store(path, family="wan", frames=4):
    data = InMemory((frames, 4, 4, 4))
    header = LatentHeader(family, "0" * 64, (frames, 4, 4, 4), (3, 8), False, 13, (32, 32), None, "float32", 6)
    with LatentWriter.create(path, header, [f"{i}" for i in range(6)], ["a"] * 6) as writer:
        writer.write(np.arange(6), data.latents, data.text)
    return path


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_the_command_writes_what_load_opens(tmp_path, pipeline, tune):
    folder, store = save_pipeline(pipeline, tmp_path / "model"), write_store(tmp_path / "latents")
    config = Config(
        str(folder), str(store), tune=tune, loss="drift", steps=3, batch=2, rank=2, alpha=4.0, learning_rate=1e-2, warmup=1,
        ema=0.9, logit_mean=0.0, checkpoint_every=50,
    )  # fmt: skip
    for _ in range(2):  # the second call finds it done
        run(config, tmp_path / "run")
    line = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert line["step"] == 3 and {"denoise", "drift"} <= set(line)
    if tune == "lora":
        opened = jaxdiff.load(folder, lora=tmp_path / "run" / "lora")
    else:
        opened = jaxdiff.load(tmp_path / "run" / "pipeline")
    before, after = (p.transformer.params["blocks"]["self_attention"]["out"]["kernel"] for p in (pipeline, opened))
    assert 0 < np.abs(np.asarray(before - after)).max() < 0.1


def test_the_command_refuses_what_does_not_fit_before_it_reads_weights(tmp_path, pipeline, monkeypatch):
    folder = str(save_pipeline(pipeline, tmp_path / "model"))
    store = str(write_store(tmp_path / "latents"))
    monkeypatch.setattr("jaxdiff.pipeline.load", None)
    cases = [
        ({"latents": str(write_store(tmp_path / "other", "ltx"))}, ConfigError, "latents of the family ltx"),
        (
            {"latents": str(write_store(tmp_path / "short", frames=2)), "loss": "drift"},
            ConfigError,
            "at least 3 are needed",
        ),
        ({"latents": store, "tune": "lora", "targets": ("to_x",)}, ConfigError, "'to_x' is no linear layer"),
        ({"latents": store, "config": "wan2.1-t2v-1.3b"}, MissingDataError, "no text encoder"),
        ({"latents": store, "mesh": "data=3"}, ConfigError, "for 3 devices"),
        ({"latents": str(tmp_path / "gone")}, MissingDataError, "gone"),
    ]
    for flags, error, message in cases:
        with pytest.raises(error, match=message):
            run(
                Config(**{"model": folder, "prompt_dropout": 0.0 if "config" not in flags else None, **flags}),
                tmp_path / "w",
            )
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("name", ["CogVideoXPipeline", "LTXPipeline"])
def test_every_text_to_video_family_can_be_trained(name):
    pipeline, latents, cond = depth.abstract(name, 2)
    params, given = pipeline.transformer.params, (latents, cond.text, cond.text_mask)
    loss = training_loss(pipeline, tuning(lora=None, losses={"drift": DriftLoss()}))
    value, parts = jax.eval_shape(loss, params, ((None, None), given), jax.random.key(0))
    assert value.shape == () and set(parts) == {"denoise", "drift"}
