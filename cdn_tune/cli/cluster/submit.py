"""`cdn-tune cluster submit`: a command as a job of a cluster."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from cdn_tune.cli.app import START, app, cluster_app
from cdn_tune.cli.cluster.logs import follow as follow_log
from cdn_tune.cli.options import RemotePython, Server
from cdn_tune.cli.show.output import print_note, warn
from cdn_tune.errors import ConfigError

_COMMANDS = ("search", "train", "evaluate", "cluster status")
_JOINING = ("search", "search start", "cluster status")  # the others join only for several workers
_SECRET_NAME = re.compile(r"(?i)pass|pwd|secret|token|key|credential")
_DATA_ROOT = "data.root="


@dataclass(frozen=True)
class Shipping:
    """What goes with a job, and what it occupies."""

    working_dir: Path | None  # its files go; nothing does if None
    excludes: Sequence[str] = ()  # patterns of files that stay
    wheel: Path | None = None  # of the cdn-tune that is used in place of what the nodes have
    env: Sequence[str] = ()  # names of environment variables that are handed over
    python: str = "python"  # runs the command there
    cpus: float = 0.0  # that the command itself occupies, besides its trials
    gpus: float = 0.0


@cluster_app.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Example: cdn-tune cluster submit --address http://HOST:8265 -- search search_spaces/charades-core.yaml "
    "data.root=/shared/charades --run /shared/runs/core",
)
def submit(
    command: Annotated[
        list[str], Argument(metavar="-- COMMAND...", help="search, train, evaluate, with their arguments.")
    ],
    address: Server = None,
    working_dir: Annotated[
        Path, Option(metavar="DIR", help="Its files go with the job, but for data, runs, and what git ignores.")
    ] = Path(),
    exclude: Annotated[
        list[str] | None, Option(metavar="PATTERN", help="Leave these out too, as in a .gitignore.")
    ] = None,
    installed: Annotated[
        bool, Option("--installed", help="Ship no files: the nodes have cdn-tune, and the search space.")
    ] = False,
    wheel: Annotated[
        Path | None, Option(metavar="FILE", help="Run this cdn-tune, in place of what the nodes have.")
    ] = None,
    env: Annotated[
        list[str] | None, Option(metavar="NAME", help="Hand over this environment variable, as it is here.")
    ] = None,
    follow: Annotated[bool, Option("--follow/--no-wait", help="Follow its log to the end.")] = True,
    python: RemotePython = "python",
    cpus: Annotated[float, Option(min=0, help="CPUs for the command itself, besides its trials.")] = 0.0,
    gpus: Annotated[float, Option(min=0, help="GPUs for the command itself, e.g. a `train` of one worker.")] = 0.0,
) -> None:
    """Run a command on the cluster as a job, which outlives this terminal, and follow its log.

    The exit code is the job's. Ctrl-C leaves the job running.
    """
    name, values = parsed(command)
    folder = None if installed else working_dir
    shipping = Shipping(folder, exclude or (), wheel, env or (), python, cpus, gpus)
    run_job(command, name, values, address, shipping, follow)


def parsed(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Returns a command line's command, and its arguments and options by name; raises its errors as if it ran here."""
    command: Any = typer.main.get_command(app)
    context, rest, names = None, list(arguments), ["cdn-tune"]
    while isinstance(command, TyperGroup):
        context = typer.Context(command, info_name=names[-1], parent=context)
        name, command, rest = command.resolve_command(context, rest or ["--help"])
        names.append(name or START)  # a group that takes a name for its own command's argument returns none
    return " ".join(names[1:]), dict(command.make_context(names[-1], rest, parent=context).params)


def as_job(arguments: list[str]) -> list[str]:
    """Returns the command line to run: one with the address of a job server or a Ray client is submitted there."""
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


def run_job(
    arguments: list[str], name: str, values: Mapping[str, Any], address: str | None, shipping: Shipping, wait: bool
) -> None:
    """Submits a command as a job, prints how to go on from here, and follows its log to the end if `wait`.

    `name` and `values` are those that `parsed` returns of `arguments`.
    """
    from cdn_tune.distributed.jobs import Jobs

    check(arguments, name, values)
    data = _data_root(name, values, shipping.working_dir)
    command = entrypoint(arguments, name, values, shipping.python)
    with ExitStack() as stack:
        environment = _environment(stack, shipping, [*data, *_run_of(values)])
        jobs = Jobs(address)
        resources = {"num_cpus": shipping.cpus} if shipping.cpus else {}
        resources |= {"num_gpus": shipping.gpus} if shipping.gpus else {}
        job = jobs.submit(command, environment, resources, shlex.join(arguments))
    where = f" --address {shlex.quote(address)}" if address else ""
    print_note(f"job {job} at {jobs.url}; it goes on without this terminal")
    hints = [("follow", f"logs {job} --follow"), ("stop", f"stop {job}"), ("state", f"status {job}")]
    hints += [("fetch", f"fetch {shlex.quote(str(run))}") for run in _run_of(values)]
    for what, usage in hints:
        print_note(f"  {what:<7}cdn-tune cluster {usage}{where}", "dim")
    if wait:
        follow_log(jobs, job, rays=name != "cluster status")


