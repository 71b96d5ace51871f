"""shim"""

import warnings

import numpy as np
from optuna.samplers import *


def build_sampler(space, candidates, asked):
    seed = int(np.random.SeedSequence([space.sampler.seed, asked]).generate_state(1)[0])
    if space.sampler.name == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TPESampler(
            seed=seed, n_startup_trials=space.sampler.startup_trials, multivariate=True, group=True, constant_liar=True
        )
