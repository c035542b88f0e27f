"""Studies on checkpoints that continue an image: every clip is its own first frame's continuation."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff.data.clip import Clip
from jaxdiff.data.video import read_video
from jaxdiff.flow import invert
from jaxdiff.study.batches import Encoded
from jaxdiff.study.budget import seconds_per_clip
from jaxdiff.study.inputs import read_noised, surprise
from jaxdiff.study.inversion import measure
from jaxdiff.study.reading import Reading, invert_clips
from tests import wan_variants as variants

READING = Reading(frames=5, steps=2, capture_at=(0, 1), clips_per_device=1)
CLIPS = 3


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    recorded = json.loads((variants.GOLDENS / "wan_variants.json").read_text())
    return jaxdiff.load(variants.write_pipeline(tmp_path_factory.mktemp("wan") / "m", recorded, "i2v_14b"))


@pytest.fixture(scope="module")
def cond():
    return jaxdiff.Conditioning(text=jnp.zeros((1, 1, variants.TEXT_DIM)))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for i in range(CLIPS):
        np.save(folder / f"{i}.npy", rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8))
    return [Clip(f"{i}", folder / f"{i}.npy", f"g{i}", "O1", None) for i in range(CLIPS)]


def test_what_is_stored_of_a_clip_is_its_inversion_from_its_own_first_frame(pipeline, cond, clips, tmp_path):
    encoded = Encoded()
    store, skipped = invert_clips(pipeline, clips, cond, READING, tmp_path / "store", encoded=encoded)
    assert not skipped and store.finished() == set(range(CLIPS))
    stored = np.asarray(store.read("block_out.mean"))
    for i, clip in enumerate(clips):
        video = read_video(clip.path, frames=READING.frames)[None]
        told = pipeline.with_image(cond, video)
        captured = invert(
            pipeline, pipeline.encode(video), told, taps=READING.tap_objects(), **READING.walk()
        ).captured["block_out.mean"]
        np.testing.assert_allclose(stored[i], captured[:, :, 0], rtol=1e-3, atol=1e-4)
    assert np.abs(stored[0] - stored[1]).max() > 1e-2
    noised = read_noised(pipeline, clips, cond, READING, (0.5,), tmp_path / "noised", encoded=encoded)
    assert np.isfinite(surprise(noised).losses).all()


def test_fidelity_is_measured_and_time_is_planned_with_first_frames(pipeline, cond, clips):
    measured, views, _ = measure(pipeline, clips[:1], cond, READING)
    assert np.isfinite(measured.round_trip).all() and len(views) == 1
    state, attention = measured.known  # of a clip made from noise: two steps, at the first of which attention is read
    assert [*state.x] == pytest.approx([*pipeline.schedule.grid(2)[::-1][1:]]) and [*attention.x] == [*state.x[:1]]
    assert np.all((state.y >= -1) & (state.y < 1)) and np.all(np.abs(attention.y) <= 1 + 1e-6)

    @dataclasses.dataclass
    class Study:
        frames: int = 5
        size: int = 16

        def reading(self):
            return READING

    assert seconds_per_clip(pipeline, cond, Study()) > 0
    assert jax.device_count() == 1  # clips_per_device is then the batch of the timed inversion
