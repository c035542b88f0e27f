"""The scheduler configurations that the parity test and the recorded goldens share."""

import itertools

STEPS = (1, 2, 5, 20, 50, 100, 333)

# As Wan's folders publish it, apart from the shift.
UNIPC = {
    "_class_name": "UniPCMultistepScheduler",
    "_diffusers_version": "0.33.0.dev0",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "disable_corrector": [],
    "dynamic_thresholding_ratio": 0.995,
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_p": None,
    "solver_type": "bh2",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": True,
    "use_karras_sigmas": False,
}
DPM_SOLVER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
}
FLOW_MATCH = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}

CONFIGS = [
    *(UNIPC | {"flow_shift": shift} for shift in (1.0, 3.0, 5.0, 7.3)),
    *(FLOW_MATCH | {"shift": shift} for shift in (1.0, 3.0, 5.0, 7.3)),
    UNIPC | {"num_train_timesteps": 777},
    FLOW_MATCH | {"num_train_timesteps": 777},
    *(DPM_SOLVER | {"flow_shift": shift} for shift in (1.0, 5.0)),
]
CASES = list(itertools.product(range(len(CONFIGS)), STEPS))
