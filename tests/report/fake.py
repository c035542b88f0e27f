"""A full `Study` of invented numbers, shaped like the nano demo's, for the tests of the report."""

import numpy as np

from jaxdiff.report import (
    Check,
    ClipView,
    Curve,
    Estimate,
    Fidelity,
    FrameAttention,
    Grid,
    Group,
    Measure,
    Panel,
    Row,
    Study,
    Table,
)

SIGMAS = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
TRAINED = np.array(
    [
        [49.4, 49.4, 49.4, 49.4, 49.4, 49.4, 49.4, 49.4, 49.4, 49.4],
        [48.4, 51.5, 50.7, 51.9, 51.6, 53.1, 52.8, 54.5, 53.1, 53.6],
        [51.2, 51.5, 53.4, 54.2, 54.0, 56.5, 59.5, 60.9, 60.4, 63.1],
        [52.1, 51.3, 53.0, 55.2, 55.8, 57.6, 60.1, 63.1, 65.6, 64.9],
        [60.1, 60.1, 59.4, 58.5, 58.6, 58.8, 60.7, 61.5, 63.7, 65.3],
        [57.7, 62.8, 62.5, 61.0, 57.9, 61.5, 64.7, 66.1, 69.8, 68.2],
        [58.6, 58.6, 59.7, 62.2, 60.4, 61.5, 62.5, 66.8, 70.7, 68.8],
    ]
)
LABELS = ("latents", "state", "0", "1", "2", "3", "4")


def _grid(name, percent, kind, half, chosen=()):
    accuracy = percent / 100
    return Grid(
        name,
        accuracy,
        SIGMAS,
        LABELS,
        kind,
        inputs=2,
        low=accuracy - half,
        high=accuracy + half,
        chosen=chosen,
    )


def _clip(rng, frames=17, size=48):
    t, y, x = np.mgrid[:frames, :size, :size]
    disc = (y - size / 2) ** 2 + (x - 8 - 2 * t) ** 2 < 36
    screen = (y > size - np.clip(6 * np.minimum(t, frames - 1 - t), 0, 40)) & (x > 14) & (x < 36)
    source = np.full((frames, size, size, 3), (190, 200, 215), np.uint8)
    source[disc] = (200, 60, 40)
    source[screen] = (70, 90, 60)
    noise = rng.normal(0, 6, source.shape) + 8 * np.sin(x / 3)[..., None]
    return source, np.clip(source + noise, 0, 255).astype(np.uint8)


