"""`cdn-tune predict` and `cdn-tune export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cdn_tune.cli.app import Overrides, app


@app.command(
    epilog='Example: cdn-tune predict runs/charades --features clips.npy --duration 31.5 --query "he sits down"'
)
def predict(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run, kept checkpoint, checkpoint file, or exported folder.")
    ],
    features: Annotated[Path, typer.Option(metavar="FILE", help="Frame features: .npy, or HDF5 by video.")],
    video: Annotated[
        str | None, typer.Option(metavar="ID", help="Which video of FILE.", show_default="the only one")
    ] = None,
    query: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A sentence; may be given again.")] = None,
    queries: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text file with a sentence a line; empty lines are left out.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Moments per query.")] = 5,
    duration: Annotated[
        float | None,
        typer.Option(metavar="S", help="Length of the video, in seconds.", show_default="from the run's annotations"),
    ] = None,
    frame_rate: Annotated[
        float | None, typer.Option(metavar="HZ", help="Frame features per second, in place of --duration.")
    ] = None,
    window: Annotated[
        float | None, typer.Option(metavar="S", help="Slide a window of so many seconds over a long video.")
    ] = None,
    stride: Annotated[
        float | None, typer.Option(metavar="S", help="From one window to the next.", show_default="half a window")
    ] = None,
    nms_threshold: Annotated[
        float | None,
        typer.Option(metavar="IOU", help="Drop what overlaps a better one by more.", show_default="as evaluated"),
    ] = None,
    word_vectors: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Word vectors, if no longer where the experiment says.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the moments of a video that sentences speak of: ranked, in seconds, with scores."""
    from cdn_tune.cli.show.predict import Question, run_predict

    run_predict(
        run,
        Question(features, video, tuple(query or ()), queries, top, duration, frame_rate, window, stride),
        nms_threshold,
        word_vectors,
        as_json=json_output,
    )


@app.command(epilog="Example: cdn-tune export runs/charades --out models/charades")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run, kept checkpoint, or checkpoint file.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; must be new or empty.")],
    overrides: Overrides = None,
    all_words: Annotated[
        bool, typer.Option("--all-words", help="Carry all words of the vectors file, not the dataset's alone.")
    ] = False,
    torch_export: Annotated[
        bool, typer.Option("--torch-export", help="Also write the graph for torch.export.load, checked.")
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also write ONNX, checked; needs onnx, onnxscript, onnxruntime.")
    ] = False,
) -> None:
    """Write the run's best model as a folder that loads anywhere: weights, words, a model card.

    Overrides may name where the data are now (data.root=DIR, data.word_vectors=FILE).
    """
    from cdn_tune.cli.show.predict import run_export

    run_export(run, out, overrides or [], all_words=all_words, torch_export=torch_export, onnx=onnx)
