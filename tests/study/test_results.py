"""Answers as tables: both protocols, the heatmap's rows, and the file of predictions."""

import numpy as np
import pytest

from jaxdiff.probes import statistics
from jaxdiff.study import predictions, results
from tests.study import fake


@pytest.fixture(scope="module")
def study():
    items = fake.clips()
    answers, labels = fake.answers(items)
    return answers, labels, fake.surprises(np.random.default_rng(0), labels), items


def test_both_protocols_stand_side_by_side_with_shuffled_labels_as_the_witness(study):
    answers, *_ = study
    best, mean, corrected = results.protocols(answers)
    assert [*best.values] == [*mean.values] == [*corrected.values] == ["states", "structureless", "shuffled", "latents"]
    for key, estimate in best.values.items():
        published = answers[key].published
        assert estimate.value == published.best >= mean.values[key].value == published.mean
        assert np.isnan(estimate.low)
        assert corrected.values[key].value == answers[key].result.accuracy
    witness = f"{100 * answers['shuffled'].published.best:.1f} %"
    assert "optimistic" in best.note and "best of 4 cells" in best.note and witness in best.note


def test_the_published_protocol_reads_token_means_only_and_all_of_their_cells(study):
    answers, *_ = study
    assert [*answers["states"].published.accuracy] == ["block_out.mean"]
    assert answers["states"].published.accuracy["block_out.mean"].shape == (2, 4)
    assert answers["latents"].published.accuracy["latents.mean"].shape == (2, 1)
    assert answers["input"].published is None and answers["structureless.input"].published is None


def test_result_json_has_both_protocols_and_no_unlisted_source(study):
    answers, labels, surprise, _ = study
    found = results.result_json(answers, labels, surprise, 0)
    listed = {"states", "structureless", "shuffled", "latents", "input"}
    assert found["headline"].keys() == listed | {"chance"} and found["sources"].keys() == listed
    assert found["gaps"].keys() == listed - {"states"}
    published = found["protocols"]["published"]["states"]
    assert published.keys() == {"best", "mean", "best_error", "mean_error", "seeds"} and published["seeds"] == 2
    # Each model has its own levels; the one nearest to 0.7 is quoted.
    assert found["surprise"].keys() == {"sigma", "trained", "structureless"} and found["surprise"]["sigma"] == 0.5


def test_probe_csv_has_the_lines_of_both_protocols(study):
    answers, labels, surprise, _ = study
    lines = results.csv_rows(answers, labels, surprise, 0)
    published = [line for line in lines if line.get("protocol") == "published" and line["source"] == "states"]
    assert [line["metric"] for line in published] == [
        "best_accuracy", "mean_accuracy", "best_accuracy", "best_accuracy", *["accuracy"] * 4
    ]  # fmt: skip
    for repeat, line in enumerate(published[2:4]):
        _, cell = answers["states"].published.best_cells[repeat]
        assert (line["repeat"], line["block"], line["step"]) == (repeat, cell // 2, cell % 2)
    assert np.mean([line["value"] for line in published[4:]]) == pytest.approx(published[1]["value"])
    assert {line["sigma"] for line in lines if line["source"] == "surprise"} == {0.0, 0.5}
    assert any(line["source"] == "structureless.input" for line in lines)


def test_every_model_has_the_latents_and_its_own_input_below_its_blocks(study):
    answers, *_ = study
    trained, control = results.grids(answers, fake.SIGMAS)
    for grid, own in ((trained, "input"), (control, "structureless.input")):
        assert grid.labels == ("latents", "x_sigma", "0", "1") and grid.inputs == 2
        assert grid.accuracy[0, 0] == answers["latents"].result.grid["latents.mean"][0]
        assert np.isnan(grid.accuracy[0, 1])  # the clean latents have one noise level
        np.testing.assert_array_equal(grid.accuracy[1], answers[own].result.grid["input.mean"])
    np.testing.assert_array_equal(trained.accuracy[2:].ravel(), answers["states"].result.grid["block_out.mean"])
    for row, column, _ in trained.chosen:
        assert row >= trained.inputs and column < 2


def test_predictions_come_back_and_give_the_headline_again(study, tmp_path):
    answers, labels, surprise, items = study
    errors = np.linspace(0, 1, len(items))
    data = predictions.pack(answers, labels, surprise, fake.SIGMAS, items, errors)
    assert data == predictions.pack(answers, labels, surprise, fake.SIGMAS, items, errors)
    (tmp_path / "p.npz").write_bytes(data)
    found = predictions.unpack(tmp_path / "p.npz")
    assert found["sources"].tolist() == ["states", "structureless", "shuffled", "latents", "input"]
    for key in found["sources"].tolist():
        rate = statistics.accuracy(found[f"margin.{key}"], found[f"label.{key}"])
        assert rate == pytest.approx(answers[key].result.accuracy, abs=1e-12)
    cells = found["grid.states"].astype(float).mean(-1)
    np.testing.assert_allclose(cells, results.grids(answers, fake.SIGMAS)[0].accuracy, atol=1e-12)
    np.testing.assert_array_equal(found["surprise.trained"], surprise["trained"].losses)
    np.testing.assert_array_equal(found["clip_error"], errors)
    assert found["rows.states"].tolist() == ["latents", "x_sigma", "0", "1"]
