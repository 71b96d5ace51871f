"""The sampler, the stopping rule and the metric themselves."""

from optuna.pruners import BasePruner, ThresholdPruner
from optuna.samplers import BaseSampler, QMCSampler
from torch import Tensor

from cdn_tune.config import EarlyStoppingConfig, SamplerConfig
from cdn_tune.moments.metrics import Answers


def halton(config: SamplerConfig, _: int) -> BaseSampler:
    """Returns the sampler of one proposal; a sequence goes on under the search's own seed."""
    return QMCSampler(qmc_type="halton", scramble=True, seed=config.seed, warn_independent_sampling=False)


def hopeless(config: EarlyStoppingConfig) -> BasePruner:
    """Returns a pruner of trials whose best val metric is still next to nothing."""
    return ThresholdPruner(lower=0.01, n_warmup_steps=config.least)


def starts_well(answers: Answers, iou: float) -> Tensor:
    """Returns 1 where the first moment starts within a share `iou` of the video from the true start, else 0, [Q]."""
    wrong = (answers.top[:, 0, 0] - answers.moments[:, 0, 0]).abs()
    return (wrong <= iou * answers.durations).double()
