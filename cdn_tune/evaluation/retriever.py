"""The retriever: a trained model that answers queries about videos it has never seen, and `load`, which opens one.

Shape letters: N frames, D feature size, V windows, T frame features and S clips of a window, H hidden, Q queries.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from cdn_tune.config import Experiment, Nms
from cdn_tune.config.yaml import shown
from cdn_tune.data.clips import to_fixed_length
from cdn_tune.data.features import Frames
from cdn_tune.data.files import brief
from cdn_tune.data.frames import check_frames, read_frames
from cdn_tune.data.layouts import layout_of
from cdn_tune.data.lexicon import QueryReader, open_reader
from cdn_tune.data.mark import Mark
from cdn_tune.data.sequence_store import sequence_of, timed
from cdn_tune.errors import ConfigError, DataError, TrainingError
from cdn_tune.evaluation.choose_checkpoint import choose_checkpoint, fetch_model
from cdn_tune.evaluation.export import is_exported, read_exported
from cdn_tune.evaluation.test_result import chosen_nms, chosen_threshold
from cdn_tune.model.family import MomentModel, Spans
from cdn_tune.moments.spans import sliding_windows
from cdn_tune.training.object_store.working_copy import url_of
from cdn_tune.training.step.batch_loss import autocast, resolve_precision

WINDOWS_AT_ONCE = 16
_SCORES_AT_ONCE = 1 << 23  # elements: a batch of queries is cut where there are many windows
_LOG = logging.getLogger(__name__)

Features = npt.ArrayLike | Tensor | Path


@dataclass(frozen=True)
class Moment:
    """A span of a video that answers a query, in seconds.

    A higher score is better. A CDN's, in [0, 1], estimates how well the moment overlaps the right one: 0 stands for the
    experiment's `loss.min_iou` and below, 1 for its `loss.max_iou` and above.
    """

    start: float
    end: float
    score: float


@dataclass(frozen=True, eq=False)
class Video:
    """One video's features, encoded once for any number of queries.

    Attributes:
        duration: In seconds.
        frames: How many frame features it has, N.
        windows: Frames of each window, [first, last), V of them.
        encoded: Encodings of up to `WINDOWS_AT_ONCE` windows each, as the model's family has them: for a CDN clips
            [V, H, S].
        timed: Whether these know the windows' places in the video.
    """

    duration: float
    frames: int
    windows: tuple[tuple[int, int], ...]
    encoded: tuple[Any, ...]
    timed: bool = False

    def seconds(self, window: int) -> tuple[float, float]:
        """Returns from where to where in the video the model's answers in a window count, in seconds."""
        if self.timed:
            return 0.0, self.duration
        first, last = self.windows[window]
        end = self.duration if last == self.frames else last * self.duration / self.frames
        return first * self.duration / self.frames, end


