"""The checks before a search starts: what would fail hours later is one line now, with its remedy."""

import contextlib
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.data.batches import training_batches
from cdn_tune.data.files import available_cpus
from cdn_tune.distributed.cluster import slots
from cdn_tune.distributed.ray import ray
from cdn_tune.errors import CdnTuneError, ConfigError, RunError, SearchError
from cdn_tune.training.object_store.working_copy import place_of
from cdn_tune.training.train_trial import open_data
from cdn_tune.tuning.checkpoints.checkpoint_files import disk_used
from cdn_tune.tuning.planning.random_points import draw, never_sampled
from cdn_tune.tuning.storage.check import check_shared, check_storage, existing, file_system, is_networked
from cdn_tune.tuning.study.candidates import GB, Candidates, cost

_Value = TypeVar("_Value", int, str)
_DRAWN = 16  # points over which the largest checkpoint is sought
_TIGHT = 0.8  # share of the free space that is worth a warning
_FLOAT_BYTES = 4
_ADDRESS, _HEAD = "node:", "node:__internal_head__"  # resources of Ray's own


def preflight(
    space: SearchSpace,
    candidates: Candidates,
    run: Path,
    storage: str,
    nodes: Sequence[Mapping[str, float]],
    trainable: object = None,
    trials: int | None = None,
) -> list[str]:
    """Checks a search before it starts, without writing anything; returns warnings.

    Args:
        space: The space, as `load_space` has checked it.
        candidates: Its points.
        run: The run folder; need not exist.
        storage: The study's URL.
        nodes: Each node's resources in Ray's form, such as ``{"CPU": 8.0, "GPU": 2.0, "node:10.0.0.1": 1.0}``.
        trainable: What is sent to the workers.
        trials: Trials in all, in place of the space's.

    Raises:
        CdnTuneError: The first thing that would go wrong.
    """
    checks = _checks(space, candidates, run, storage, nodes, trainable, trials or space.trials)
    return [each for check in checks for each in _lines(check())]


def findings(
    space: SearchSpace,
    candidates: Candidates,
    run: Path,
    storage: str,
    nodes: Sequence[Mapping[str, float]],
    trials: int | None = None,
) -> tuple[list[str], list[str]]:
    """Makes the checks of :func:`preflight`, all of them; returns errors and warnings."""
    errors: list[str] = []
    warnings: list[str] = []
    for check in _checks(space, candidates, run, storage, nodes, None, trials or space.trials):
        try:
            warnings += _lines(check())
        except CdnTuneError as error:
            errors.append(str(error))
    return errors, warnings


def check_picklable(thing: object) -> None:
    """Refuses what cannot be sent to a worker.

    Raises:
        SearchError: Naming what does not pickle.
    """
    try:
        ray.cloudpickle.dumps(thing)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        name = getattr(thing, "__name__", type(thing).__name__)
        raise SearchError(
            f"{name} cannot be sent to the workers ({reason}); it holds something bound to this process"
        ) from None


def holding(space: SearchSpace, slots: int, trials: int) -> int:
    """Returns the most trials that have checkpoints to go on from: those that run at once, or all where trials pause.

    Where they do, none is paused any more when the best are confirmed.

    Args:
        space: What is searched.
        slots: Trials that run at once.
        trials: Trials in all, confirmations included.
    """
    return max(slots, trials - space.confirm.trials) if space.early_stopping.mode == "promote" else slots


def check_confirm(space: SearchSpace, trials: int) -> None:
    """Refuses a search of so many trials, confirmations included, that leave too few to confirm.

    Raises:
        ConfigError: With the numbers.
    """
    top, seeds, taken = space.confirm.top, space.confirm.seeds, space.confirm.trials
    if top and trials < taken + top:
        raise ConfigError(
            f"confirm: top={top} with seeds={seeds} takes {taken} of {trials} trials, and leaves "
            f"{max(trials - taken, 0)} to find the best {top} among; allow {taken + top} trials, or lower confirm"
        )


