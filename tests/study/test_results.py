"""Answers as tables: both protocols, the heatmap's rows, and the file of predictions."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.probes import statistics
from jaxdiff.study import curves, predictions, results
from jaxdiff.study.analysis import Protocol
from tests.study import fake


@pytest.fixture(scope="module")
def study():
    items = fake.clips()
    answers, labels = fake.answers(items)
    return answers, labels, fake.surprises(np.random.default_rng(0), labels), items


def test_both_protocols_stand_side_by_side_with_shuffled_labels_as_the_witness(study):
    answers, *_ = study
    best_block, mean_block, best, mean, corrected = results.protocols(answers)
    listed = ["states", "structureless", "shuffled", "latents"]
    assert [*best.values] == [*mean.values] == [*corrected.values] == [*best_block.values] == listed
    for key in listed:
        # The blocks at sigma 0.5, half of the steps: some of all cells.
        assert best_block.values[key].value <= best.values[key].value
        accuracy = answers[key].published.accuracy
        middle = {name: table[:, 1::2] if table.shape[1] > 1 else table for name, table in accuracy.items()}
        (blocks,) = middle.values()
        assert best_block.values[key].value == pytest.approx(blocks.max(1).mean())
        assert mean_block.values[key].value == pytest.approx(blocks.mean())
    assert "sigma 0.5" in best_block.note and "optimistic" in best_block.note
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
    numbers = {"best", "mean", "best_error", "mean_error", "best_pairwise", "best_block", "mean_of_blocks"}
    assert published.keys() == numbers | {"seeds", "middle_sigma"} and published["seeds"] == 2
    # Each model has its own levels; the one nearest to 0.7 is quoted.
    assert found["surprise"].keys() == {"sigma", "trained", "structureless"} and found["surprise"]["sigma"] == 0.5


def test_probe_csv_has_the_lines_of_both_protocols(study):
    answers, labels, surprise, _ = study
    lines = results.csv_rows(answers, labels, surprise, 0)
    published = [line for line in lines if line.get("protocol") == "published" and line["source"] == "states"]
    assert [line["metric"] for line in published] == [
        "best_accuracy", "mean_accuracy", "best_block_accuracy", "mean_of_blocks_accuracy",
        "best_accuracy", "best_accuracy", *["accuracy"] * 4
    ]  # fmt: skip
    for repeat, line in enumerate(published[4:6]):
        _, cell = answers["states"].published.best_cells[repeat]
        assert (line["repeat"], line["block"], line["step"]) == (repeat, cell // 2, cell % 2)
    assert np.mean([line["value"] for line in published[6:]]) == pytest.approx(published[1]["value"])
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


def test_the_best_block_of_a_level_is_chosen_without_the_clips_that_it_is_scored_on(study):
    answers, *_ = study
    answer, name = answers["states"], "block_out.mean"
    sigmas, accuracy, interval = curves.best_block(answer, name)
    result = answer.result
    assert sigmas.tolist() == list(fake.SIGMAS)
    for slot in range(2):
        hits = []
        for fold in range(3):
            inner = [result.inner_accuracy[name][0, fold, 2 * block + slot].max() for block in range(2)]
            cell = 2 * int(np.argmax(inner)) + slot
            held = result.folds[0] == fold
            hits.append(statistics.hits(result.cells[name][0, cell], result.labels)[held])
        assert accuracy[slot] == pytest.approx(np.concatenate(hits).mean())
    assert np.all(interval[:, 0] <= accuracy) and np.all(accuracy <= interval[:, 1])
    (panel,) = curves.best_blocks(answers)
    assert [curve.name for curve in panel.curves] == ["trained", "structure-less"]


def test_confusion_is_accuracy_taken_apart(study):
    answers, labels, *_ = study
    (table,) = curves.confusion(answers, labels, {"O1": "permanence"}, 0)
    assert [row[:2] for row in table.rows] == [("inverted states", "permanence"), ("inverted states", "O2")]
    for _, _, possible, impossible, together in table.rows:
        assert together.value == pytest.approx((possible.value + impossible.value) / 2)  # as many of each
        assert together.low <= together.value <= together.high
    groups = results.by_category(answers, labels, 0)
    assert [group.values["states"].value for group in groups] == [row[4].value for row in table.rows]


def test_every_listed_source_has_its_statistics_in_result_json_csv_and_report(study):
    answers, labels, surprise, _ = study
    found = results.result_json(answers, labels, surprise, 0)
    states = answers["states"]
    flat, y = found["statistics"], labels.possible
    margins = states.result.predictions
    assert flat["states.auc"]["value"] == pytest.approx(statistics.auc(margins, y))
    assert flat["states.absolute_error"]["value"] == pytest.approx(1 - statistics.auc(margins, y))
    assert flat["states.relative_error"]["value"] == statistics.relative_error(margins, y, labels.groups)
    for key in ("states", "structureless", "shuffled", "latents", "input"):
        for metric in ("auc", "relative_error", "absolute_error"):
            entry = flat[f"{key}.{metric}"]
            assert entry["low"] <= entry["value"] <= entry["high"]
    # Block 1 separates the labels, at both levels; nothing else does.
    assert flat["states.permutation_p"] < 0.01 < 0.05 < flat["shuffled.permutation_p"]
    assert (flat["states.cells"], flat["states.cells_above_threshold"]) == (4, 2)
    lines = results.csv_rows(answers, labels, surprise, 0)
    mine = [line for line in lines if line["source"] == "states" and line["protocol"] == "corrected"]
    by_cell = {(line["block"], line["step"]): line["value"] for line in mine if line["metric"] == "max_statistic_p"}
    assert {place for place, p in by_cell.items() if p <= 0.05} == {(1, 0), (1, 1)}
    assert all(line["given"] in results.GIVEN for line in lines if line.get("low") is not None)
    assert set(found["intervals"].values()) == {0.95, *results.GIVEN.values()}
    study_report = results.report_study(answers, labels, surprise, fake.SIGMAS, 0)
    table = next(part for part in study_report.tables if part.title == "Statistics of every source")
    assert [row[0] for row in table.rows] == [row.name for row in study_report.rows]
    assert "2 of 4" in table.rows[0] and "inner folds chose" in table.caption


def test_what_the_states_probes_could_do_with_any_labels_stands_beside_their_accuracy(study):
    answers, labels, surprise, _ = study
    assert [key for key, answer in answers.items() if answer.capacity is not None] == ["states"]
    found = results.result_json(answers, labels, surprise, 0)["capacity"]
    assert found["code_bits_per_clip"] < 0.8
    assert 0.5 < found["memorised_accuracy"] < found["training_accuracy"]
    assert found["selectivity"]["low"] <= found["selectivity"]["value"] <= found["selectivity"]["high"]
    assert found["control_task_values"] == 6
    task, control = found["selectivity"]["value"], found["control_task"]["value"]
    assert task == pytest.approx(answers["states"].result.accuracy - control)


def test_one_protocol_alone_is_told_as_what_it_is():
    items = fake.clips()
    answers, labels = fake.answers(items, which="published")
    found = results.result_json(answers, labels, {}, 0)
    assert found["headline"].keys() == {"chance"} and not found["statistics"]
    assert found["protocols"]["published"].keys() == {"states", "structureless", "shuffled", "latents"}
    report = results.report_study(answers, labels, {}, fake.SIGMAS, 0)
    assert "biased upwards" in report.summary and not report.rows
    np.testing.assert_allclose(
        report.grids[0].accuracy[2:].ravel(), answers["states"].published.accuracy["block_out.mean"].mean(0)
    )
    assert {line["protocol"] for line in results.csv_rows(answers, labels, {}, 0)} == {"published"}
    predictions.pack(answers, labels, {}, fake.SIGMAS, items, np.ones(len(items)))
    with pytest.raises(ConfigError, match="--protocol=both"):
        _ = answers["states"].result
    with pytest.raises(ConfigError, match="leaves nothing to do"):
        Protocol(which="published", published_seeds=0)


def test_probes_of_one_category_each_are_averaged_as_the_paper_does():
    answers, labels = fake.answers(fake.clips(), which="published", published_by_category=True)
    first, *_ = results.protocols(answers)
    found = answers["states"].by_category
    assert [*found] == ["O1", "O2"] and all(result.test.shape == (2, 24) for result in found.values())
    assert first.values["states"].value == pytest.approx(np.mean([result.best for result in found.values()]))
    assert "for each category" in first.name and "Optimistic twice" in first.note
    entry = results.result_json(answers, labels, {}, 0)["protocols"]["published"]["states"]["by_category"]
    assert entry["average"]["best_block"] == pytest.approx(first.values["states"].value)
    assert entry["O1"]["best_block"] == found["O1"].best
    lines = results.csv_rows(answers, labels, {}, 0)
    assert {line["category"] for line in lines} == {"all", "O1", "O2"}


def test_heatmaps_of_a_read_stand_beside_those_of_its_controls():
    kinds = {
        "states": "states", "mlp": "states", "maps": "states", "untrained": "null", "untrained.mlp": "null",
        "untrained.maps": "null", "latents": "", "noised": "comparison",
    }  # fmt: skip
    answers = {
        key: SimpleNamespace(source=SimpleNamespace(key=key, kind=kind, title=kind)) for key, kind in kinds.items()
    }
    order = ["states", "untrained", "mlp", "untrained.mlp", "maps", "untrained.maps", "noised"]
    assert results.heatmaps(answers) == order
