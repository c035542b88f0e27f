"""What clips show of physics: a tracker of the generated world's coloured things, and numbers about its tracks.

Plain clips have a tracker and numbers of their own: `plain_tracking`, `mechanics` (with `metrics` and `collisions`), and
benchmarks their files and scores: `benchmarks`, `physics_iq`.
"""

from jaxdiff.physics.tracking import Track, track
from jaxdiff.physics.world_metrics import METRICS, Metric, measure, truth_errors

__all__ = ["METRICS", "Metric", "Track", "measure", "track", "truth_errors"]