def check_disk(space: SearchSpace, candidates: Candidates, run: Path, slots: int) -> str | None:
    """Refuses a search whose checkpoints would fill the disk; returns a warning if it will be tight.

    What the run folder's checkpoints occupy already counts as free.

    Raises:
        ConfigError: If ``disk_budget_gb`` is too small for one trial beside the best checkpoint, or for all where
            trials pause.
        RunError: If the disk is too small for the trials that run at once and the kept checkpoints, as far as
            ``disk_budget_gb`` lets them grow.
    """
    running, kept = checkpoint_sizes(candidates)
    at_least, at_most = max(space.confirm.top, 1), max(space.confirm.top, space.keep)
    budget, need = space.disk_budget_gb, slots * running + at_most * kept
    held = "paused ones included" if space.early_stopping.mode == "promote" else "at once"
    where = f"{slots} trials {held} and {at_most} kept checkpoints need up to {need:.3g} GB"
    remedy = "lower keep, or bound checkpoint_gb in constraints"
    if budget is not None and running + at_least * kept > budget:
        held = "the best checkpoint" if at_least == 1 else f"a checkpoint of each of the {at_least} confirmed"
        one = f"one trial and {held} need up to {running + at_least * kept:.3g} GB"
        raise ConfigError(f"disk_budget_gb={budget:g}: {one}; raise it, or bound checkpoint_gb in constraints")
    if budget is not None and need > budget and space.early_stopping.mode == "promote":
        raise ConfigError(
            f"disk_budget_gb={budget:g}: {where}, for all but the best may be paused with their checkpoints; raise it "
            f"to {need:.3g}, lower trials or keep, bound checkpoint_gb in constraints, or use early_stopping.mode: stop"
        )
    if budget is not None and need > budget:
        return f"disk_budget_gb={budget:g}: {where}; fewer will run at once, and fewer be kept"
    free = (shutil.disk_usage(existing(run)).free + disk_used(run)) / GB
    if need > free:
        raise RunError(f"{run}: {where}, the disk has {free:.3g} GB free; choose another --run folder, {remedy}")
    return f"{run}: {where}, of {free:.3g} GB free" if need > _TIGHT * free else None


def disk_gb(space: SearchSpace, candidates: Candidates, slots: int) -> float:
    """Returns the most, in GB, that checkpoints occupy: of the trials that run at once, and the kept ones."""
    running, kept = checkpoint_sizes(candidates)
    return slots * running + max(space.confirm.top, space.keep) * kept


def largest_checkpoint(candidates: Candidates) -> int:
    """Returns the most bytes that the checkpoints of one trial occupy, over the points of a space."""
    return int(checkpoint_sizes(candidates)[0] * GB)


def checkpoint_sizes(candidates: Candidates) -> tuple[float, float]:
    """Returns the most, in GB, that the checkpoints of a running trial occupy, and a kept one."""
    points = draw(candidates, _DRAWN, leave_out=("memory_gb",))
    experiments = [point.experiment for point in points if point.experiment is not None]
    for point in (*candidates.points(), _corner(candidates)):
        if candidates.judge(point, leave_out=("memory_gb",)).reason is None:
            experiments.append(candidates.experiment(point))
    experiments = experiments or [candidates.base]
    running = max(cost("checkpoint_gb", experiment) for experiment in experiments)
    kept = max(cost("parameters", experiment) for experiment in experiments) * _FLOAT_BYTES / GB
    return running, kept


def _corner(candidates: Candidates) -> dict[str, Any]:
    """Returns the point at which every number is largest; as a rule the largest model, if constraints let it start."""
    point = {}
    for key, parameter in candidates.space.parameters.items():
        numbers = [value for value in parameter.probes if isinstance(value, int | float)]
        if numbers:
            point[key] = max(numbers)
    return candidates.spread(point)


