"""`cdn-tune export`: a run's best model as a folder that loads anywhere."""

import shlex
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from cdn_tune.cli.app import app
from cdn_tune.cli.options import Overrides
from cdn_tune.cli.show.output import err, print_line, warn


@app.command(epilog="Example: cdn-tune export runs/charades --out models/charades")
def export(
    run: Annotated[Path, Argument(metavar="RUN", help="Run, kept checkpoint, or checkpoint file.")],
    out: Annotated[Path, Option(metavar="DIR", help="Folder to write; must be new or empty.")],
    overrides: Overrides = None,
    all_words: Annotated[
        bool, Option("--all-words", help="Carry all words of the vectors file, not the dataset's alone.")
    ] = False,
    torch_export: Annotated[
        bool, Option("--torch-export", help="Also write the graph for torch.export.load, checked.")
    ] = False,
    onnx: Annotated[
        bool, Option("--onnx", help="Also write ONNX, checked; needs onnx, onnxscript, onnxruntime.")
    ] = False,
) -> None:
    """Write the run's best model as a folder that loads anywhere: weights, words, a model card.

    Overrides may name where the data are now (data.root=DIR, data.word_vectors=FILE, data.tokens=FILE).
    """
    from cdn_tune.config import parse_overrides
    from cdn_tune.evaluation.choose_checkpoint import fetch_model
    from cdn_tune.evaluation.export import export_run
    from cdn_tune.training.object_store.working_copy import url_of

    run = run if url_of(run) is None else fetch_model(run)
    changes = parse_overrides(overrides or [])
    with err.status("exporting"):
        written = export_run(run, out, changes, all_words=all_words, torch_export=torch_export, onnx=onnx)
    for line in written.damaged:
        warn(line)
    for name, size in written.files.items():
        print_line(f"{out / name}  {size:,} bytes")
    model = ""
    if written.text_model is None:
        print_line(f"{written.words:,} words have a vector in it")
    else:
        print_line(f"it reads token features of {written.text_model}, which is not in it")
        model = " --text-model DIR"
    print_line(f'try: cdn-tune predict {shlex.quote(str(out))}{model} --features FILE --query "..."')
