"""`experiments.study`, killed and started again; `python -m tests.chaos` does it more often."""

from tests.chaos import chaos, check, study
from tests.experiments.processes import kill_after_first_clip, run, tiny_inputs


def test_killed_study_ends_in_the_bits_of_an_uninterrupted_one(tmp_path):
    inputs = tiny_inputs(tmp_path / "inputs")
    run(study(inputs, tmp_path / "whole"))
    finished = kill_after_first_clip(study(inputs, tmp_path / "run"), tmp_path / "run/store/trained")
    assert finished and not (tmp_path / "run/DONE").exists()
    run(study(inputs, tmp_path / "run"))
    check(tmp_path / "whole", tmp_path / "run")


def test_killed_at_random_moments_on_changing_numbers_of_devices_a_study_ends_in_the_same_bits(tmp_path):
    found = chaos(tmp_path / "chaos", runs=2, seed=2)
    assert found["headline"]["kills"] >= 2
