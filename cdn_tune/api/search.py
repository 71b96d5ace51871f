"""`cdn_tune.search`: a search for the best configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cdn_tune.api.arguments import Count, PathLike, Paths, checked, path_of
from cdn_tune.api.background import Background
from cdn_tune.api.run import Run
from cdn_tune.compat import check_versions
from cdn_tune.config import load_space
from cdn_tune.config.check import without_effect
from cdn_tune.config.load import ExperimentLike
from cdn_tune.config.load_search import SpaceLike
from cdn_tune.distributed.address import prepare
from cdn_tune.tuning.progress import SearchState

_LOG = logging.getLogger(__name__)


@checked
def search(
    space: SpaceLike,
    overrides: Mapping[str, Any] | None = None,
    *,
    experiment: ExperimentLike | None = None,
    settings: Mapping[str, Any] | None = None,
    run: PathLike | None = None,
    trials: Count | None = None,
    add_trials: Count | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    warm_start: Paths = (),
    storage: str | None = None,
    address: str | None = None,
    on_trial: Callable[[dict[str, Any]], object] | None = None,
    on_change: Callable[[SearchState], object] | None = None,
    progress: bool = False,
) -> Run:
    """Searches for the best configuration, as `cdn-tune search` does, and returns its run; the same call goes on.

    It takes no signal handlers and prints nothing unless asked. A Ray session that is already there is used and left
    running; else one is started and ended. Ctrl-C (in a notebook: interrupting the kernel) has running trials save a
    checkpoint, ends the search, and raises `KeyboardInterrupt`; a second one leaves at once.

    Args:
        space: The path of a YAML file or of a shipped search space, such as ``"quick"``; its nested values; or a
            `SearchSpace`.
        overrides: Dotted keys of the *experiment* with values, fixed for the whole search.
        experiment: The base experiment, as `train` takes it, in place of the one that the space names.
        settings: Dotted keys of the space itself, such as ``{"sampler.seed": 3, "budget.hours": 1.5}``.
        run: The run folder, or its URL on an object store; ``runs/<name>`` if None.
        trials: Trials in all, in place of the space's; raise it to go on with a finished search.
        add_trials: So many trials more than before.
        resume: Whether the run folder must hold a search already.
        retry_failed: Whether failed trials are tried again.
        warm_start: Run folders of other searches whose results are learned from, at the first start.
        storage: Where the study is stored, an Optuna storage URL; the run folder's own journal if None.
        address: Ray cluster to join: ``"auto"`` or ``HOST:PORT``.
        on_trial: Called with a trial's row of the leaderboard when the trial has ended. If it returns True, running
            trials save a checkpoint, the search ends, and its run is returned.
        on_change: The same with the whole search as it stands, a few times a second at most.
        progress: Whether to print a line per trial (in a terminal a live table) to standard error.

    Returns:
        The run, as `open_run` opens it.

    Raises:
        CdnTuneError: If space, experiment, data, run folder, storage or cluster are at fault, or all trials failed.
        KeyboardInterrupt: If it was interrupted; the same call goes on.
    """
    check_versions()
    found, base = load_space(space, overrides, settings, experiment)
    folder = Path("runs") / found.name if run is None else path_of(run, "run")
    warm = tuple(path_of(each, "warm_start") for each in warm_start)
    if idle := without_effect(base, found):
        _LOG.warning("%s", idle)
    prepare(address)  # before Ray is imported
    from cdn_tune.tuning.search import SearchOptions
    from cdn_tune.tuning.search import search as run_search

    background = Background()
    ended, changed = _each_ended(background.callback(on_trial)), background.callback(on_change)
    options = SearchOptions(
        trials=trials,
        add_trials=add_trials,
        address=address,
        storage=storage,
        resume=resume,
        retry_failed=retry_failed,
        warm_start=warm,
        stop=background.stop,
    )

    def work() -> None:
        with ExitStack() as stack:
            show: Callable[[SearchState], None] | None = None
            if progress:
                from cdn_tune.cli.show.live import SearchProgress

                parameters, metric = list(found.parameters), base.eval.metric
                shown = SearchProgress(parameters, metric, found.objectives, found.budget)
                show = stack.enter_context(shown).on_change

            def on_change_of_state(state: SearchState) -> None:
                for call in (show, ended, changed):
                    if call is not None:
                        call(state)

            result = run_search(found, base, folder, on_change_of_state, options)
        if result.tracked and not result.interrupted:
            from cdn_tune.report.track import track_report

            if (fault := track_report(base, folder)) is not None:
                _LOG.warning("%s", fault)
        for note in result.notes:
            _LOG.info("%s", note)
        if result.audit is not None and not result.audit.is_clean:
            _LOG.warning("%s", result.audit)

    background.run(work)
    return Run(folder, storage)


def _each_ended(on_trial: Callable[[dict[str, Any]], None]) -> Callable[[SearchState], None]:
    """Returns what passes on the rows of trials that end; those that had ended before are not."""
    from cdn_tune.tuning.results.leaderboard import ENDED, filled

    known: set[int] | None = None

    def call(state: SearchState) -> None:
        nonlocal known
        rows = {row["trial"]: row for row in state.rows if row["state"] in ENDED}
        for trial in sorted(rows.keys() - known) if known is not None else ():
            on_trial(filled(rows[trial]))
        known = set(rows)

    return call
