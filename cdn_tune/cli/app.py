"""The application and its groups of commands: their order in the help, and their errors in one line."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from cdn_tune import __version__
from cdn_tune.cli.show.output import one_line_errors, print_line, print_note
from cdn_tune.compat import check_versions
from cdn_tune.errors import RunError
from cdn_tune.resources import DOCS

_ORDER = (
    *("demo", "train", "search", "simulate", "runs", "leaderboard", "evaluate", "compare"),
    *("report", "predict", "export", "import-weights", "schema", "doctor", "report-bug"),
    *("cluster", "init", "status", "submit", "jobs", "logs", "stop", "fetch"),
    *("data", "doctor", "extract", "convert", "text", "plant"),
)
START = "start"


class _Output:
    """Standard output with its errors in one line; all else is the stream's.

    Raises:
        RunError: If it takes no more, such as a full disk.
        typer.Exit: If its reader has gone (``| head``), which has what it wanted.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text; returns its length."""
        with self._told():
            return int(self._stream.write(text))

    def flush(self) -> None:
        """Has all that was written arrive."""
        with self._told():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with open(os.devnull, "wb") as nowhere:  # takes what is left when Python ends
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if error.errno == errno.EPIPE:
                raise typer.Exit(1) from None
            raise RunError(
                f"standard output: cannot be written ({error.strerror}); make room there, or send it elsewhere"
            ) from None


class InOrder(TyperGroup):
    """A group that lists its commands in the order in which a newcomer meets them.

    What they raise becomes one line and an exit code.
    """

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Returns the context of a command line."""
        with one_line_errors():
            return super().make_context(*arguments, **settings)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command of a command line."""
        with one_line_errors():
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Runs the application; what is printed outside its commands, such as help, has its errors in one line, too."""
        before = sys.stdout
        output: Any = _Output(before) if before is not None else io.StringIO()  # None: it was closed
        sys.stdout = output
        try:
            try:
                return super().main(*arguments, **options)
            finally:
                output.flush()
        except (RunError, typer.Exit) as error:
            if isinstance(error, RunError):
                print_note(f"error: {error}", "red")
            sys.exit(error.exit_code)
        finally:
            sys.stdout = before

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns the names of the commands."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


class _StartUnlessNamed(InOrder):
    """Takes ``search SPACE`` for ``search start SPACE``: what is no command of its own is a search space."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._named(args))  # --help is the search's, too

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, self._named(args))
        return ("" if name == START else name), command, rest

    def _named(self, args: list[str]) -> list[str]:
        return args if args and args[0] in self.commands else [START, *args]


class Commands(typer.Typer):
    """An application, or a part of one, whose group is `InOrder`."""

    def __init__(self, *, cls: type[TyperGroup] = InOrder, **settings: Any) -> None:
        super().__init__(cls=cls, **settings)


app = Commands(
    help="Hyperparameter search for CDN video moment retrieval, on a laptop or on a Ray cluster.",
    epilog=f"Documentation: {escape(str(DOCS))}",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
search_app = Commands(cls=_StartUnlessNamed, help="Search for the best configuration with Ray Tune and Optuna.")
cluster_app = Commands(
    help="See what a Ray cluster has; run searches on it as jobs, and fetch what they found.", no_args_is_help=True
)
data_app = Commands(
    help="Look after data: examine a folder, extract or convert features, encode queries, plant a synthetic dataset.",
    no_args_is_help=True,
)
for _name, _group in (("search", search_app), ("cluster", cluster_app), ("data", data_app)):
    app.add_typer(_group, name=_name)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print_line(f"cdn-tune {__version__}")
        raise typer.Exit
    check_versions()
