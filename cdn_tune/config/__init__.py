"""Frozen models of an experiment and of a search space, strict YAML, dotted overrides."""

from cdn_tune.config.experiment import (
    COMPUTING,
    DATA_PATHS,
    AugmentConfig,
    DataConfig,
    EvalConfig,
    Experiment,
    Nms,
    OptimConfig,
    SequenceConfig,
    TrainConfig,
)
from cdn_tune.config.family import Inputs, LossConfig, ModelConfig
from cdn_tune.config.load import build, load_experiment, override, parse_overrides
from cdn_tune.config.load_search import load_space, override_space
from cdn_tune.config.parameters import Categorical, Float, Int, Parameter
from cdn_tune.config.space import (
    BudgetConfig,
    EarlyStoppingConfig,
    ResourcesConfig,
    SamplerConfig,
    SearchSpace,
)
from cdn_tune.config.tables import recall_name

__all__ = [
    "COMPUTING", "DATA_PATHS", "AugmentConfig", "BudgetConfig", "Categorical", "DataConfig", "EarlyStoppingConfig",
    "EvalConfig", "Experiment", "Float", "Inputs", "Int", "LossConfig", "ModelConfig", "Nms", "OptimConfig",
    "Parameter", "ResourcesConfig", "SamplerConfig", "SearchSpace", "SequenceConfig", "TrainConfig", "build",
    "load_experiment", "load_space", "override", "override_space", "parse_overrides", "recall_name",
]  # fmt: skip
