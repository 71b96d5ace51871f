"""`cdn-tune cluster`: what a cluster has, and commands that run on it as jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cdn_tune.cli.app import app

cluster_app = typer.Typer(
    help="See what a Ray cluster has; run searches on it as jobs, and fetch what they found.", no_args_is_help=True
)
app.add_typer(cluster_app, name="cluster")

Server = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDR",
        help="http://HOST:8265 of the job server; or auto, HOST:PORT, ray://HOST:PORT.",
        show_default="RAY_API_SERVER_ADDRESS, RAY_ADDRESS, else auto",
    ),
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Its id, as `cluster jobs` lists it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PythonOption = Annotated[str, typer.Option(metavar="PATH", help="Python on the head node that runs the job.")]


@cluster_app.command(epilog="Example: cdn-tune cluster status --address auto --space search_spaces/tacos-core.yaml")
def status(
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Show this job instead of the nodes.", show_default=False)
    ] = None,
    address: Server = None,
    space: Annotated[
        str | None,
        typer.Option(metavar="SPACE", help="Count trials of this search space.", show_default="one CPU, GPU"),
    ] = None,
    json: Json = False,
) -> None:
    """Show nodes, what of them is free, how many trials fit, and which node has other versions or a wrong clock."""
    if job is not None:
        from cdn_tune.cli.show.jobs import run_job_status

        run_job_status(job, address, json)
    else:
        from cdn_tune.cli.show.cluster import run_cluster_status

        run_cluster_status(address, space, json)


@cluster_app.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Example: cdn-tune cluster submit --address http://HOST:8265 -- search search_spaces/charades-core.yaml "
    "data.root=/shared/charades --run /shared/runs/core",
)
def submit(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="search, train, evaluate, with their arguments.")
    ],
    address: Server = None,
    working_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Its files go with the job, but for data, runs, and what git ignores.")
    ] = Path(),
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave these out too, as in a .gitignore.")
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Ship no files: the nodes have cdn-tune, and the search space.")
    ] = False,
    wheel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Run this cdn-tune, in place of what the nodes have.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Hand over this environment variable, as it is here.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-wait", help="Follow its log to the end.")] = True,
    python: PythonOption = "python",
    cpus: Annotated[float, typer.Option(min=0, help="CPUs for the command itself, besides its trials.")] = 0.0,
    gpus: Annotated[
        float, typer.Option(min=0, help="GPUs for the command itself, e.g. a `train` of one worker.")
    ] = 0.0,
) -> None:
    """Run a command on the cluster as a job, which outlives this terminal, and follow its log.

    The exit code is the job's. Ctrl-C leaves the job running.
    """
    from cdn_tune.cli.show.submit import Shipping, run_submit

    name, values = understood(command)
    shipping = Shipping(
        None if installed else working_dir, exclude or (), wheel, env or (), python=python, cpus=cpus, gpus=gpus
    )
    run_submit(command, name, values, address, shipping, follow)


@cluster_app.command(epilog="Example: cdn-tune cluster jobs --address http://127.0.0.1:8265")
def jobs(address: Server = None, json: Json = False) -> None:
    """List the jobs of a cluster, the latest first."""
    from cdn_tune.cli.show.jobs import run_jobs

    run_jobs(address, json)


@cluster_app.command(epilog="Example: cdn-tune cluster logs raysubmit_1KQUhCSxCZ36MBtE --follow")
def logs(
    job: JobArgument,
    address: Server = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on to its end, with its exit code.")] = False,
) -> None:
    """Print what a job has printed."""
    from cdn_tune.cli.show.jobs import run_logs

    run_logs(job, address, follow)


@cluster_app.command(epilog="Example: cdn-tune cluster stop raysubmit_1KQUhCSxCZ36MBtE")
def stop(
    job: JobArgument,
    address: Server = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has stopped.")] = True,
) -> None:
    """Stop a job in order: trials save a checkpoint, and the same command goes on with them."""
    from cdn_tune.cli.show.jobs import run_stop_job

    run_stop_job(job, address, wait)


@cluster_app.command(epilog="Example: cdn-tune cluster fetch /shared/runs/core --to runs/core")
def fetch(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, by its path on the head node.")],
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to.", show_default="runs/<name of the folder>")
    ] = None,
    address: Server = None,
    states: Annotated[
        bool, typer.Option("--states", help="Also what trials go on from (last.pt), three times a model's size each.")
    ] = False,
    python: PythonOption = "python",
) -> None:
    """Bring a run folder home: record, curves, best checkpoints. Again brings what has changed."""
    from cdn_tune.cli.show.jobs import run_fetch

    run_fetch(run, to, address, states, python)


def understood(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Returns which command a command line is, and its arguments and options by name.

    What is wrong with it is said as if it were run here.
    """
    command: Any = typer.main.get_command(app)
    context, rest = None, list(arguments)
    names: list[str] = []
    while isinstance(command, TyperGroup):
        context = command.make_context(names[-1] if names else "cdn-tune", rest, parent=context)
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        names.append(name or "start")  # a group that takes a name for its own command's argument gives it none
    return " ".join(names), dict(command.make_context(names[-1], rest, parent=context).params)


def as_job(arguments: list[str]) -> list[str]:
    """Returns a command line as it is run: one that names a job server or a Ray client's address is submitted there."""
    if arguments[:1] not in (["search"], ["train"], ["evaluate"]):
        return arguments
    for index, argument in enumerate(arguments):
        name, equals, address = argument.partition("=")
        if name != "--address":
            continue
        address = address if equals else next(iter(arguments[index + 1 :]), "")
        if address.startswith(("http://", "https://", "ray://")):
            rest = arguments[:index] + arguments[index + (1 if equals else 2) :]
            return ["cluster", "submit", "--address", address, "--", *rest]
    return arguments
