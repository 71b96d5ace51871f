"""The command line: a file per command, with its options, what it does and what it prints."""
# ruff: noqa: F401 - importing a command adds it to the application

import sys

from cdn_tune.cli import compare, demo, evaluate, export, import_weights, leaderboard, machine, predict, report, schema
from cdn_tune.cli import report_bug as report_bug
from cdn_tune.cli import runs as runs
from cdn_tune.cli import simulate as simulate
from cdn_tune.cli import train as train
from cdn_tune.cli.app import app as app
from cdn_tune.cli.cluster import fetch, init, jobs, logs, status, stop, submit
from cdn_tune.cli.data import convert, doctor, extract, plant, text
from cdn_tune.cli.search import rebuild, start
from cdn_tune.cli.search import status as search_status
from cdn_tune.cli.search import stop as search_stop
from cdn_tune.cli.show.output import clean_logging


def main() -> None:
    """Runs the command line of this process."""
    clean_logging()
    app(submit.as_job(sys.argv[1:]))