def check(arguments: Sequence[str], name: str, values: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if a command is none for a job, its run folder would go with it, or it shows a password."""
    from cdn_tune.config.secrets import without_secrets

    if not any(name == known or name.startswith(f"{known} ") for known in _COMMANDS):
        raise ConfigError(f"cluster submit -- {name}: runs here; jobs are {', '.join(_COMMANDS)}")
    if values.get("address") is not None:
        raise ConfigError("cluster submit: give --address before `--`; the job itself joins the cluster it runs on")
    for argument in arguments:
        if without_secrets(argument) != argument:
            raise ConfigError(
                f"{without_secrets(argument)}: a job's command is shown to all who may see the cluster; leave the "
                "password out, and let nodes read it from ~/.pgpass, ~/.my.cnf or a variable (--env NAME)"
            )
        if argument.startswith(_DATA_ROOT) and not _stays(argument.removeprefix(_DATA_ROOT)):
            raise ConfigError(f"{argument}: data do not go with a job; name the folder where every node reads them")
    if name in ("search start", "train") and values.get("run") is None:
        raise ConfigError(
            "cluster submit: name a run folder that every node reaches and that outlives the job, "
            "e.g. --run /shared/runs/NAME (a shared file system)"
        )
    for run in _run_of(values):
        if not _stays(str(run)):
            remedy = f"name it by a path that every node reaches, /shared/{run}"
            raise ConfigError(f"{run}: is gone when the job is; {remedy}")


def entrypoint(arguments: Sequence[str], name: str, values: Mapping[str, Any], python: str) -> str:
    """Returns the shell command of a job, which joins the cluster it runs on where it needs one."""
    joins = name in _JOINING or int(values.get("workers") or 1) > 1
    depth = 2 if name == "cluster status" else 1
    head, rest = list(arguments[:depth]), list(arguments[depth:])
    return "exec " + shlex.join([python, "-m", "cdn_tune", *head, *(["--address", "auto"] if joins else []), *rest])


def _environment(stack: ExitStack, shipping: Shipping, stays: Sequence[Path]) -> dict[str, Any]:
    """Returns Ray's runtime environment of a job."""
    from cdn_tune.distributed.job_package import pack, staged, unpacked

    environment: dict[str, Any] = {}
    if shipping.working_dir is not None:
        excludes = [*shipping.excludes, *(["/cdn_tune"] if shipping.wheel else [])]
        package = pack(shipping.working_dir, excludes, stays)
        environment["working_dir"] = str(stack.enter_context(staged(package)))
        print_note(f"shipping {len(package.sizes)} files ({package.bytes / 1e6:.1f} MB) of {package.folder}", "dim")
    if shipping.wheel is not None:
        environment["py_modules"] = [str(stack.enter_context(unpacked(shipping.wheel)))]
    for name in shipping.env:
        if name not in os.environ:
            raise ConfigError(f"--env {name}: is not set here")
        if _SECRET_NAME.search(name):
            warn(
                f"--env {name}: whoever holds the cluster's token can read its value in the job's details, and nodes "
                "log it; a secret is better set where the nodes' Ray is started"
            )
    variables = {name: os.environ[name] for name in shipping.env}
    return environment | ({"env_vars": variables} if variables else {})


def _data_root(name: str, values: Mapping[str, Any], shipped: Path | None) -> list[Path]:
    """Checks a configuration that is shipped; returns the folder of its data, if it has one."""
    from cdn_tune.config import load_experiment, load_space, parse_overrides

    overrides = parse_overrides(values.get("overrides") or [])
    if shipped is not None and name == "search start":
        changes = parse_overrides(values.get("settings") or [])
        return [Path(load_space(values["space"], overrides, changes)[1].data.root)]
    if shipped is not None and name == "train":
        return [Path(load_experiment(values["experiment"], overrides).data.root)]
    return []


def _run_of(values: Mapping[str, Any]) -> list[Path]:
    return [values["run"]] if values.get("run") is not None else []


def _stays(path: str) -> bool:
    """Returns whether a path means the same to every process: absolute, or a URL."""
    return Path(path).is_absolute() or ":/" in path