class Retriever:
    """Retrieves moments. Made by `cdn_tune.load`.

    Args:
        model: The trained model.
        experiment: It was trained by.
        reader: Reads queries as in training: its word vectors, or what has or computes its token features.
        planted: Whether it was trained on planted data.
        source: The file it came from.
        device: Where it computes; a GPU if there is one and None is given.
        nms: How overlapping moments are suppressed; as the experiment's `eval` has it if None.
        threshold: Score of the best moment below which a sentence is probably not in the video, if one was chosen.
    """

    def __init__(
        self,
        model: MomentModel,
        experiment: Experiment,
        reader: QueryReader,
        planted: Mark,
        source: Path,
        device: torch.device | str | None = None,
        nms: Nms | None = None,
        threshold: float | None = None,
    ) -> None:
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self.model = model.to(self.device).eval().requires_grad_(False)
        except (RuntimeError, AssertionError) as error:  # no such device, here or at all
            raise ConfigError(f"device={device}: {brief(error)}; name another, or leave it out") from None
        self.experiment, self.reader, self.planted, self.source = experiment, reader, planted, source
        self.nms = self.model.complete(nms or experiment.eval.suppression)
        self.threshold = threshold
        self._dtype = resolve_precision(experiment.train.precision, self.device)

    def rejects(self, moments: Sequence[Moment]) -> bool:
        """Returns whether a sentence with these best moments is probably not in the video.

        By the score that the run's evaluation chose on val (``evaluate --reject``); without one, none is rejected.
        """
        return self.threshold is not None and (not moments or moments[0].score < self.threshold)

    @property
    def nms_threshold(self) -> float:
        """IoU above which hard suppression drops a moment."""
        return self.nms.threshold

    def retrieve(
        self,
        features: Features,
        duration: float,
        queries: Sequence[str],
        top: int = 5,
        *,
        window: float | None = None,
        stride: float | None = None,
    ) -> list[list[Moment]]:
        """Returns the best moments of a video for each query.

        Each call encodes the video; `encode` and `answer` encode it once for many calls.

        Args:
            features: Frame features [N, D] at equal distances over the whole video; or a file with one video's,
                ``.npy`` or HDF5.
            duration: Length of the video, in seconds.
            queries: Sentences. Words without a vector count as in training, and are named in a log warning.
            top: Moments per query, at most.
            window: As for `encode`.
            stride: As for `encode`.

        Returns:
            Per query, moments from best to worst; fewer than `top` where suppression leaves no more.

        Raises:
            DataError: If features, duration or a query cannot be used.
        """
        return self.answer(self.encode(features, duration, window=window, stride=stride), queries, top)

    @torch.no_grad()
    def encode(
        self, features: Features, duration: float, *, window: float | None = None, stride: float | None = None
    ) -> Video:
        """Encodes a video once, for `answer`.

        By default the whole video is encoded, as in training and evaluation. Where a model divides it into clips,
        these become too long to tell moments apart in a video much longer than those of training; `window` then slides
        a window over it, which is treated as a video of its own (see `answer`).

        Args:
            features: Frame features [N, D], or a file with them; as for `retrieve`.
            duration: Length of the video, in seconds.
            window: Length of a window, in seconds; best the length of the videos of training.
            stride: From one window to the next, in seconds; half a window if None. A moment of up to `window - stride`
                lies whole in some window; one longer than a window is never found.

        Raises:
            DataError: If features, duration, window or stride cannot be used.
        """
        frames = self._frames(features)
        for name, seconds in (("duration", duration), ("window", window or 0), ("stride", stride or 0)):
            if not hasattr(seconds, "__float__"):  # a number, also one of NumPy's or torch's
                raise DataError(f"{name}={shown(seconds)}: must be a number of seconds")
        if not (math.isfinite(duration) and duration > 0):
            raise DataError(f"duration={duration}: must be a positive, finite number of seconds")
        windows = [(0, len(frames))]
        if window is not None:
            try:
                windows = sliding_windows(duration, len(frames), window, window / 2 if stride is None else stride)
            except ValueError as error:
                raise DataError(str(error)) from None
        elif stride is not None:
            raise DataError(f"stride={stride:g}: has no meaning without a window; give window as well")
        starts = range(0, len(windows), WINDOWS_AT_ONCE)
        encoded = tuple(self._encode(frames, duration, windows[at : at + WINDOWS_AT_ONCE]) for at in starts)
        timed = self.experiment.model.inputs.sequences
        return Video(float(duration), len(frames), tuple(windows), encoded, timed)

    @torch.no_grad()
    def answer(self, video: Video, queries: Sequence[str], top: int = 5) -> list[list[Moment]]:
        """Returns the best moments of an encoded video for each query.

        Over several windows the proposals of all are ranked together by their scores, and suppressed together: the best
        one wins, and whatever overlaps it goes (or decays, as `nms` has it), in whichever window it was found.

        Args:
            video: As `encode` returned it.
            queries: Sentences.
            top: Moments per query, at most.

        Returns:
            As for `retrieve`.

        Raises:
            DataError: If a query is empty, has no word with a vector or no token features, or `top` is not positive.
            TrainingError: If scores or spans are not finite.
        """
        if not isinstance(top, int) or top < 1:
            raise DataError(f"top={shown(top)}: must be a whole number, at least 1")
        if isinstance(queries, str):
            raise DataError(f"queries={queries!r}: is one string; give a list of them")
        queries = [*queries] if isinstance(queries, Iterable) else [queries]
        if not all(isinstance(query, str) for query in queries):
            raise DataError(f"queries={shown(queries)}: give a list of sentences")
        words = []
        for query in queries:
            vectors, unknown = self.reader.encode(query)
            words.append(vectors)  # [L, W]
            if unknown:
                _LOG.warning("query %r: no vector for %s; counted as in training", query, ", ".join(unknown))
        most = _SCORES_AT_ONCE // (len(video.windows) * self.model.most_spans)
        step = max(1, min(self.experiment.eval.batch_size, most))
        if self.model.reads_padding:
            step = 1  # a query's encoding depends on the padding; this way not on its neighbours
        groups = [words[first : first + step] for first in range(0, len(words), step)]
        return [ranked for group in groups for ranked in self._answer(video, group, top)]

    def unknown_words(self, query: str) -> tuple[str, ...]:
        """Returns the words of a query that have no vector.

        Raises:
            DataError: If it is empty or has no word with a vector.
        """
        return self.reader.encode(query)[1]

    def _frames(self, features: Features) -> Frames:
        where = "features"
        if isinstance(features, str | Path):
            where = str(features)
            data = self.experiment.data
            member = layout_of(data.dataset).member
            features = read_frames(Path(features), member=member, feature_size=data.feature_size).frames
        return check_frames(features, self.experiment.data.feature_size, where)

    def _encode(self, frames: Frames, duration: float, windows: Sequence[tuple[int, int]]) -> Any:
        """Encodes some windows of a video's frame features [N, D]."""
        config = self.experiment.data
        video: tuple[Tensor, ...]
        if self.experiment.model.inputs.sequences:
            rows = [sequence_of(frames[first:last], config.sequence) for first, last in windows]
            places = [timed(config.sequence, last - first, duration, len(frames)) for first, last in windows]
            begin = [  # of a step and of a frame feature: windows begin at the latter
                place.grid.to_seconds(0.0) + first * config.sequence.clip_stride / float(place.grid.fps)
                for place, (first, _) in zip(places, windows, strict=True)
            ]
            step = [place.grid.clip_stride / float(place.grid.fps) for place in places]
            mask = torch.arange(max(map(len, rows))) < torch.tensor([[len(row)] for row in rows])
            times = torch.tensor([begin, step], dtype=torch.float64).T
            video = (torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), mask, times)
        else:
            rows = [
                to_fixed_length(frames[first:last], config.frames, config.resampling == "legacy")
                for first, last in windows
            ]
            video = (torch.stack(rows),)  # [V, T, D]
        if config.cache_dtype == "float16":  # as the clip cache rounded them in training
            video = (video[0].half().float(), *video[1:])
        with autocast(self.device, self._dtype):
            return self.model.encode(*(each.to(self.device) for each in video))

    def _answer(self, video: Video, words: Sequence[Tensor], top: int) -> list[list[Moment]]:
        padded = torch.nn.utils.rnn.pad_sequence(list(words), batch_first=True)  # [Q, L, W]
        mask = torch.arange(padded.shape[1]) < torch.tensor([[len(row)] for row in words])  # [Q, L]
        with autocast(self.device, self._dtype):
            query = padded.to(self.device), mask.to(self.device)
            outputs = [output for encoded in video.encoded for output in self.model.answer(encoded, *query)]
        found = []
        for window, output in enumerate(outputs):
            start, end = video.seconds(window)
            durations = torch.full((len(words),), end - start, dtype=torch.float64, device=self.device)
            inside = self.model.spans(output, durations)
            found.append(Spans(inside.spans + start, inside.scores))
        candidates = Spans(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))
        if candidates.has_nan():
            raise TrainingError(f"{self.source}: scores or spans are not finite; weights or features are too large")
        spans, scores = self.model.suppress(candidates, top, *self.nms)
        rows = zip(spans.tolist(), scores.tolist(), strict=True)
        return [
            [Moment(start, end, score) for (start, end), score in zip(*row, strict=True) if not math.isnan(score)]
            for row in rows
        ]


