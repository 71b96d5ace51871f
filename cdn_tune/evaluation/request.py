"""What an evaluation is asked for: which models, on what they are trained again, what is chosen and written."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cdn_tune.errors import ConfigError
from cdn_tune.evaluation.scoring import Workers
from cdn_tune.moments.bootstrap import RESAMPLES


@dataclass(frozen=True)
class Request:
    """What is to be evaluated, and how.

    Attributes:
        top: How many of the search's best models.
        checkpoint: This file instead.
        trials: The models of these trials instead (the Pareto front).
        seeds: Under how many other seeds the winner is trained again; 0: not at all.
        train_on: On what; ``train+val`` for the epochs that the winner took on val.
        choose_nms: Whether the NMS threshold is chosen on val (of soft NMS: sigma).
        choose_nms_kind: Whether hard or soft NMS and voting are chosen with it.
        protocol: ``honest``, or ``published``: the epoch chosen on test.
        workers: Who computes.
        score_maps: Whether to write the score maps.
        reject: Whether it is measured how the winner rejects sentences that are not in the video.
        formats: Further formats of the predictions, of `predictions.FORMATS`.
        other_data: Whether data that have changed since the run may be used.
        resamples: Of intervals and tests.
    """

    top: int = 1
    checkpoint: Path | None = None
    trials: tuple[int, ...] | None = None
    seeds: int = 0
    train_on: Literal["train", "train+val"] = "train"
    choose_nms: bool = False
    choose_nms_kind: bool = False
    protocol: Literal["honest", "published"] = "honest"
    workers: Workers = field(default_factory=Workers)
    score_maps: bool = False
    reject: bool = False
    formats: tuple[str, ...] = ()
    other_data: bool = False
    resamples: int = RESAMPLES

    def check(self) -> None:
        """Refuses options that exclude each other.

        Raises:
            ConfigError: Naming the option.
        """
        excluded = {
            "--top": self.top > 1,
            "--front": self.trials is not None,
            "--choose-nms": self.choose_nms,
            "--choose-nms-kind": self.choose_nms_kind,
            "--train-on": self.train_on != "train",
            "--score-maps": self.score_maps,
            "--reject": self.reject,
            "--export-format": bool(self.formats),  # those files have no place for the label
        }
        for flag in [flag for flag, given in excluded.items() if given and self.protocol == "published"]:
            raise ConfigError(f"{flag} does not go with --protocol published, which chooses on test; drop one")
        if self.train_on != "train" and not self.seeds:
            raise ConfigError(f"--train-on {self.train_on}: nothing is trained again without --seeds N; add it")
        if sum([self.top > 1, self.checkpoint is not None, self.trials is not None]) > 1:
            raise ConfigError("--top, --checkpoint and --front each say what to evaluate; give one of them")
