"""cdn-tune: Ray-distributed hyperparameter search for CDN video moment retrieval.

From Python: `train` one trial, `search` for the best configuration, `open_run` to read what either has left, `load` a
trained model. Each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdn_tune import errors
    from cdn_tune.api.load import load
    from cdn_tune.api.run import Best, Run, open_run
    from cdn_tune.api.search import search
    from cdn_tune.api.train import train
    from cdn_tune.config import Experiment, SearchSpace, load_experiment, load_space
    from cdn_tune.evaluation.retriever import Moment, Retriever, Video
    from cdn_tune.training.reports import EpochReport, StepReport
    from cdn_tune.tuning.progress import SearchState

__version__ = "0.1.0"
__all__ = [
    "Best", "EpochReport", "Experiment", "Moment", "Retriever", "Run", "SearchSpace", "SearchState", "StepReport",
    "Video", "__version__", "errors", "load", "load_experiment", "load_space", "open_run", "search", "train",
]  # fmt: skip

_HOMES = {
    "api.load": ("load",),
    "api.run": ("Best", "Run", "open_run"),
    "api.search": ("search",),
    "api.train": ("train",),
    "config": ("Experiment", "SearchSpace", "load_experiment", "load_space"),
    "evaluation.retriever": ("Moment", "Retriever", "Video"),
    "training.reports": ("EpochReport", "StepReport"),
    "tuning.progress": ("SearchState",),
}

if not TYPE_CHECKING:  # or a misspelt name would have a type

    def __getattr__(name: str) -> object:
        """Imports a name when it is first used, so that `import cdn_tune` takes no time."""
        if name == "errors":
            return import_module("cdn_tune.errors")
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"cdn_tune.{home}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns the public names, so that they are completed before their first use."""
    return sorted(__all__)
