"""`experiments.pisa` on the nano model from end to end, tuning on a reward, and RAFT as the network of one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from experiments.pisa import Config, run
from jaxdiff.flow import sample
from jaxdiff.models.lora import adapters_of
from jaxdiff.models.network import Network
from jaxdiff.models.vision.raft import RAFT, RAFTConfig
from jaxdiff.physics.rewards import FlowReward, RAFTFlow, Target
from jaxdiff.train.reward_tuning import tune_on_reward
from tests.raft import SIZES, pictures
from tests.train.test_reward_tuning import SHAPE, TUNING, Grey, Tasks, tiny


def test_a_run_simulates_tunes_optimises_measures_and_goes_on_where_it_stopped(tmp_path, capsys):
    config = Config(
        "nano", clips=16, held_out=2, steps=4, batch=4, rewards=("flow",), reward_clips=4, reward_steps=2, reward_batch=2,
        sampling_steps=2, backward="last", backward_steps=1,
    )  # fmt: skip
    run(config, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    for cell in ("seen", "far"):
        scores = result["scores"][cell]
        assert set(scores) == {"true clips", "encoded and decoded", "first frame held", "base", "fine-tuned", "flow"}
        l2 = {name: found["l2"]["value"] for name, found in scores.items()}
        assert l2["true clips"] < 0.01 and l2["true clips"] < l2["first frame held"] < 0.5
        assert scores["true clips"]["corrected"]["failures"] == 0
    assert [check["name"] for check in result["checks"]][1].startswith("L2 after the flow reward")
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="moving"') == 2 and "heights that no training clip has" in page
    tuned = jaxdiff.load(tmp_path / "pipelines" / "flow")
    start = jaxdiff.load(tmp_path / "pipelines" / "fine-tuned")
    assert tuned.family.expand_timesteps
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), tuned.transformer.params, start.transformer.params)
    assert max(jax.tree.leaves(moved)) > 0

    def trained():
        return (tmp_path / "metrics.jsonl").read_text().count('"train"')

    before, bytes_ = trained(), (tmp_path / "result.json").read_bytes()
    capsys.readouterr()
    run(config, tmp_path)
    assert "complete" in capsys.readouterr().out
    for name in ("DONE", "result.json", "clips/flow-far.npy"):
        (tmp_path / name).unlink()
    run(config, tmp_path)
    assert trained() == before  # from the checkpoints: nothing is trained twice
    assert (tmp_path / "result.json").read_bytes() == bytes_


def test_raft_is_a_flow_network_of_the_rewards():
    network = Network.init(RAFT, RAFTConfig(**SIZES["small"]), 0)
    reward = FlowReward(RAFTFlow(network, updates=2, scale=2))
    first, second = pictures(1, 16, 24)
    target = Target(jnp.stack([first, second], 1), jnp.zeros((1, 2, 16, 24, 1)))
    value, slope = jax.jit(jax.value_and_grad(lambda video: reward(video, target).sum()))(target.video[:, ::-1])
    assert float(value) < 0 and np.isfinite(slope).all() and np.abs(slope).max() > 0
    same = jax.jit(lambda video: reward(video, target))(target.video)
    assert abs(float(same[0])) < 1e-5 * abs(float(value))  # the constant target is folded, in other roundings


def test_the_reward_of_new_samples_rises_and_only_what_is_trained_changes(tmp_path):
    pipeline, tasks, reward, seen = tiny(), Tasks(), Grey(jnp.float32(2.0)), []
    tuned = tune_on_reward(
        pipeline,
        tasks,
        reward,
        SHAPE,
        TUNING,
        tmp_path,
        report=lambda step, m: seen.append(m["reward"]),
        report_every=1,
    )
    assert len(adapters_of(tuned.transformer)) and np.mean(seen[-5:]) > np.mean(seen[:5])
    jax.tree.map(np.testing.assert_array_equal, tuned.vae.params, pipeline.vae.params)
    task, noise = tasks.read([0, 1, 2, 3]), jax.random.normal(jax.random.key(9), (4, *SHAPE))

    def rewarded(pipeline):
        made = sample(pipeline, noise, task.cond, steps=2, solver="euler").latents
        np.testing.assert_allclose(made[:, :1], tasks.first, atol=1e-5)  # the first frame is given, not made
        return float(reward(pipeline.decode(made), task.target).mean())

    assert rewarded(tuned) > 0.8 * rewarded(pipeline)  # both are negative
    again = tune_on_reward(
        pipeline, tasks, reward, SHAPE, TUNING, tmp_path, report=lambda *_: pytest.fail("trained anew")
    )
    jax.tree.map(np.testing.assert_array_equal, adapters_of(again.transformer), adapters_of(tuned.transformer))
