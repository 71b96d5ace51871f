"""`cdn-tune evaluate`: a run, or a file of predictions, on the test split."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from cdn_tune.cli.app import app
from cdn_tune.cli.options import Address, Json, Overrides, local_run
from cdn_tune.cli.show.output import err, out, print_json, print_line, terminable, warn
from cdn_tune.errors import ConfigError

if TYPE_CHECKING:
    from cdn_tune.evaluation.request import Request

Split = Literal["test", "val", "train"]


class Format(str, Enum):
    """Formats of predictions."""

    QVHIGHLIGHTS = "qvhighlights"
    CHARADES_STA = "charades_sta"


@app.command(
    epilog="Examples: cdn-tune evaluate runs/charades-quick --seeds 5 --choose-nms   ·   "
    "cdn-tune evaluate --predictions theirs.jsonl --data /data/charades"
)
def evaluate(
    run: Annotated[
        Path | None, Argument(metavar="[RUN]", help="Folder of a train or search run.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    top: Annotated[int, Option(min=1, metavar="K", help="Measure the best K of the search.")] = 1,
    checkpoint: Annotated[Path | None, Option(metavar="FILE", help="Measure this checkpoint.")] = None,
    front: Annotated[bool, Option("--front", help="Measure the Pareto front of the search.")] = False,
    seeds: Annotated[int, Option(min=0, metavar="N", help="Train the winner again under N other seeds.")] = 0,
    train_on: Annotated[
        Literal["train", "train+val"], Option(help="What they train on; train+val for the winner's number of epochs.")
    ] = "train",
    choose_nms: Annotated[bool, Option("--choose-nms", help="Choose the NMS threshold on val (soft: sigma).")] = False,
    choose_nms_kind: Annotated[
        bool, Option("--choose-nms-kind", help="Choose hard or soft NMS and voting on val as well.")
    ] = False,
    protocol: Annotated[
        Literal["honest", "published"],
        Option(help="published: train again and choose the epoch on test, as the published code does."),
    ] = "honest",
    workers: Annotated[int, Option(min=1, help="Ray tasks at a time; the numbers stay the same.")] = 1,
    address: Address = None,
    score_maps: Annotated[bool, Option("--score-maps", help="Write RUN/score_maps.hdf5.")] = False,
    reject: Annotated[
        bool, Option("--reject", help="Measure too how it rejects sentences that are not in the video.")
    ] = False,
    export_format: Annotated[
        list[Format] | None, Option(help="Write the predictions in this format too; may be repeated.")
    ] = None,
    other_data: Annotated[bool, Option("--other-data", help="Go on if the data have changed.")] = False,
    probe: Annotated[
        bool, Option("--probe", help="Instead: does it look at the video? On val, with inputs changed; RUN/probe.json.")
    ] = False,
    predictions: Annotated[
        Path | None, Option(metavar="FILE", help="Score these predictions instead of a run.")
    ] = None,
    data: Annotated[Path | None, Option(metavar="DIR", help="With --predictions: the annotations.")] = None,
    dataset: Annotated[str | None, Option(help="With --predictions: their layout.", show_default="recognised")] = None,
    split: Annotated[Split | None, Option(help="With --predictions: the split.", show_default="test")] = None,
    output: Annotated[Path | None, Option(metavar="FILE", help="With --predictions: write JSON here.")] = None,
    json: Json = False,
) -> None:
    """Measure a run on the test split, with intervals; writes RUN/evaluation.json and RUN/predictions.jsonl.

    Overrides may name where the data are now (data.root=DIR); how often the test split was opened is counted.
    """
    from cdn_tune.config import parse_overrides
    from cdn_tune.evaluation.request import Request
    from cdn_tune.evaluation.scoring import Workers
    from cdn_tune.training.object_store.sync import fetched_file

    of_runs = {
        "--top": top > 1,
        "--front": front,
        "--seeds": seeds > 0,
        "--train-on": train_on != "train",
        "--choose-nms": choose_nms,
        "--choose-nms-kind": choose_nms_kind,
        "--protocol": protocol != "honest",
        "--workers": workers > 1,
        "--address": address is not None,
        "--score-maps": score_maps,
        "--reject": reject,
        "--export-format": export_format is not None,
    }
    of_checkpoints = {"--checkpoint": checkpoint is not None, "--other-data": other_data}
    of_files = {
        "--predictions": predictions is not None,
        "--data": data is not None,
        "--dataset": dataset is not None,
        "--split": split is not None,
        "--output": output is not None,
    }
    if probe:
        _refuse(of_runs | of_files, "does not go with --probe, which asks one checkpoint on val; drop one")
    elif predictions is not None:
        _refuse(of_runs | of_checkpoints, "does not go with --predictions, which scores a file; drop one")
    else:
        _refuse(of_files, "goes with --predictions FILE alone, as a run is measured on the test split; drop it")
    if predictions is not None:
        # without a run, the first override stands in its place
        given = parse_overrides([*([] if run is None else [str(run)]), *(overrides or [])])
        _score(predictions, data, dataset, split or "test", given, output, json)
        return
    with terminable("the same command does what is left of it"):
        if run is None:
            raise ConfigError("name a run folder, or a file of predictions with --predictions FILE")
        changes = parse_overrides(overrides or [])
        run = local_run(run, models=True)
        trials = None
        if front:
            from cdn_tune.tuning.results.record import front_trials

            trials = tuple(front_trials(run))
        file = None if checkpoint is None else fetched_file(checkpoint)
        if probe:
            print_probe(run, changes, Request(checkpoint=file, other_data=other_data), json)
            return
        tasks, formats = Workers(workers, address), tuple(each.value for each in export_format or ())
        request = Request(
            top=top,
            checkpoint=file,
            trials=trials,
            seeds=seeds,
            train_on=train_on,
            choose_nms=choose_nms,
            choose_nms_kind=choose_nms_kind,
            protocol=protocol,
            workers=tasks,
            score_maps=score_maps,
            reject=reject,
            formats=formats,
            other_data=other_data,
        )
        print_evaluation(run, changes, request, json)


def _refuse(options: dict[str, bool], why: str) -> None:
    """Refuses the first option that was given, which would else be ignored."""
    for flag in [flag for flag, given in options.items() if given]:
        raise ConfigError(f"{flag} {why}")


def print_evaluation(
    run: Path, overrides: dict[str, Any] | None = None, request: Request | None = None, json: bool = False
) -> None:
    """Evaluates a run, by default its best model on val, and prints the result; overrides may name its data's place."""
    from cdn_tune.evaluation.evaluate import cautions, evaluate_run, remarks
    from cdn_tune.evaluation.request import Request

    request = request or Request()
    for line in cautions(request):
        warn(line)
    with err.status("evaluating") as status:
        result = evaluate_run(run, overrides or {}, request, lambda stage: status.update(stage))
    for line in remarks(run, result):
        warn(line)
    if json:
        print_json(result)
    else:
        _print_result(run, result, request.score_maps)


