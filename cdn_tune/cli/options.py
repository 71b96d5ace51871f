"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from cdn_tune.errors import ConfigError

Overrides = Annotated[
    list[str] | None,
    Argument(metavar="[KEY=VALUE]...", help="Dotted keys of the experiment, e.g. optim.lr=3e-4 model.map.layers=4"),
]
RunOption = Annotated[
    Path | None,
    Option(
        "--run",
        metavar="DIR",
        help="Run folder, or its URL on an object store: s3://BUCKET/NAME, gs://, abfs://.",
        show_default="runs/<name>",
    ),
]
SearchRun = Annotated[Path, Argument(metavar="RUN", help="Run folder of a search, running or ended.")]


def _prepared(address: str | None) -> str | None:
    """Returns an address as it is, after preparing this process to join the cluster there before it imports Ray."""
    if address is not None:
        from cdn_tune.distributed.address import prepare

        prepare(address)
    return address


Address = Annotated[
    str | None,
    Option(
        callback=_prepared,
        metavar="ADDR",
        help="Ray cluster to join: auto or HOST:PORT; http://HOST:8265 and ray://HOST:10001 run it there as a job.",
    ),
]
Storage = Annotated[
    str | None,
    Option(
        metavar="URL",
        help="Where the study is stored: sqlite:///FILE, postgresql://..., mysql://..., journal:///FILE. A password in "
        "it shows in ps: leave it out, and set CDN_TUNE_STORAGE to the same URL with it.",
        show_default="as the run folder records; of a new search RUN/study.journal",
    ),
]
# On every command that prints data: one JSON value is all that it then writes to standard output.
Json = Annotated[bool, Option("--json", help="Print one JSON value, and nothing else, to standard output.")]
Wait = Annotated[bool, Option("--wait/--no-wait", help="Wait until it has stopped.")]

# Of `cdn-tune cluster`.
Server = Annotated[
    str | None,
    Option(
        "--address",
        metavar="ADDR",
        help="http://HOST:8265 of the job server; or auto, HOST:PORT, ray://HOST:PORT.",
        show_default="RAY_API_SERVER_ADDRESS, RAY_ADDRESS, else auto",
    ),
]
JobArgument = Annotated[str, Argument(metavar="JOB", help="Its id, as `cluster jobs` lists it.")]
RemotePython = Annotated[str, Option(metavar="PATH", help="Python on the head node that runs the job.")]


def refuse_url(run: Path, option: str) -> None:
    """Raises `ConfigError` if a run is on an object store, for a command that writes to this machine only."""
    from cdn_tune.training.object_store.working_copy import url_of

    if url_of(run) is not None:
        raise ConfigError(f"{option} {run}: this command writes to a folder of this machine; name one")


def local_run(run: Path, models: bool = False, trials: bool = False) -> Path:
    """Returns a run's folder here, fetched from its object store with its best checkpoints or trials' metrics."""
    from cdn_tune.training.object_store.sync import fetched
    from cdn_tune.training.object_store.working_copy import url_of

    return run if url_of(run) is None else fetched(run, models, trials)
