"""`experiments.study`, killed and started again."""

from tests.experiments.processes import assert_same, command, kill_after_first_clip, run, tiny_inputs


def study(inputs, workdir):
    return command(
        "study", workdir, model=inputs / "checkpoint", data_dir=inputs / "world", frames=17, size=32, scenes=2,
        steps=4, capture_sigmas="0,0.5", text_embeddings="zeros", fidelity_clips=0, outer=2, inner=2,
        clips_per_device=2, published_seeds=1, taps="block_out.mean,self_attention_map.frame_map",
        controls="untrained,noised,shuffled_frames,gaussian,projections",
    )  # fmt: skip


def test_killed_study_ends_in_the_bits_of_an_uninterrupted_one(tmp_path):
    inputs = tiny_inputs(tmp_path / "inputs")
    run(study(inputs, tmp_path / "whole"))
    finished = kill_after_first_clip(study(inputs, tmp_path / "run"), tmp_path / "run/store/trained")
    assert finished and not (tmp_path / "run/DONE").exists()
    run(study(inputs, tmp_path / "run"))
    files = ["result.json", "probe.csv", "predictions.npz"]
    for store in ("store/trained", "store/untrained", "store/shuffled_frames", "noised/trained"):
        assert_same(tmp_path / "whole", tmp_path / "run", store, files)