def study(clips: int = 4, size: int = 48) -> Study:
    """The invented study; `clips` of `size` pixels."""
    rng = np.random.default_rng(0)
    less = 52 + rng.normal(0, 1.2, TRAINED.shape)
    less[0] = 49.4
    untrained = 51 + rng.normal(0, 1.2, TRAINED.shape)
    untrained[0] = 49.4
    rows = (
        Row(
            "states", "Trained, block outputs", Estimate(0.6823, 0.6541, 0.7104), "states",
            Estimate(0.884, 0.851, 0.913), None, "block 3, σ 0.8 or 0.9 in 4 of 5 folds; mean over tokens",
        ),
        Row("structureless", "Trained on structure-less clips", Estimate(0.5391, 0.5193, 0.5588), "null",
            Estimate(0.601, 0.561, 0.64), Estimate(0.1432, 0.1101, 0.1755), "same size, steps and seed"),
        Row("untrained", "Untrained, gates open", Estimate(0.5184, 0.4976, 0.5392), "null",
            Estimate(0.553, 0.512, 0.59), Estimate(0.1639, 0.13, 0.1987)),
        Row("latents", "Latents", Estimate(0.4937, 0.4808, 0.5066), "null",
            Estimate(0.5, 0.46, 0.54), Estimate(0.1886, 0.158, 0.221), "as many candidates as the states"),
        Row("pixels", "Raw pixels", Estimate(0.5, 0.5, 0.5), "null",
            Estimate(0.5, 0.5, 0.5), Estimate(0.1823, 0.154, 0.21)),
        Row("shuffled_labels", "Shuffled labels", Estimate(0.4962, 0.471, 0.522), "null",
            Estimate(0.491, 0.44, 0.541), Estimate(0.1861, 0.15, 0.222), "permuted within each scene"),
        Row("noised_latents", "Noised latents, one forward", Estimate(0.6517, 0.6222, 0.6809), "comparison",
            Estimate(0.842, 0.803, 0.879), Estimate(0.0306, -0.0011, 0.0613), "no inversion, 100× cheaper"),
        Row("quadratic", "Quadratic latents", Estimate(0.7102, 0.6861, 0.7342), "comparison",
            Estimate(0.88, 0.846, 0.911), Estimate(-0.0279, -0.0601, 0.0044), "between-frame products"),
    )  # fmt: skip
    by_category = [
        ("object permanence", 0.703, 0.552, 0.521, 0.497),
        ("shape constancy", 0.631, 0.533, 0.516, 0.493),
        ("spatio-temporal continuity", 0.712, 0.541, 0.524, 0.491),
    ]
    keys = ("states", "structureless", "untrained", "latents")
    categories = tuple(
        Group(name, {k: Estimate(v, v - 0.042, v + 0.041) for k, v in zip(keys, values, strict=True)})
        for name, *values in by_category
    )
    replicates = tuple(
        Group(
            f"training seed {a}, world seed {b}",
            {
                k: Estimate(v + d, v + d - 0.028, v + d + 0.028)
                for k, v in zip(keys, (0.68, 0.54, 0.52, 0.495), strict=True)
            },
        )
        for (a, b), d in zip(
            [(a, b) for a in (11, 12, 13) for b in (100, 101, 102)], rng.normal(0, 0.012, 9), strict=True
        )
    )
    published = {"states": 0.724, "structureless": 0.603, "untrained": 0.588, "latents": 0.494}
    mean_of_blocks = {"states": 0.607, "structureless": 0.525, "untrained": 0.517, "latents": 0.494}
    protocols = (
        Group("published, best cell on the test fold", {k: Estimate(v) for k, v in published.items()},
              "Linear(D, 2), softmax cross-entropy, Adam 1e-3; best block and step on the fold reported"),
        Group("published, mean over blocks", {k: Estimate(v) for k, v in mean_of_blocks.items()}),
        Group("corrected", {r.key: r.estimate for r in rows if r.key in published},
              "standardised, L2 logistic; block, σ, pooling and penalty chosen inside grouped folds"),
    )  # fmt: skip
    t = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    surprise = tuple(
        Curve(name, t, np.array(y), np.array(y) - h, np.array(y) + h, kind)
        for name, y, h, kind in (
            ("trained", [0.646, 0.701, 0.756, 0.808, 0.673], 0.025, "states"),
            ("structure-less", [0.496, 0.495, 0.506, 0.519, 0.512], 0.009, "null"),
        )
    )
    n = 360
    error = rng.gamma(9, 0.004, n)
    fidelity = Fidelity(
        self_convergence=(
            Curve("euler, 50", SIGMAS[1:], 0.004 + 0.02 * SIGMAS[1:] ** 2),
            Curve("midpoint, 50", SIGMAS[1:], 0.0004 + 0.002 * SIGMAS[1:] ** 2, kind="comparison"),
        ),
        round_trip=29.5 + rng.normal(0, 1.4, n),
        autoencoder=31.2 + rng.normal(0, 1.2, n),
        latent_error=error,
        noise=(
            Measure("mean", 0.0123, 0.0),
            Measure("standard deviation", 0.981, 1.0),
            Measure("correlation of neighbours, space", 0.041, 0.0, "lag 1, mean of both directions"),
            Measure("correlation of neighbours, time", 0.067, 0.0, "lag 1"),
        ),
        mistakes=rng.random(n) < 0.32,
        clip_error=error,
        mistake_correlation=Estimate(-0.031, -0.132, 0.071),
    )

    def maps(sharp):
        away = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
        logits = -away * rng.uniform(0.1, sharp, (5, 4, 1, 1)) + rng.normal(0, 0.2, (5, 4, 5, 5))
        return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    views = []
    for i in range(clips):
        source, reconstruction = _clip(rng, size=size)
        views.append(ClipView(f"O1/{i:02d}/1", source, reconstruction, 29.7 + i, note="possible"))
    return Study(
        title="Is physical plausibility linearly decodable from a nano Wan?",
        facts={
            "clips": "720", "scenes": "180", "categories": "3", "backbone": "nano Wan, 5 blocks × 128",
            "inversion": "euler, 50 steps", "outer folds": "5, grouped by scene",
        },
        rows=rows,
        checks=(
            Check("States at least 62 %", "68.2 %", "62 %", True),
            Check("States at least 8 points above every null control", "14.3", "8", True),
            Check("Latents within 3 points of chance", "−0.6", "±3", True),
            Check("Structure-less at most 53 %", "53.9 %", "53 %", False),
        ),
        grids=(
            _grid("Trained", TRAINED, "states", 0.028, ((5, 8, 3), (6, 9, 1), (5, 9, 1))),
            _grid("Structure-less", less, "null", 0.02),
            _grid("Untrained", untrained, "null", 0.02),
        ),
        categories=categories,
        protocols=protocols,
        replicates=replicates,
        surprise=surprise,
        fidelity=fidelity,
        attention=(
            FrameAttention("Trained", maps(1.2), (0, 1, 2, 3, 4), 0.8),
            FrameAttention("Untrained", maps(0.2), (0, 1, 2, 3, 4), 0.8),
        ),
        clips=tuple(views),
        skipped=(("O2/17/3", "scene/scene_009.png cannot be decoded"), ("O3/02/1", "12 frames, 17 needed")),
        panels=(
            Panel(
                "Solvers against evaluations",
                (Curve("euler", np.array([10.0, 20, 40]), np.array([0.12, 0.06, 0.031])),
                 Curve("fireflow", np.array([11.0, 21]), np.array([0.05, 0.01]), kind="comparison")),
                "network evaluations", "relative error at σ = 1", "Against 400 midpoint steps.", log=True,
            ),
        ),
        tables=(Table("Permutation tests", ("probe", "p, within scene", "p, maximum over the grid"),
                      (("Trained", 0.0005, 0.0005), ("Structure-less", 0.031, 0.22))),),
        conditional_on=(
            "Intervals are cluster bootstraps over scenes (2,000 draws): they speak for new scenes.",
            "They are conditional on the trained weights; the table of runs shows other seeds.",
            "The folds and the inner choice are redone in none of the draws.",
        ),
        notes=("The number of scenes (60 a category) was picked to fit the demo's time.",),
        config={"model": "nano", "steps": 50,
                "probe": {"outer": 5, "inner": 5, "penalties": [0.001, 0.01, 0.1, 1.0]},
                "clips_per_device": 8, "text_embeddings": "zeros"},
        seeds={"world": 100, "training": 11, "folds": 0},
        command="python -m experiments.study --model=nano --dataset=world --workdir=runs/demo",
        environment={"python": "3.11.2",
                     "versions": {"jax": "0.10.2", "flax": "0.12.8"}, "devices": ["cpu:0 cpu"]},
    )  # fmt: skip