def print_probe(run: Path, overrides: dict[str, Any], request: Request, json: bool = False) -> None:
    """Probes a run's checkpoint on val, and prints what remains of its score, and what to beware of."""
    from cdn_tune.cli.show.evaluation import print_planted
    from cdn_tune.cli.show.probe import probe_headline, probe_table
    from cdn_tune.evaluation.probe import probe_run
    from cdn_tune.evaluation.probe_file import PROBE, ProbeFile
    from cdn_tune.training.object_store.working_copy import shown

    with err.status("probing") as status:
        result = probe_run(run, overrides, request, lambda stage: status.update(stage))
    found = ProbeFile.model_validate(result)
    for line in (*result["damaged_checkpoints"], *found.warnings()):
        warn(line)
    if json:
        print_json(result)
        return
    out.print(probe_table(result))
    print_planted(result)
    print_line(f"{found.checkpoint}, epoch {found.epoch}; test was not opened")
    print_line(f"probe: {shown(run / PROBE)}")
    print_line(probe_headline(found), "bold green")


def _print_result(run: Path, result: dict[str, Any], score_maps: bool) -> None:
    from cdn_tune.cli.show.evaluation import headline, print_evaluation_tables, print_planted, rejection_lines
    from cdn_tune.config import Nms
    from cdn_tune.evaluation.evaluation_file import EVALUATION, EVALUATION_PUBLISHED
    from cdn_tune.evaluation.queries import PREDICTIONS
    from cdn_tune.evaluation.score_maps import SCORE_MAPS
    from cdn_tune.training.object_store.working_copy import shown

    print_evaluation_tables(result)
    if result["published"]:
        print_line("published rows were chosen on the test split; the rows above them were not", "magenta")
    print_planted(result)
    published = result["protocol"] == "published"
    nms = result["nms"]
    why = f"chosen on val by {nms['metric']}" if nms["chosen_on"] == "val" else "the experiment's"
    print_line(f"{Nms(*(nms[name] for name in Nms._fields))}, {why}")
    if published:
        print_line(f"{result['label']}; {result['reported']}")
    else:
        chosen = result["chosen_by"]
        how = "imported" if chosen["value"] is None else f"chosen by val {chosen['metric']} {chosen['value']:.4f}"
        if found := chosen["confirmed"]:
            seeds = len(found["seeds"])
            how += f" of trial {found['trial']}'s {seeds} confirmations, whose mean is {found['mean']:.4f}"
        print_line(f"{result['checkpoint']}, epoch {result['epoch']}, {how}")
    for line in rejection_lines(result):
        print_line(line)
    print_line(f"predictions: {shown(run / ('predictions-published.jsonl' if published else PREDICTIONS))}")
    if score_maps:
        print_line(f"score maps: {shown(run / SCORE_MAPS)}")
    print_line(f"evaluation: {shown(run / (EVALUATION_PUBLISHED if published else EVALUATION))}")
    print_line(headline(result), "bold green")


