"""Samplers on a field in closed form: the cases that the recorded goldens, the live comparison and the tests share."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.flow import Node, Schedule, Step
from tests.reference import COGVIDEOX_SCHEDULER, WAN_SCHEDULER

GOLDEN = Path(__file__).parents[1] / "goldens" / "samplers.npz"

WAN_DPM = {
    "_class_name": "DPMSolverMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 5.0,
}
COGVIDEOX_DPM = COGVIDEOX_SCHEDULER | {"_class_name": "CogVideoXDPMScheduler"}
# Name -> scheduler_config.json, step counts. The CogVideoX schedulers are reproduced where the count divides 1000.
CASES = {
    "unipc": (WAN_SCHEDULER, (1, 2, 3, 5, 20)),
    "unipc_shift_5": (WAN_SCHEDULER | {"flow_shift": 5.0}, (7, 40)),
    "unipc_order_1": (WAN_SCHEDULER | {"solver_order": 1}, (5,)),
    "unipc_uncorrected": (WAN_SCHEDULER | {"disable_corrector": [0, 2]}, (6,)),
    "dpmpp_2m": (WAN_DPM, (1, 2, 3, 5, 20)),
    "dpmpp_2m_sde": (WAN_DPM | {"algorithm_type": "sde-dpmsolver++"}, (1, 2, 3, 20)),
    "cogvideox_ddim": (COGVIDEOX_SCHEDULER, (1, 2, 5, 50)),
    "cogvideox_dpm": (COGVIDEOX_DPM, (1, 2, 4, 5, 50)),
    "cogvideox_5b_dpm": (COGVIDEOX_DPM | {"snr_shift_scale": 1.0}, (10,)),
}
RUNS = [(name, steps) for name, (_, counts) in CASES.items() for steps in counts]
VARIANCE_PRESERVING = ("cogvideox_dpm", "cogvideox_5b_dpm")
SHAPE = (1, 2, 2, 3, 2)


def model(x, t, xp):
    """A network's output for a state x, told the timestep t: smooth in both, not linear in x."""
    return xp.sin(1.3 * x + t / 250) + 0.4 * x * xp.cos(xp.asarray(t / 400)) - 0.3


def start(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The noise to start from and that of every step, float32."""
    rng = np.random.default_rng(steps)
    return rng.standard_normal(SHAPE).astype(np.float32), rng.standard_normal((steps, *SHAPE)).astype(np.float32)


def walk(config: dict, steps: int) -> np.ndarray:
    """Every state of our sample, in the scheduler's coordinates, [steps + 1, ...]."""
    schedule = Schedule.from_config(config)
    solver, grid = schedule.solver, schedule.grid(steps)
    labels = schedule.rounded(grid)
    x, noises = start(steps)

    def velocity(x, sigma, label):
        output = model(schedule.to_network(x, sigma), schedule.timestep(label), jnp)
        return schedule.velocity(output, x, sigma)

    def nodes(i):
        return Node(jnp.float32(grid[i]), jnp.float32(labels[i]))

    @jax.jit
    def advance(x, memory, step):
        return solver.step(velocity, x, velocity(x, *solver.start_node(step)), step, memory)

    steps_of = [
        Step(nodes(i), nodes(i), nodes(i + 1), jnp.asarray(noises[i]) if solver.stochastic else None)
        for i in range(steps)
    ]
    x = jnp.asarray(x) / schedule.to_network(jnp.ones(()), grid[0])  # what the reference starts from
    memory = solver.init(velocity, x, steps_of[0])
    states = [schedule.to_network(x, grid[0])]
    for i, step in enumerate(steps_of):
        x, memory = advance(x, memory, step)
        states.append(schedule.to_network(x, grid[i + 1]))
    return np.stack(states)
