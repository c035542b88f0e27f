"""Studies of data sets on disk: numbers instead of labels, rules that are printed, submissions, and bad input."""

import csv
import dataclasses
import hashlib
import html
import json
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.data.datasets import LEAKING, Dataset, open_dataset
from jaxdiff.data.inflevel import NO_TRAINING, PLAUSIBLE
from jaxdiff.data.intphys2 import TYPES
from jaxdiff.data.phyworld import NEUTRAL_PROMPT
from jaxdiff.data.video import write_video
from jaxdiff.data.worlds import WorldConfig
from jaxdiff.data.worlds.layout import write_intphys
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.flow.schedule import UniPCFlow
from jaxdiff.mesh import data_mesh
from jaxdiff.models.network import Network
from jaxdiff.models.wan import Wan, WanTransformer, WanTransformerConfig, WanVAE, WanVAEConfig
from jaxdiff.pipeline import Pipeline, load
from jaxdiff.probes.linear import LinearProbe
from jaxdiff.probes.statistics import pairwise_accuracy
from jaxdiff.store import ActivationStore
from jaxdiff.study import study as studies
from jaxdiff.study.aggregate import read_run
from jaxdiff.study.batches import Batches, Prompts
from jaxdiff.study.clips import described, store_metadata, told
from jaxdiff.study.config import StudyConfig
from jaxdiff.study.predictions import unpack
from jaxdiff.study.probing import ProbeConfig, run_probe
from jaxdiff.study.reading import invert_clips
from jaxdiff.study.study import run_shard, run_study
from jaxdiff.study.submission import Scored, SubmitConfig, best_threshold, run_submission, write_submission
from ports.writer import save_pipeline
from tests.text import write_text

READ = {"frames": 5, "size": 32, "clips_per_device": 4}  # one shape, so that each program compiles once
NOWHERE = "/nowhere"  # a study that gets as far as its model ends here


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    small = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "ffn_dim": 16}
    transformer = Network.init(WanTransformer, dataclasses.replace(WanTransformerConfig.nano(), **small), 0)
    vae = Network.init(WanVAE, dataclasses.replace(WanVAEConfig.nano(), base_dim=4), 0)
    folder = tmp_path_factory.mktemp("models") / "checkpoint"
    save_pipeline(Pipeline(transformer, Wan(), UniPCFlow(shift=1.0), vae), folder)
    return str(folder)


def config(model, name, folder, **settings):
    small = {
        "config": "nano", "steps": 2, "capture_sigmas": (0.0, 0.5), "error_steps": 0, "fidelity_clips": 0, "outer": 2,
        "inner": 2, "published_seeds": 0, "subset": name != "world", "controls": (),
    }  # fmt: skip
    return StudyConfig(model=model, dataset=name, data_dir=folder, **{**small, **READ, **settings})


def moving(rng, speed=1.0):
    video = np.full((5, 32, 32, 3), 40, np.uint8)
    shade = rng.integers(120, 255, 3)
    for f in range(5):
        at = int(2 + speed * f)
        video[f, 12:20, at : at + 8] = shade
    return video


def written(folder):
    return json.loads((folder / "result.json").read_text()), (folder / "report.html").read_text()


# ------------------------------------------------------------------------------------------- numbers for labels


@pytest.fixture(scope="module")
def parabolas(checkpoint, tmp_path_factory):
    """A study of balls of several speeds, one of whose videos is damaged."""
    folder = tmp_path_factory.mktemp("phyworld")
    rng, count = np.random.default_rng(0), 13
    speed = rng.uniform(0.5, 4.5, count)
    positions = np.zeros((count, 32, 2))
    positions[..., 0] = rng.uniform(1.5, 3, count)[:, None] + speed[:, None] * (0.01 + 0.1 * np.arange(32))
    with h5py.File(folder / "parabola_eval.hdf5", "w") as file:
        file["init_streams/00000"] = np.stack([rng.uniform(0.7, 1.4, count), speed], -1)
        file["position_streams/00000"] = positions
        videos = file.create_dataset("video_streams/00000", (count,), h5py.vlen_dtype(np.dtype("uint8")))
        for row in range(count):
            data = write_video(folder / "clip.mp4", moving(rng, speed[row])).read_bytes()
            videos[row] = np.frombuffer(b"not a video" if row == 4 else data, np.uint8)
    settings = config(checkpoint, "phyworld", folder, controls=("untrained",), skip_bad_clips=True)
    run_study(settings, folder / "run")
    return settings, folder / "run"


