"""What an experiment or a search space can name: samplers, stopping rules, metrics, dataset layouts, schedules.

One table of each. A row names what implements it as ``module:name``, imported once it is used, so that reading a file
of settings imports neither torch nor Optuna. To add one, write its file and its row here; a package of your own names
its row in an entry point of the table's group (`cdn_tune.plugins`), or a program adds it by `Table.add`, and may give
the object itself in place of its name. Everything else (the values that a file may hold, its checks, the reference of
keys, the JSON Schemas, errors) follows from the row.
"""

import difflib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from cdn_tune import plugins
from cdn_tune.errors import ConfigError

Reference = str | Callable[..., Any] | Any  # "module:name", or the object itself


def resolve(reference: Reference) -> Any:
    """Returns the object that a row's reference names; raises a `ConfigError` if it cannot be imported."""
    if not isinstance(reference, str):
        return reference
    try:
        return pkgutil.resolve_name(reference)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{reference} cannot be imported ({error}); mend it, or install what it needs") from error


class _Row(Protocol):
    @property
    def meaning(self) -> str: ...


R = TypeVar("R", bound=_Row)


class Table(Mapping[str, R]):
    """Rows by name. As an annotation of a configuration's field, ``Annotated[str, TABLE]``, it allows its names only.

    Its own rows come first; those of installed packages are imported when one of its own is not what is asked for.

    Args:
        kind: What errors call a row.
        row: Its type.
        rows: The rows.
        group: Of the entry points by which installed packages add rows.
    """

    def __init__(self, kind: str, row: type[R], rows: Mapping[str, R], group: str) -> None:
        self.kind, self.group = kind, group
        self._type, self._rows = row, dict(rows)

    def __getitem__(self, name: str) -> R:
        return self._rows[name] if name in self._rows else self._installed()[name]

    def __iter__(self) -> Iterator[str]:
        yield from tuple(self._rows)
        yield from tuple(self._installed())

    def __len__(self) -> int:
        return len(self._rows) + len(self._installed())

    __hash__ = object.__hash__  # pydantic and typing keep annotations in sets
    __eq__ = object.__eq__

    def add(self, name: str, row: R) -> R:
        """Adds a row and returns it; raises a `ValueError` if the name is taken."""
        if name in self:
            raise ValueError(f"{self.kind} {name} exists already; choose another name")
        self._rows[name] = row
        return row

    def __delitem__(self, name: str) -> None:
        del self._rows[name]

    def _installed(self) -> Mapping[str, R]:
        return plugins.installed(self.group, self._rows, self._check_row)

    def _check_row(self, name: str, row: Any) -> None:
        if not isinstance(row, self._type):
            raise TypeError(f"it is no cdn_tune.config.tables.{self._type.__name__}")
        if not name.isprintable() or " " in name:
            raise ValueError("the name has spaces or other characters that no file could write; choose another")

    def check(self, name: str) -> str:
        """Returns a name of the table; raises a `ValueError` that names the nearest, or all, for any other."""
        if name in self:
            return name
        near = difflib.get_close_matches(name, self, n=1)
        mend = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(self)}"
        raise ValueError(f"{name!r} is wrong: no such {self.kind}; {mend}")

    def describe(self) -> str:
        """Returns all names with their meanings in one line."""
        return "; ".join(f"{name}: {row.meaning}" for name, row in self.items())

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self), "description": self.describe()}


@dataclass(frozen=True)
class Sampler:
    """How the next trial is proposed. `tuning.study.samplers` uses the rows.

    Attributes:
        meaning: One phrase for the reference of keys, here and in the other tables.
        build: From `SamplerConfig` and the seed of one proposal to Optuna's sampler; None where `enumerates`.
        show: From the study's trials, directions and the distributions of the modelled parameters to those it is shown.
        order: From a trial to its place in an order, or None; `show` is then given the first ones (`best`), kept in it.
        models: Which parameters it proposes together: those that every trial has (``common``), the numeric ones of
            these (``numeric``), what it chooses itself (``own``), none; the others are drawn at random.
        startup: Whether trials are random before `startup_trials` results.
        enumerates: Whether it goes through all points of a finite space.
        conditions: Whether the space may have conditions and values per layer.
        objectives: Whether there may be several.
    """

    meaning: str
    build: Reference | None = None
    show: Reference = "cdn_tune.tuning.study.samplers:with_values"
    order: Reference | None = None
    models: Literal["own", "common", "numeric", "none"] = "common"
    startup: bool = False
    enumerates: bool = False
    conditions: bool = True
    objectives: bool = True