def check_budget(space: SearchSpace) -> None:
    """Refuses a budget that would never end anything.

    Raises:
        ConfigError: If it counts GPU-hours and trials take no GPU.
    """
    hours = space.budget.gpu_hours
    if hours is not None and space.resources.gpus_per_worker == 0:
        raise ConfigError(
            f"budget.gpu_hours={hours:g}: trials take no GPU (resources.gpus_per_worker=0), so it would never be "
            "spent; use budget.hours"
        )


def most_steps(space: SearchSpace, experiments: Iterable[Experiment]) -> int | None:
    """Returns the most optimiser steps of a trial, where progress is counted in them; else None.

    A batch is of queries or of videos, as the family has it, so the train split is opened as each reads it.

    Args:
        space: What is searched.
        experiments: The base experiment of every family.

    Raises:
        DataError: If the data cannot be used.
        ConfigError: If early stopping begins after the last step of every trial.
    """
    stopping = space.early_stopping
    if stopping.unit != "step":
        return None
    steps = 0
    for experiment in experiments:
        train = open_data(experiment.data, experiment.model.inputs.sequences)["train"]
        epochs = max(_probes(space, "train.epochs", experiment.train.epochs))
        batch_size = min(_probes(space, "train.batch_size", experiment.train.batch_size))
        made_of = _probes(space, "train.batch_of", experiment.batch_of)
        each = (len(training_batches(train, batch_size, experiment.seed, 1, of == "videos")) for of in made_of)
        steps = max(steps, epochs * max(each))
    if stopping.name != "none" and stopping.least > steps:
        raise ConfigError(
            f"early_stopping.min_resource={stopping.min_resource}: a trial has at most {steps} steps, so none would "
            "ever be stopped; lower it"
        )
    return steps


def this_machine() -> dict[str, float]:
    """Returns the resources of a Ray started here, without starting it."""
    import torch

    cpus = available_cpus()
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cpus = max(1, min(cpus, int(quota) // int(period)))
    gpus = torch.cuda.device_count()
    return {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}


def _checks(
    space: SearchSpace,
    candidates: Candidates,
    run: Path,
    storage: str,
    nodes: Sequence[Mapping[str, float]],
    trainable: object,
    trials: int,
) -> Iterator[Callable[[], list[str] | str | None]]:
    """Yields the checks, cheapest first; each returns its warnings."""
    at_once, machines = 1, _machines(nodes)

    def placing() -> None:
        nonlocal at_once
        at_once = slots(space.resources, nodes)

    yield lambda: check_budget(space)
    yield lambda: never_sampled(candidates)
    if trainable is not None:
        yield lambda: check_picklable(trainable)
    yield placing
    yield lambda: check_shared(run, storage)
    yield lambda: check_storage(storage, machines)
    yield lambda: _shared(run, machines)
    yield lambda: check_disk(space, candidates, run, holding(space, at_once, trials))


def _lines(warnings: list[str] | str | None) -> list[str]:
    return [warnings] if isinstance(warnings, str) else warnings or []


def _machines(nodes: Sequence[Mapping[str, float]]) -> int:
    """Returns how many machines the nodes are on; Ray names each one's address among its resources."""
    addresses = {name for node in nodes for name in node if name.startswith(_ADDRESS) and name != _HEAD}
    return len(addresses) or len(nodes)


def _shared(run: Path, machines: int) -> str | None:
    """Returns a warning of a run folder that other machines may not see."""
    kind = file_system(run)
    if machines < 2 or place_of(run) is not None or kind is None or is_networked(kind):
        return None
    return (
        f"{run}: lies on a local file system ({kind}), and {machines} machines must reach it; is it exported to them?"
    )


def _probes(space: SearchSpace, key: str, base: _Value) -> list[_Value]:
    values: Sequence[Any] = space.parameters[key].probes if key in space.parameters else (base,)
    return [value for value in values if isinstance(value, type(base))]
