"""`cdn-tune import-weights`: a run made of published weights."""

import shlex
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from cdn_tune.cli.app import app
from cdn_tune.cli.options import Overrides, refuse_url
from cdn_tune.cli.show.output import print_line


@app.command(
    name="import-weights",
    epilog="Example: cdn-tune import-weights best.pkl --experiment experiments/charades/CDN-16x16-K5L8-pool.yaml "
    "--out runs/published",
)
def import_weights(
    file: Annotated[Path, Argument(metavar="FILE", help="Checkpoint of the published implementation.")],
    experiment: Annotated[str, Option(metavar="EXPERIMENT", help="Experiment whose model the weights are of.")],
    out: Annotated[Path, Option(metavar="DIR", help="Run folder to write.")],
    family: Annotated[
        str | None, Option(metavar="NAME", help="Family of the weights; the experiment's model.name must be the same.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Make a run of weights trained with the published implementation, to evaluate or to export them.

    The file is opened without running code in it; entries that are missing, unknown or of another shape are named.
    """
    from cdn_tune.config import load_experiment, parse_overrides
    from cdn_tune.errors import ConfigError
    from cdn_tune.training.import_weights import import_weights as write_run
    from cdn_tune.training.runs.checkpoint import BEST

    refuse_url(out, "--out")
    loaded = load_experiment(experiment, parse_overrides(overrides or []))
    if family not in (None, loaded.model.name):
        raise ConfigError(
            f"--family {family}: {experiment} is of model.name={loaded.model.name}; choose an experiment of that family"
        )
    write_run(file, loaded, out)
    print_line(f"best checkpoint: {out / BEST}")
    print_line(f"test split: cdn-tune evaluate {shlex.quote(str(out))}")
