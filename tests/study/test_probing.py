"""A store is probed again by the labels that a study left in it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.store import ActivationStore
from jaxdiff.study.probing import CLIP_LABELS, ProbeConfig, label_table, run_probe
from tests.study import fake


def write_store(folder, clips, metadata):
    rng = np.random.default_rng(0)
    y = np.array([clip.possible for clip in clips])
    specs = {
        name: jax.ShapeDtypeStruct((rows, 3), jnp.float32) for name, rows in (("block_out.mean", 2), ("input.mean", 1))
    }
    rows = {"block_out.mean": (0, 1), "input.mean": (0,)}
    store = ActivationStore.create(
        folder, clips=len(clips), names=[clip.name for clip in clips], slots=2, specs=specs, rows=rows,
        metadata={"sigmas": list(fake.SIGMAS), "labels": list(fake.SIGMAS), **metadata},
    )  # fmt: skip
    arrays = {n: rng.standard_normal((2, s.shape[0], len(clips), 3)).astype(np.float32) for n, s in specs.items()}
    arrays["block_out.mean"][:, 1, :, 0] += 4 * y - 2
    with store:
        store.write(np.arange(len(clips)), arrays)
        store.finish(np.arange(len(clips)), [{}] * len(clips))


def test_the_workdir_of_a_study_gives_all_that_it_stored_and_the_statistics_of_a_study(tmp_path):
    clips = fake.clips()
    stored = {CLIP_LABELS: label_table(clips)}
    assert stored[CLIP_LABELS][0] == ["w0/0/0", True, "w0/00", "O1", "red"]
    for name in ("untrained", "trained", "reversed"):
        write_store(tmp_path / "study/store" / name, clips, stored)
    write_store(tmp_path / "study/noised/trained", clips, {})
    config = ProbeConfig(tmp_path / "study", outer=3, inner=2, published_seeds=2)
    run_probe(config, tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_bytes())
    assert result["headline"].keys() == {"states", "untrained", "shuffled", "input", "noised", "reversed", "chance"}
    assert result["statistics"]["states.cells"] == 4 and result["capacity"]["control_task_values"] == 6
    # The same numbers as from the store alone, and as any study has of these features.
    run_probe(ProbeConfig(tmp_path / "study/store/trained", outer=3, inner=2, published_seeds=2), tmp_path / "alone")
    alone = json.loads((tmp_path / "alone/result.json").read_bytes())
    assert alone["headline"]["states"] == result["headline"]["states"] and alone["capacity"] == result["capacity"]
    assert alone["protocols"]["published"]["states"] == result["protocols"]["published"]["states"]
    assert (alone["clips"], alone["scenes"]) == (48, 12) and (tmp_path / "alone/DONE").exists()
    assert alone["headline"]["states"]["value"] > 0.85 > alone["headline"]["shuffled"]["value"]
    assert alone["protocols"]["published"].keys() == {"states", "shuffled"}


def test_stores_that_do_not_belong_together_are_refused(tmp_path):
    write_store(tmp_path / "study/store/trained", fake.clips(3), {})
    write_store(tmp_path / "study/store/untrained", fake.clips(4), {})
    with pytest.raises(ConfigError, match="trained and untrained are not about the same clips"):
        run_probe(ProbeConfig(tmp_path / "study"), tmp_path / "run")


def test_a_store_without_labels_says_how_to_give_them(tmp_path):
    write_store(tmp_path / "store", fake.clips(3), {})
    with pytest.raises(ConfigError, match=r"--labels=FILE\.csv"):
        run_probe(ProbeConfig(tmp_path / "store"), tmp_path / "run")
