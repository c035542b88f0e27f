"""What the loaders of benchmarks share."""

from pathlib import Path

import pytest

from jaxdiff.data.clip import Clip
from jaxdiff.data.listing import SHOWN, checked_scores, refuse_incomplete, require_labels, visible
from jaxdiff.errors import ConfigError, MissingDataError

CLIPS = [Clip(name, Path(name), name, "c", None) for name in ("b", "a")]


def test_a_split_is_refused_with_its_own_reason_and_others_are_not():
    require_labels(Path("here"), "Physics", "dev", {"test": "is secret."})
    with pytest.raises(MissingDataError, match=r"^here: the test split of Physics is secret\.$") as caught:
        require_labels(Path("here"), "Physics", "test", {"test": "is secret."})
    assert caught.value.exit_code == 5


def test_many_problems_are_counted_and_none_is_no_error():
    refuse_incomplete(Path("here"), "set", [], "Stop.")
    with pytest.raises(MissingDataError) as caught:
        refuse_incomplete(Path("here"), "set", [f"piece {i}" for i in range(SHOWN + 3)], "Stop.")
    message = str(caught.value)
    assert f"piece {SHOWN - 1}\n" in message
    assert f"piece {SHOWN}\n" not in message
    assert message.endswith("... and 3 more\nStop.")


def test_appledouble_and_other_hidden_files_are_not_seen(tmp_path):
    for name in ("._a.mp4", ".DS_Store", "b.mp4", "a.mp4"):
        (tmp_path / name).touch()
    assert [e.name for e in visible(tmp_path)] == ["a.mp4", "b.mp4"]


def test_scores_keep_the_order_of_the_clips():
    assert list(checked_scores("it", CLIPS, {"a": 1.0, "b": 0.0}, 0.0, 1.0).items()) == [("b", 0.0), ("a", 1.0)]


@pytest.mark.parametrize(
    "clips, scores, message",
    [
        (CLIPS, {"a": 0.5}, "b has no score"),
        (CLIPS, {"a": 0.5, "b": 0.5, "c": 0.5}, "c has a score but is not among the clips"),
        (CLIPS, {"a": 0.5, "b": 1.01}, r"b has the score 1.01, not a number in \[0, 1\]"),
        (CLIPS, {"a": -1e-9, "b": 1.0}, "a has the score -1e-09"),
        (CLIPS, {"a": float("nan"), "b": 1.0}, "a has the score nan"),
        ([*CLIPS, CLIPS[0]], {"a": 0.5, "b": 0.5}, "b comes twice"),
    ],
)
def test_scores_that_are_missing_superfluous_or_out_of_range_are_refused(clips, scores, message):
    with pytest.raises(ConfigError, match=message):
        checked_scores("it", clips, scores, 0.0, 1.0)


def test_an_unbounded_score_must_still_be_finite():
    assert checked_scores("it", CLIPS, {"a": -1e9, "b": 1e9})["a"] == -1e9
    with pytest.raises(ConfigError, match="b has the score inf, not a finite number"):
        checked_scores("it", CLIPS, {"a": 0.0, "b": float("inf")})
