"""cdn-tune: Ray-distributed hyperparameter search for CDN video moment retrieval.

``from cdn_tune import load`` opens a trained model; see `cdn_tune.evaluation.loading.load`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdn_tune.evaluation.loading import load
    from cdn_tune.evaluation.retriever import Moment, Retriever, Video

__version__ = "0.1.0"
__all__ = ["Moment", "Retriever", "Video", "__version__", "load"]

_HOMES = {"load": "loading", "Moment": "retriever", "Retriever": "retriever", "Video": "retriever"}


def __getattr__(name: str) -> Any:
    """Imports the Python API when it is first asked for, so that `import cdn_tune` takes no time."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"cdn_tune.evaluation.{_HOMES[name]}"), name)
