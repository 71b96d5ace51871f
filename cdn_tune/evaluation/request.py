"""What is asked of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cdn_tune.errors import ConfigError
from cdn_tune.evaluation.scoring import Workers
from cdn_tune.moments.bootstrap import RESAMPLES

Protocol = Literal["honest", "published"]


@dataclass(frozen=True)
class Request:
    """What is to be evaluated.

    Attributes:
        top: How many of the search's best models.
        checkpoint: This file instead.
        trials: The models of these trials instead (the Pareto front).
        seeds: Under how many other seeds the winner is trained again; 0: not at all.
        train_on: On what; ``train+val`` for the epochs that the winner took on val.
        choose_nms: Whether the NMS threshold is chosen on val.
        protocol: ``honest``, or ``published``: the epoch chosen on test.
        workers: Who computes.
        score_maps: Whether to write the score maps.
        formats: Further formats of the predictions, of `formats.FORMATS`.
        other_data: Whether data that have changed since the run may be used.
        resamples: Of intervals and tests.
    """

    top: int = 1
    checkpoint: Path | None = None
    trials: tuple[int, ...] | None = None
    seeds: int = 0
    train_on: Literal["train", "train+val"] = "train"
    choose_nms: bool = False
    protocol: Protocol = "honest"
    workers: Workers = field(default_factory=Workers)
    score_maps: bool = False
    formats: tuple[str, ...] = ()
    other_data: bool = False
    resamples: int = RESAMPLES


def check_request(request: Request) -> None:
    """Refuses what does not go together.

    Raises:
        ConfigError: Naming the option.
    """
    if request.protocol == "published":
        for flag, given in (
            ("--top", request.top > 1),
            ("--front", request.trials is not None),
            ("--choose-nms", request.choose_nms),
            ("--train-on", request.train_on != "train"),
            ("--score-maps", request.score_maps),
            ("--export-format", bool(request.formats)),  # those files have no place for the label
        ):
            if given:
                raise ConfigError(f"{flag} does not go with --protocol published, which chooses on test; drop one")
    if request.train_on != "train" and not request.seeds:
        raise ConfigError(f"--train-on {request.train_on}: nothing is trained again without --seeds N; add it")
    if sum([request.top > 1, request.checkpoint is not None, request.trials is not None]) > 1:
        raise ConfigError("--top, --checkpoint and --front each say what to evaluate; give one of them")