def test_a_study_of_numbers_reports_r2_of_every_target_from_every_source(parabolas):
    _, folder = parabolas
    result, report = written(folder)
    for source in ("states", "untrained", "pixels", "latents", "shuffled"):
        for target in ("x0", "v0", "x0_published"):
            entry = result["headline"][f"{source}.{target}"]
            assert entry["low"] <= entry["value"] <= entry["high"]
    assert result["gaps"].keys() == {k for k in result["headline"] if not k.startswith(("states", "shuffled"))}
    assert "R2 of every target" in report and "R2 of v0 by block" in report
    held = unpack(folder / "predictions.npz")
    assert held["prediction.states"].shape == (1, 12, 3)
    with open(folder / "probe.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    cells = [row for row in lines if row["source"] == "states" and row["metric"] == "r2.v0" and row["block"]]
    assert len(cells) == 2  # a block, two noise levels
    whole = [row for row in lines if row["source"] == "pixels" and row["metric"] == "r2.x0" and not row["site"]]
    assert [float(row["value"]) for row in whole] == [pytest.approx(result["headline"]["pixels.x0"]["value"])]


def test_a_study_of_numbers_that_goes_on_ends_in_the_same_bytes(parabolas):
    settings, folder = parabolas
    files = [folder / name for name in ("result.json", "probe.csv", "predictions.npz")]
    before = [path.read_bytes() for path in files]
    for path in (*files, folder / "DONE"):
        path.unlink()
    run_study(settings, folder)
    assert [path.read_bytes() for path in files] == before


def test_a_study_of_numbers_is_probed_again_from_its_store(parabolas, tmp_path):
    _, folder = parabolas
    run_probe(ProbeConfig(folder, outer=2, inner=2), tmp_path)
    (again, report), (before, _) = written(tmp_path), written(folder)
    assert {key.partition(".")[0] for key in again["headline"]} == {"states", "untrained", "shuffled", "input"}
    for key, entry in again["headline"].items():
        assert entry == before["headline"][key]
    assert (again["clips"], again["targets"], again["notes"]) == (12, before["targets"], before["notes"])
    assert "R2 of every target" in report


def test_with_the_leaking_prompt_every_clip_is_told_its_numbers_and_every_report_says_so(
    parabolas, tmp_path, monkeypatch
):
    monkeypatch.setenv("JAXDIFF_CACHE", str(tmp_path / "cache"))
    settings, _ = parabolas
    model = shutil.copytree(settings.model, tmp_path / "model")
    write_text(model)
    index = json.loads((model / "model_index.json").read_text())
    index |= {"text_encoder": ["transformers", "UMT5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"]}
    (model / "model_index.json").write_text(json.dumps(index))
    leaking = dataclasses.replace(settings, model=str(model), leaking_prompt=True, controls=())
    run_study(leaking, tmp_path / "run")
    run_probe(ProbeConfig(tmp_path / "run", outer=2, inner=2), tmp_path / "again")
    for folder in (tmp_path / "run", tmp_path / "again"):
        result, report = written(folder)
        assert LEAKING in result["notes"] and html.escape(LEAKING) in report
        assert "states.x0_published" in result["headline"]
    told, plain = (
        ActivationStore.open(run / "store/trained").read("block_out.mean") for run in (tmp_path / "run", parabolas[1])
    )
    assert np.abs(told - plain).max() > 1e-3
    assert (
        len(list((tmp_path / "cache" / "text").iterdir())) == 14
    )  # a prompt a clip, the damaged one's too, and the empty one


def test_a_study_of_numbers_is_not_compared_as_one_of_labels(parabolas):
    with pytest.raises(ConfigError, match="measured numbers"):
        read_run(parabolas[1], "parabolas")


def test_a_clip_that_cannot_be_read_is_counted_and_listed(parabolas):
    _, folder = parabolas
    result, report = written(folder)
    assert result["clips"] == 12 and result["skipped"] == ["00000/00004"]
    assert "1 clip was not used" in report and "00000/00004" in report


def test_without_the_flag_the_damaged_clip_is_an_error_before_the_model_is_built(parabolas, tmp_path):
    settings, _ = parabolas
    with pytest.raises(MissingDataError, match=r"(?s)1 of 13 clips cannot be read.*00004.*--skip_bad_clips") as caught:
        run_study(dataclasses.replace(settings, model=NOWHERE, skip_bad_clips=False), tmp_path)
    assert caught.value.exit_code == 5


def test_balls_are_described_by_one_neutral_sentence_unless_a_flag_says_otherwise(parabolas):
    settings, _ = parabolas
    data = open_dataset("phyworld", settings.data_dir, subset=True)
    real = dataclasses.replace(settings, config="real")
    assert described(real, data).prompt == NEUTRAL_PROMPT
    assert described(dataclasses.replace(real, prompt="a ball"), data).prompt == "a ball"
    assert described(settings, data).prompt == ""  # a nano model knows no such words
    leaking = open_dataset("phyworld", settings.data_dir, subset=True, leaking_prompt=True)
    assert described(real, leaking).prompt == ""
    with pytest.raises(MissingDataError, match="no text encoder"):
        told(load(settings.model), leaking, None)
    with pytest.raises(ConfigError, match="leave out --prompt"):
        dataclasses.replace(real, prompt="a ball", leaking_prompt=True)


def test_every_clip_is_told_its_own_prompt_and_padding_repeats_the_last():
    class Speaking:
        """Stands in for a pipeline; a prompt becomes its length."""

        family = SimpleNamespace(needs_image=lambda transformer: False)
        transformer = None

        def condition(self, prompt):
            return Conditioning(text=jnp.asarray([[[len(p)]] for p in prompt], jnp.float32))

        def encode(self, video):
            return jnp.asarray(video, jnp.float32)

    class Recipe:
        clips_per_device = 2

        def reader(self, clips, skip):
            return Reader(enumerate(np.zeros((len(clips), 1, 2, 2, 3), np.uint8)))

        def ordered(self, clip, video):
            return video

    class Reader(list):
        skipped = {}  # noqa: RUF012

    clips = [Clip(name, Path(name), name, "", None) for name in "abc"]
    prompts = Prompts((("c", "three"), ("a", "a"), ("b", "four")))
    batches = Batches(Speaking(), clips, Recipe(), data_mesh(jax.devices()[:1]), range(3))
    seen = [np.asarray(cond.text)[:, 0, 0].tolist() for _, _, cond in batches.conditioned(prompts)]
    assert seen == [[1, 4], [5, 5]]


# ----------------------------------------------------------------------------------------- the rule of InfLevel


@pytest.fixture(scope="module")
def inflevel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inflevel") / "inflevel_lab"
    rng = np.random.default_rng(0)
    for category, events in PLAUSIBLE.items():
        (folder / category).mkdir(parents=True)
        for thing in ("duck", "ball"):
            for camera in ("left", "right"):
                for event in events:
                    direction = "__LR" if category == "continuity" else ""
                    name = f"{camera}__{category}__cup__{thing}__{event}{direction}.mp4"
                    write_video(folder / category / name, moving(rng))
    return folder


def test_a_study_of_inflevel_prints_the_authors_rule_and_pairs_within_matched_sets(
    checkpoint, inflevel, tmp_path, monkeypatch
):
    real = studies.make_sources
    monkeypatch.setattr(studies, "make_sources", lambda *args, **kwargs: real(*args, **kwargs)[:1])
    run_study(config(checkpoint, "inflevel_lab", inflevel), tmp_path)
    result, report = written(tmp_path)
    assert NO_TRAINING in result["notes"] and html.escape(NO_TRAINING) in report
    held = unpack(tmp_path / "predictions.npz")
    data = open_dataset("inflevel_lab", inflevel, subset=True)
    found = {kind: pairwise_accuracy(held["margin.states"], held["possible"], sets)
             for kind, sets in (("matched", data.matched), ("group", held["groups"]))}  # fmt: skip
    assert result["pairwise"]["states"] == pytest.approx(found["matched"], abs=1e-6)
    assert found["matched"] != found["group"]  # otherwise this could not tell them apart


def test_inflevel_is_scored_by_surprise_alone_and_its_tables_written(checkpoint, inflevel, tmp_path):
    settings = SubmitConfig(checkpoint, "inflevel_lab", inflevel, config="nano", subset=True, levels=(0.5,), **READ)
    run_submission(settings, tmp_path)
    result, report = written(tmp_path)
    assert result["files"] == ["continuity.tsv", "gravity.tsv", "solidity.tsv"]
    assert result["headline"].keys() == {"continuity", "gravity", "solidity", "all"}
    assert NO_TRAINING in result["notes"] and html.escape(NO_TRAINING) in report
    assert (tmp_path / "gravity.tsv").read_text().startswith("camera_loc\tcover\tobj\ttrial_type\tscore\nleft\tcup")
    before = (tmp_path / "gravity.tsv").read_bytes()
    (tmp_path / "DONE").unlink()
    run_submission(settings, tmp_path)  # goes on from the store
    assert (tmp_path / "gravity.tsv").read_bytes() == before
    with pytest.raises(ConfigError, match="do not allow any training"):
        dataclasses.replace(settings, store=tmp_path / "noised")


# -------------------------------------------------------------------------------------------- several processes


def test_clips_inverted_by_several_processes_give_the_bytes_of_one(checkpoint, intphys2, tmp_path, monkeypatch):
    real = studies.make_sources
    monkeypatch.setattr(studies, "make_sources", lambda *args, **kwargs: real(*args, **kwargs)[:1])
    settings = config(checkpoint, "intphys2", intphys2, capacity=False)
    run_study(settings, tmp_path / "one")
    for shard in ((1, 2), (0, 2)):
        run_shard(settings, tmp_path / "two", shard)
        half = ActivationStore.open(tmp_path / "two/store/trained")
        assert half.finished() == set(range(1, 16, 2)) | (set(range(0, 16, 2)) if shard[0] == 0 else set())
    run_study(settings, tmp_path / "two")
    assert not (tmp_path / "two/store/trained/index.jsonl").read_bytes()  # nothing was left to invert
    for name in ("result.json", "probe.csv", "predictions.npz"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


def test_processes_cannot_share_a_study_that_still_writes_its_scenes(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"make_world.*--dataset=intphys"):
        run_shard(config(checkpoint, "world", None, subset=False), tmp_path, (0, 2))


# -------------------------------------------------------------------------------------------------- submissions


@pytest.fixture(scope="module")
def intphys2(tmp_path_factory):
    root = tmp_path_factory.mktemp("intphys2")
    rng = np.random.default_rng(0)
    for split, scenes in (("Main", 4), ("HeldOut", 1)):
        rows = []
        for scene in range(scenes):
            for kind in TYPES:
                name = hashlib.sha256(f"{split}{scene}{kind}".encode()).hexdigest()
                write_video(root / split / "Videos" / f"{name}.mp4", moving(rng))
                rows.append({"SceneIndex": scene, "name": name, "type": kind, "condition": "solidity"})
        if split == "Main":
            with open(root / split / "metadata.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    return root


def test_heldout_is_answered_below_a_threshold_that_main_chose(checkpoint, intphys2, tmp_path):
    settings = SubmitConfig(checkpoint, "intphys2", intphys2, config="nano", subset=True, levels=(0.5,), **READ)
    run_submission(settings, tmp_path)
    result, _ = written(tmp_path)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 4 and result["threshold_from"] == "Main" and 0.5 <= result["threshold_accuracy"] <= 1
    losses = {name: record["surprise"][0] for name, record in surprises(tmp_path / "noised" / "HeldOut")}
    assert {a["row_id"]: a["model_answer"] for a in answers} == {
        name: int(loss < result["threshold"]) for name, loss in losses.items()
    }


def surprises(folder):
    store = ActivationStore.open(folder)
    return [(store.names[i], record) for i, record in store.records().items()]


def test_a_probe_fitted_on_a_labelled_store_answers_heldout(checkpoint, intphys2, tmp_path):
    study = config(checkpoint, "intphys2", intphys2)
    main = open_dataset("intphys2", intphys2, split="Main", subset=True)
    pipeline = load(checkpoint)
    cond = studies.conditioning(pipeline, study)
    invert_clips(pipeline, main.clips, cond, study.reading(), tmp_path / "main", metadata=store_metadata(main))
    settings = SubmitConfig(
        checkpoint, "intphys2", intphys2, config="nano", subset=True, store=tmp_path / "main", **READ
    )
    run_submission(settings, tmp_path / "run")
    result, _ = written(tmp_path / "run")
    assert result["method"] == "probe" and result["nested_accuracy"]["low"] <= result["nested_accuracy"]["high"]
    answers = [json.loads(line)["model_answer"] for line in (tmp_path / "run/answers.jsonl").read_text().splitlines()]
    slot = study.capture_sigmas.index(pytest.approx(result["chosen"]["sigma"]))
    seen, new = (
        ActivationStore.open(folder).read(result["chosen"]["array"])[:, slot, result["chosen"]["block"]]
        for folder in (tmp_path / "main", tmp_path / "run/store")
    )
    probe = LinearProbe(result["chosen"]["penalty"]).fit(seen, [clip.possible for clip in main.clips])
    assert answers == probe.predict(new).astype(int).tolist()


def test_the_threshold_needs_main_or_a_flag(checkpoint, intphys2, tmp_path):
    shutil.copytree(intphys2 / "HeldOut", tmp_path / "data" / "HeldOut")
    settings = SubmitConfig(NOWHERE, "intphys2", tmp_path / "data", subset=True, **READ)
    with pytest.raises(MissingDataError, match="--threshold"):
        run_submission(settings, tmp_path / "run")


def test_the_best_threshold_lies_between_clips():
    possible = np.array([True, True, False, False, True])
    assert best_threshold(np.array([1.0, 2.0, 4.0, 5.0, 6.0]), possible) == (3.0, 0.8)
    assert best_threshold(np.array([1.0, 1.0]), np.array([True, False]))[1] == 0.5


def test_intphys_answers_are_probabilities_in_a_zip(tmp_path):
    clips = [
        Clip(f"{block}/0001/{run}", tmp_path / "test" / block / "0001" / run / "scene", f"{block}/0001", block, None)
        for block in ("O1", "O2", "O3")
        for run in "1234"
    ]
    data = Dataset("intphys", "test", tuple(clips), tuple(c.group for c in clips))
    files = write_submission(tmp_path, data, Scored(np.linspace(0, 1, 12), None, {}))
    assert [path.name for path in files] == ["answer.txt", "answer.zip"]
    with zipfile.ZipFile(tmp_path / "answer.zip") as archive:
        lines = archive.read("answer.txt").decode().splitlines()
    assert lines[0] == "O1/0001/1 0.0" and lines[-1] == "O3/0001/4 1.0" and len(lines) == 12


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dataset": "grasp"}, "has no submission"),
        ({"dataset": "intphys", "split": "dev"}, "is not submitted"),
        ({"dataset": "intphys", "threshold": 0.5}, "intphys2 alone"),
        ({"dataset": "intphys", "levels": (0.0, 0.5)}, "between 0 and 1"),
    ],
)
def test_what_cannot_be_submitted_is_refused_before_anything_is_read(settings, told):
    with pytest.raises(ConfigError, match=told):
        SubmitConfig(model=NOWHERE, data_dir=NOWHERE, **settings)


# ----------------------------------------------------------------------- bad input, before the model is built


@pytest.fixture
def world(tmp_path):
    return write_intphys(WorldConfig(frames=9, size=32), 0, 2, tmp_path / "data", depth=False, masks=False)


def no_folder(world):
    return world / "none", "no such folder"


def wrong_folder(world):
    return world / "dev" / "O1", r"holds neither dev/ nor O1/"


def unpaired_quadruplet(world):
    shutil.rmtree(world / "dev/O2/01/3")
    return world, r"O2/01/3 is missing"


def three_possible_clips(world):
    status = world / "dev/O2/01"
    for run in "1234":
        path = status / run / "status.json"
        if not json.loads(path.read_text())["header"]["is_possible"]:
            path.write_text('{"header": {"is_possible": true}}')
            break
    return world, r"O2/01 is unpaired: 3 of its 4 runs are possible"


def corrupted_png(world):
    path = world / "dev/O3/01/2/scene/scene_003.png"
    path.write_bytes(path.read_bytes()[:-40])
    return world, r"1 of 24 clips cannot be read:\n.*scene_003\.png cannot be read"


def too_few_scenes(world):
    return world, "6 groups cannot fill 7 folds"


BAD = (no_folder, wrong_folder, unpaired_quadruplet, three_possible_clips, corrupted_png, too_few_scenes)


@pytest.mark.parametrize("damage", BAD)
def test_bad_input_is_one_clear_error_before_the_model_is_built(world, tmp_path, damage):
    folder, told = damage(world)
    outer = 7 if damage is too_few_scenes else 2
    with pytest.raises((MissingDataError, ConfigError), match=told):
        run_study(config(NOWHERE, "intphys", folder, outer=outer), tmp_path / "run")


def test_a_corrupted_mp4_is_one_clear_error_before_the_model_is_built(intphys2, tmp_path):
    root = shutil.copytree(intphys2, tmp_path / "data")
    video = next((root / "Main" / "Videos").iterdir())
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    settings = config(NOWHERE, "intphys2", root)
    with pytest.raises(MissingDataError, match=video.name):
        run_study(settings, tmp_path / "run")


def test_flags_of_data_sets_on_disk_are_refused_for_generated_scenes():
    with pytest.raises(ConfigError, match="--split is for a data set on disk"):
        StudyConfig(model="nano", split="dev")
    with pytest.raises(ConfigError, match="--dataset=intphys needs --data_dir"):
        StudyConfig(model="nano", dataset="intphys")
