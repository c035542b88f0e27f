"""What clips show of physics: a tracker of the generated world's coloured things, and numbers about its tracks."""

from jaxdiff.physics.metrics import METRICS, Metric, measure, truth_errors
from jaxdiff.physics.tracking import Track, track

__all__ = ["METRICS", "Metric", "Track", "measure", "track", "truth_errors"]
