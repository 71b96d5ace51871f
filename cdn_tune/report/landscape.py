"""Optuna's figures of what was learnt about the parameters, in the page's colours."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import optuna
from optuna import visualization
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from cdn_tune.report.figures import Figure, Plot, scale_of, titled
from cdn_tune.report.record import RunRecord
from cdn_tune.tuning.results.leaderboard import short_names
from cdn_tune.tuning.results.record import quiet
from cdn_tune.tuning.study.ranking import own

SLICES, CONTOURS, AXES = 6, 3, 8  # parameters shown at most
ENOUGH = 4  # complete trials below which importance would be noise
SHADES = 16  # of the lines of the parallel coordinates
# The fixed colours of Optuna's figures, and those of the page in their place.
_INK = {
    "rgb(66,146,198)": "@accent",
    "blue": "@accent",
    "#cccccc": "@muted",
    "#555": "@muted",
    "#888": "@grid",
    "black": "@text",
    "Grey": "@muted",
    "Gray": "@muted",
}
CONTOUR_TRIALS = 120  # a contour's grid has a row and a column per trial


def landscape(record: RunRecord) -> list[Figure]:
    """Returns parallel coordinates, importance, slices, contour and Pareto front, as far as the trials allow.

    They are drawn over this run's complete trials: a pruned trial's value is that of fewer epochs, and what it is worth
    at the end is not known.
    """
    complete = [trial for trial in own(record.trials) if trial.state == TrialState.COMPLETE and trial.values]
    keys = list(dict.fromkeys(key for trial in complete for key in trial.params))
    varied = [key for key in keys if len({repr(trial.params.get(key)) for trial in complete}) > 1]
    if len(complete) < 2 or not varied:
        return []
    short = short_names(keys)
    with quiet():  # about few trials, about experimental features
        study = _study(complete, short, dict(list(record.objectives.items())[:1]))
        figures = _of_parameters(study, [short[key] for key in varied], len(complete), record)
        if len(record.objectives) > 1:
            figures.insert(0, _pareto(complete, short, record))
    return figures


def _of_parameters(study: optuna.Study, varied: list[str], count: int, record: RunRecord) -> list[Figure]:
    target = titled(next(iter(record.objectives)))
    among = f"{count} complete trials"
    order, figures = varied, []
    if count >= ENOUGH:
        evaluator = PedAnovaImportanceEvaluator()
        importance = optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)
        order = sorted(varied, key=lambda name: -importance.get(name, 0.0))
        plot = _plot(visualization.plot_param_importances(study, evaluator, varied))
        for axis in ("xaxis", "yaxis"):  # the heading has it
            plot["layout"].get(axis, {}).pop("title", None)
        caption = f"PED-ANOVA over {among}: how far the best tenth's values differ from all values; shares sum to 1."
        height = 120 + 34 * len(varied)
        figures = [Figure("importance", "Importance of the parameters", caption, {"importance": plot}, height)]
    always = [name for name in order if all(name in trial.params for trial in _complete(study))] or order
    axes = always[:AXES]
    lines = _plot(visualization.plot_parallel_coordinate(study, axes, target_name=target))
    slices = _plot(visualization.plot_slice(study, order[:SLICES], target_name=target))
    figures += [
        Figure(
            "parallel",
            "Parallel coordinates",
            f"A line per complete trial ({count}), in the colour of its {target}." + _left_out(len(always), AXES),
            {"parallel": _bundle(lines)},
            height=420,
            width=95 * (len(axes) + 1),
        ),
        Figure(
            "slices",
            "Slices",
            f"Each parameter against {target}; the colour is the trial's number." + _left_out(len(order), SLICES),
            {"slices": slices},
            width=210 * len(order[:SLICES]),
        ),
    ]
    if count >= ENOUGH and len(always) > 1:
        thinned = _thin(study)
        some = "" if count <= CONTOUR_TRIALS else f"; {CONTOUR_TRIALS} of {among}, evenly spread"
        caption = f"{target} between trials, over pairs of the most important parameters{some}."
        views = {
            ", ".join(pair): _plot(visualization.plot_contour(thinned, list(pair), target_name=target))
            for pair in combinations(always[:CONTOURS], 2)
        }
        figures.append(Figure("contour", "Contour", caption, views, height=440))
    return figures


def _bundle(plot: Plot) -> Plot:
    """Joins the lines of trials alike in value into one trace with gaps; a trace per trial would be slow."""
    lines = [trace for trace in plot["data"] if trace.get("mode") == "lines" and trace.get("customdata")]
    others = [trace for trace in plot["data"] if not any(trace is line for line in lines)]
    heights = [float(line["y"][0]) for line in lines]  # on the first axis, that of the objective, within [0, 1]
    bundles: dict[int, Plot] = {}
    for line, height in sorted(zip(lines, heights, strict=True), key=lambda pair: pair[1]):
        shade = round(height * (SHADES - 1))
        if shade not in bundles:
            colour = {**line["line"], "color": f"@scale/{shade / (SHADES - 1):.3f}", "width": 1.5}
            bundles[shade] = {**line, "line": colour, "opacity": 0.75, "x": [], "y": [], "customdata": []}
        bundles[shade]["x"] += [*line["x"], None]
        bundles[shade]["y"] += [*line["y"], None]
        bundles[shade]["customdata"] += [*line["customdata"], ["", ""]]
    return {**plot, "data": [*bundles.values(), *others]}


def _pareto(complete: Sequence[FrozenTrial], short: dict[str, str], record: RunRecord) -> Figure:
    usable = [trial for trial in complete if trial.values and len(trial.values) == len(record.objectives)]
    study = _study(usable, short, record.objectives)
    names = [titled(name) for name in record.objectives]
    directions = record.objectives.values()
    goals = [f"{name} {direction.name.lower()}d" for name, direction in zip(names, directions, strict=True)]
    chosen: dict[str, Any] = {}
    if len(names) > 3:
        names, goals = names[:2], [*goals[:2], "further objectives are not drawn"]
        chosen = {"targets": lambda trial: (trial.values[0], trial.values[1])}
    plot = _plot(visualization.plot_pareto_front(study, target_names=names, **chosen))
    # The front before the others, in the accent colour: what counts is which trial is on it, not which came when.
    for trace in plot["data"]:
        best = "Best Trial" in str(trace.get("hovertemplate"))
        marker = {"color": "@accent" if best else "@muted", "size": 10 if best else 6, "opacity": 1 if best else 0.55}
        trace |= {"marker": marker, "name": "on the front" if best else "beaten by another", "showlegend": True}
    plot["data"].sort(key=lambda trace: trace["name"] == "on the front")
    caption = f"Complete trials that no other one beats in every objective ({'; '.join(goals)}), among the others."
    return Figure("pareto", "Pareto front", caption, {"pareto": plot}, height=460)


def _study(
    trials: Sequence[FrozenTrial], short: Mapping[str, str], objectives: Mapping[str, StudyDirection]
) -> optuna.Study:
    """Returns a study in memory of copies of the trials: short names, values in per cent, these objectives alone."""
    copies = {
        trial.number: create_trial(
            state=TrialState.COMPLETE,
            values=[value * scale_of(name) for value, name in zip(trial.values or (), objectives, strict=False)],
            params={short[key]: value for key, value in trial.params.items()},
            distributions={short[key]: value for key, value in trial.distributions.items()},
        )
        for trial in trials
    }
    return _numbered(copies, list(objectives.values()))


def _numbered(trials: Mapping[int, FrozenTrial], directions: Sequence[StudyDirection]) -> optuna.Study:
    """Returns a study whose trials have these numbers; between them are failed ones, which no figure shows."""
    study = optuna.create_study(directions=list(directions))
    gap = create_trial(state=TrialState.FAIL)
    study.add_trials(trials.get(number, gap) for number in range(max(trials) + 1))
    return study


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _thin(study: optuna.Study) -> optuna.Study:
    trials = _complete(study)
    if len(trials) <= CONTOUR_TRIALS:
        return study
    chosen = [trials[round(at * (len(trials) - 1) / (CONTOUR_TRIALS - 1))] for at in range(CONTOUR_TRIALS)]
    return _numbered({trial.number: trial for trial in chosen}, study.directions)


def _plot(figure: Any) -> Plot:
    """Returns Optuna's figure as plain values, its colours those of the page."""
    plot: Plot = json.loads(figure.to_json())
    for key in ("template", "title", "width", "height"):  # the page's own
        plot["layout"].pop(key, None)
    for note in plot["layout"].get("annotations", []):
        note["bgcolor"] = "@surface"
    _recolour(plot)
    return plot


def _recolour(value: Any) -> None:
    if isinstance(value, dict):
        if "colorscale" in value:
            value["colorscale"] = "@scale"
            value.pop("reversescale", None)
        if isinstance(value.get("color"), str) and value["color"] in _INK:
            value["color"] = _INK[value["color"]]
        for item in value.values():
            _recolour(item)
    elif isinstance(value, list):
        for item in value:
            _recolour(item)


def _left_out(count: int, shown: int) -> str:
    return f" The {shown} most important of {count} parameters." if count > shown else ""
