"""shim"""

from optuna.pruners import *


def build_pruner(space, epochs, steps):
    c = space.early_stopping
    return {
        "asha": lambda: SuccessiveHalvingPruner(min_resource=c.min_resource, reduction_factor=c.reduction_factor),
        "median": lambda: MedianPruner(n_startup_trials=c.startup_trials, n_warmup_steps=c.min_resource - 1),
        "none": NopPruner,
    }[c.name]()


def should_prune(study, pruner, trial, space):
    return pruner.prune(study, trial)