def load(
    path: str | Path,
    *,
    word_vectors: str | Path | None = None,
    text_model: str | Path | None = None,
    device: torch.device | str | None = None,
    nms_threshold: float | None = None,
) -> Retriever:
    """Loads a trained model to retrieve moments with; no code in any file is run.

    Args:
        path: A run folder of `train` or `search` (its best checkpoint on val), a kept checkpoint's folder such as
            ``RUN/best/trial-0003``, a checkpoint file, a folder written by `cdn-tune export`, or the URL of one of
            these on an object store.
        word_vectors: Where the word vectors are now, if no longer where the experiment has them. An exported folder
            holds its own; naming others replaces them.
        text_model: Folder or name on the hub of the language model whose token features it was trained on
            (`data.text: tokens`). Needed for other queries than the dataset's, and for an exported folder.
        device: Where to compute; a GPU if there is one and None is given.
        nms_threshold: A moment that overlaps a better one by more than this IoU is dropped, also where the experiment
            has soft suppression. If None, what the run's last evaluation chose on val for this checkpoint (``evaluate
            --choose-nms``; an exported folder carries it), else as the experiment's `eval` has it.

    Raises:
        CdnTuneError: If there is no model, it is damaged, or its word vectors cannot be found; one line.
    """
    if nms_threshold is not None and not 0 <= nms_threshold <= 1:
        raise DataError(f"nms_threshold={nms_threshold}: is not within [0, 1]")
    path = Path(path).expanduser() if url_of(path) is None else fetch_model(path)
    vectors = None if word_vectors is None else Path(word_vectors).expanduser()
    held = nms = threshold = None
    if is_exported(path):
        checkpoint, held = read_exported(path)
    else:
        choice = choose_checkpoint(path)
        for line in choice.damaged:
            _LOG.warning("%s", line)
        checkpoint = choice.checkpoint
        nms, threshold = chosen_nms(checkpoint), chosen_threshold(checkpoint)
    if nms_threshold is not None:
        nms = checkpoint.experiment.eval.suppression._replace(threshold=nms_threshold, kind="hard")
    language = None if text_model is None else str(text_model)
    reader = open_reader(checkpoint.experiment.data, vectors, language, held)
    return Retriever(
        checkpoint.model, checkpoint.experiment, reader, checkpoint.planted, checkpoint.path, device, nms, threshold
    )