_S = "cdn_tune.tuning.study.samplers:"
SAMPLERS = Table(
    "sampler",
    Sampler,
    {
        "tpe": Sampler(
            "multivariate tree-structured Parzen estimator",
            f"{_S}build_tpe",
            f"{_S}for_tpe",
            f"{_S}tpe_place",
            "own",
            startup=True,
        ),
        "gp": Sampler("Gaussian process", f"{_S}build_gp", f"{_S}for_gp", startup=True),
        "cmaes": Sampler("CMA-ES", f"{_S}build_cmaes", models="numeric", startup=True, objectives=False),
        "nsga2": Sampler("genetic, NSGA-II", f"{_S}build_nsga2"),
        "nsga3": Sampler("genetic, NSGA-III", f"{_S}build_nsga3"),
        "qmc": Sampler("scrambled Sobol sequence", f"{_S}build_qmc"),
        "random": Sampler("at random", f"{_S}build_random", models="none"),
        "grid": Sampler("all points of a finite space", enumerates=True, conditions=False),
        "brute_force": Sampler("the same, conditions too", enumerates=True),
    },
    "cdn_tune.samplers",
)


@dataclass(frozen=True)
class StoppingRule:
    """When a trial that lags behind is stopped. `tuning.study.stopping_rules` uses the rows.

    Attributes:
        build: From `EarlyStoppingConfig` to Optuna's pruner; None where none decides.
        compares: What a report is compared with: other trials' ``reports`` as they are, each other trial's
            ``last report`` that is not later, or the ``queries`` of the best complete trial.
        brackets: ``one`` or ``all`` that fit into a trial, where trials are compared at the rungs of brackets; at a
            rung they can be paused. `tuning.study.rungs` decides there.
    """

    meaning: str
    build: Reference | None = None
    compares: Literal["reports", "last report", "queries"] = "reports"
    brackets: Literal["", "one", "all"] = ""