def _score(
    predictions: Path,
    data: Path | None,
    dataset: str | None,
    split: Split,
    overrides: dict[str, Any],
    output: Path | None,
    json: bool,
) -> None:
    """Scores a file of predictions, of any tool, and prints the result."""
    from cdn_tune.cli.show.evaluation import headline, print_evaluation_tables
    from cdn_tune.evaluation.predictions import score_predictions
    from cdn_tune.training.runs.files import write_json

    if data is None:
        raise ConfigError("--predictions FILE: name the folder of the annotations with --data DIR")
    known = {"eval.recalls": "recalls", "eval.ious": "ious", "data.val_fraction": "val_fraction"}
    for key in overrides:
        if key not in known:
            raise ConfigError(f"override {key}: with --predictions only {', '.join(known)} can be given")
    chosen = {known[key]: _numbers(key, value) for key, value in overrides.items()}
    with err.status("scoring"):
        result = score_predictions(predictions, data, dataset, split, **chosen)
    if output is not None:
        write_json(output, result)
    if json:
        print_json(result)
        return
    print_evaluation_tables(result)
    if absent := result["predictions"]["absent"]:
        print_line(f"{absent} lines are of sentences that are marked as absent; they are not scored")
    if output is not None:
        print_line(f"evaluation: {output}")
    print_line(headline(result), "bold green")


def _numbers(key: str, value: Any) -> Any:
    from cdn_tune.evaluation.queries import MOST_MOMENTS

    if key == "data.val_fraction":
        if not isinstance(value, float) or not 0 < value < 1:
            raise ConfigError(f"override {key}={value}: write a share between 0 and 1")
        return value
    listed = value if isinstance(value, list) else [value]
    if key == "eval.recalls":
        good = all(type(each) is int and 1 <= each <= MOST_MOMENTS for each in listed)
        what = f"whole numbers up to {MOST_MOMENTS:,}, such as [1, 5]"
    else:
        good, what = all(type(each) in (int, float) and 0 <= each <= 1 for each in listed), "IoUs, such as [0.5, 0.7]"
    if not listed or not good:
        raise ConfigError(f"override {key}={value}: write {what}")
    return listed
