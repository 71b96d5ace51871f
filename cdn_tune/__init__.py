"""cdn-tune: Ray-distributed hyperparameter search for CDN video moment retrieval.

``from cdn_tune import load`` opens a trained model; see `cdn_tune.evaluation.retriever.load`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdn_tune.evaluation.retriever import Moment, Retriever, Video, load

__version__ = "0.1.0"
__all__ = ["Moment", "Retriever", "Video", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Imports the Python API when it is first used, so that `import cdn_tune` takes no time."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cdn_tune.evaluation import retriever

    return getattr(retriever, name)