_R = "cdn_tune.tuning.study.stopping_rules:"
STOPPING_RULES = Table(
    "stopping rule",
    StoppingRule,
    {
        "asha": StoppingRule("asynchronous successive halving", brackets="one"),
        "hyperband": StoppingRule("several of those", brackets="all"),
        "median": StoppingRule("worse than half of the trials so far", f"{_R}build_median", "last report"),
        "percentile": StoppingRule("worse than that share of trials so far", f"{_R}build_percentile", "last report"),
        "wilcoxon": StoppingRule(
            "significantly worse than the best trial, query by query", f"{_R}build_wilcoxon", "queries"
        ),
        "curve": StoppingRule("unlikely to reach the best by its end, by how far others were", f"{_R}build_curve"),
        "patience": StoppingRule("no better for a while", f"{_R}build_patience"),
        "none": StoppingRule("every trial ends"),
    },
    "cdn_tune.stopping_rules",
)


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes after the warm-up; `build` is a subclass of `training.step.optimiser.Schedule`."""

    meaning: str
    build: Reference


_O = "cdn_tune.training.step.optimiser:"
SCHEDULES = Table(
    "schedule",
    Schedule,
    {
        "constant": Schedule("as it is", f"{_O}Constant"),
        "cosine": Schedule("to zero over all steps", f"{_O}Cosine"),
        "milestones": Schedule("x0.1 after each epoch of optim.milestones", f"{_O}Milestones"),
        "plateau": Schedule("x0.8 when the training loss stops falling", f"{_O}Plateau"),
        "plateau_reversed": Schedule(
            "x0.8 when the val loss has not risen for 20 epochs, as 2D-TAN's code does by mistake",
            f"{_O}PlateauReversed",
        ),
    },
    "cdn_tune.schedules",
)


@dataclass(frozen=True)
class Dataset:
    """How annotations and features of a dataset lie on disk; `layout` is a `data.layouts.Layout`."""

    meaning: str
    layout: Reference


LAYOUTS = Table(
    "dataset layout",
    Dataset,
    {
        "charades_sta": Dataset("Charades-STA", "cdn_tune.data.charades:LAYOUT"),
        "tacos": Dataset("TACoS", "cdn_tune.data.videos_json:TACOS"),
        "activitynet": Dataset("ActivityNet Captions", "cdn_tune.data.videos_json:ACTIVITYNET"),
        "charades_cd": Dataset("Charades-CD", "cdn_tune.data.changing_distributions:CHARADES"),
        "activitynet_cd": Dataset("ActivityNet-CD", "cdn_tune.data.changing_distributions:ACTIVITYNET"),
        "jsonl": Dataset("your own data", "cdn_tune.data.jsonl:LAYOUT"),
    },
    "cdn_tune.layouts",
)


@dataclass(frozen=True)
class Metric:
    """A number per query, in [0, 1], the greater the better; a split's metric is its mean over the queries.

    Attributes:
        per_query: From `moments.metrics.Answers`, and ``n`` and ``iou`` if the name has them, to float64 [Q].
        depth: Moments per query that it reads; n, if the name has it.
        on_val: Whether val is measured by it in any case; eval.metric always is.
        several: Whether it repeats another one where no query has several true moments; it is then left out.
        table: Title of the table of its own in which an evaluation has it; "": in the first one.
    """

    meaning: str
    per_query: Reference
    depth: int = 1
    on_val: bool = True
    several: bool = False
    table: str = ""


_M = "cdn_tune.moments.metrics:"
AP_MOMENTS = 10  # of QVHighlights' evaluation
METRICS = Table(  # in the order of every table; names with {n} and {iou} stand for eval.recalls and eval.ious
    "metric",
    Metric,
    {
        "R{n}@{iou}": Metric("share of queries with a moment of IoU above {iou} among the first {n}", f"{_M}recall"),
        "mIoU": Metric("IoU of the first moment", f"{_M}first_iou"),
        "dR{n}@{iou}": Metric(
            "the same recall, each hit discounted by how far its ends are off",
            f"{_M}discounted_recall",
            on_val=False,
            table="discounted recall",
        ),
        "allR{n}@{iou}": Metric(
            "share of a query's true moments with an IoU above {iou} with one of the first {n}",
            f"{_M}recall_of_all",
            on_val=False,
            several=True,
            table="recall of all true moments",
        ),
        "mAP@{iou}": Metric(
            "average precision at one IoU",
            f"{_M}average_precision",
            AP_MOMENTS,
            on_val=False,
            table="average precision",
        ),
        "mAP": Metric(
            "its mean over IoU 0.5, 0.55 to 0.95",
            f"{_M}mean_average_precision",
            AP_MOMENTS,
            on_val=False,
            table="average precision",
        ),
    },
    "cdn_tune.metrics",
)


@dataclass(frozen=True)
class NamedMetric:
    """A metric with the settings in its name, ``n`` and ``iou``, as far as the name has them."""

    row: Metric
    settings: dict[str, Any]

    @property
    def depth(self) -> int:
        """Moments per query that it reads."""
        return int(self.settings.get("n", self.row.depth))


def table_of(name: str) -> str:
    """Returns the title of the table of its own in which an evaluation has a metric; "" if it is in the first one."""
    try:
        return find_metric(name).row.table
    except ValueError:  # of a package that is not installed here
        return ""


def find_metric(name: str) -> NamedMetric:
    """Returns the metric of a name such as ``R1@0.5``; raises a `ValueError` if there is none."""
    for template, row in METRICS.items():
        pattern = re.escape(template).replace(r"\{n\}", r"(?P<n>[1-9]\d*)").replace(r"\{iou\}", r"(?P<iou>[\d.e-]+)")
        if (found := re.fullmatch(pattern, name)) is None:
            continue
        try:
            kinds = {"n": int, "iou": float}
            settings = {key: kinds[key](text) for key, text in found.groupdict().items()}
        except ValueError:
            continue
        if 0 <= settings.get("iou", 0) <= 1 and _filled(template, **settings) == name:
            return NamedMetric(row, settings)
    known = [_filled(template, n=1, iou=0.5) for template in METRICS]
    raise ValueError(f"metric {name!r} is unknown; write one such as {', '.join(known)}")


def metric_names(
    recalls: Sequence[int], ious: Sequence[float], on_val: bool = False, several: bool = True
) -> tuple[str, ...]:
    """Returns the names of metrics at these n and IoUs, in table order.

    Args:
        recalls: The n.
        ious: IoU thresholds.
        on_val: Only those that val is measured by.
        several: Whether a query has several true moments; if not, without those that tell nothing then.
    """
    wanted = [name for name, row in METRICS.items() if (row.on_val or not on_val) and (several or not row.several)]
    return tuple(dict.fromkeys(_filled(template, n, iou) for template in wanted for n in recalls for iou in ious))


def metrics_depth(names: Sequence[str]) -> int:
    """Returns how many moments per query some metrics read."""
    return max(find_metric(name).depth for name in names)


def recall_name(n: int, iou: float) -> str:
    """Returns the metric's name, e.g. ``R1@0.5``."""
    return f"R{n}@{iou:g}"


def _filled(template: str, n: int = 1, iou: float = 0.5) -> str:
    return template.replace("{n}", str(n)).replace("{iou}", f"{iou:g}")
