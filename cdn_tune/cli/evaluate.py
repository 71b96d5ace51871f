"""`cdn-tune evaluate`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cdn_tune.cli.app import AddressOption, Overrides, app


class TrainOn(str, Enum):
    """What the winner is trained on again."""

    TRAIN = "train"
    BOTH = "train+val"


class Protocol(str, Enum):
    """Where the epoch is chosen: on val, or on test as the published code does."""

    HONEST = "honest"
    PUBLISHED = "published"


class Format(str, Enum):
    """Formats of predictions."""

    QVHIGHLIGHTS = "qvhighlights"
    CHARADES_STA = "charades_sta"


class SplitName(str, Enum):
    """The splits."""

    TEST = "test"
    VAL = "val"
    TRAIN = "train"


@app.command(
    epilog="Examples: cdn-tune evaluate runs/charades-quick --seeds 5 --choose-nms   ·   "
    "cdn-tune evaluate --predictions theirs.jsonl --data /data/charades"
)
def evaluate(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Folder of a train or search run.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Measure the best K of the search.")] = 1,
    checkpoint: Annotated[Path | None, typer.Option(metavar="FILE", help="Measure this checkpoint.")] = None,
    front: Annotated[bool, typer.Option("--front", help="Measure the Pareto front of the search.")] = False,
    seeds: Annotated[int, typer.Option(min=0, metavar="N", help="Train the winner again under N other seeds.")] = 0,
    train_on: Annotated[
        TrainOn, typer.Option(help="What they train on; train+val for the winner's number of epochs.")
    ] = TrainOn.TRAIN,
    choose_nms: Annotated[bool, typer.Option("--choose-nms", help="Choose the NMS threshold on val.")] = False,
    protocol: Annotated[
        Protocol, typer.Option(help="published: train again and choose the epoch on test, as the published code does.")
    ] = Protocol.HONEST,
    workers: Annotated[int, typer.Option(min=1, help="Ray tasks at a time; the numbers stay the same.")] = 1,
    address: AddressOption = None,
    score_maps: Annotated[bool, typer.Option("--score-maps", help="Write RUN/score_maps.hdf5.")] = False,
    export_format: Annotated[
        list[Format] | None, typer.Option(help="Write the predictions in this format too; may be repeated.")
    ] = None,
    other_data: Annotated[bool, typer.Option("--other-data", help="Go on if the data have changed.")] = False,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score these predictions instead of a run.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="With --predictions: the annotations.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="With --predictions: their layout.", show_default="recognised")
    ] = None,
    split: Annotated[SplitName, typer.Option(help="With --predictions: the split.")] = SplitName.TEST,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="With --predictions: write JSON here.")] = None,
) -> None:
    """Measure a run on the test split, with intervals; writes RUN/evaluation.json and RUN/predictions.jsonl.

    Overrides may name where the data are now (data.root=DIR); how often the test split was opened is counted.
    """
    from cdn_tune.cli.show.commands import run_evaluate, run_score

    if predictions is not None:
        run_score(predictions, run, data, dataset, split.value, overrides or [], output)
    else:
        run_evaluate(
            run,
            overrides or [],
            top=top,
            checkpoint=checkpoint,
            front=front,
            seeds=seeds,
            train_on=train_on.value,
            choose_nms=choose_nms,
            protocol=protocol.value,
            workers=workers,
            address=address,
            score_maps=score_maps,
            formats=tuple(form.value for form in export_format or ()),
            other_data=other_data,
        )
