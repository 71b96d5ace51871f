"""Jobs: commands that a cluster runs for us, through the HTTP server on its head node."""

import asyncio
import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TimeLimit
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import requests

from cdn_tune.distributed.address import job_server, prepare, token_fault
from cdn_tune.errors import ClusterError

STOP_SECONDS = 600  # that a job may take to end in order; Ray's own 3 are too few for checkpoints
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
_CONNECT_SECONDS = 30.0  # for the server's first answer
_ANSWER_SECONDS = 120.0
_UPLOAD_SECONDS = 3600.0
_RETRIES = 30  # in a row, of a log that breaks off
_PAUSE_SECONDS = 1.0
_QUIET_SECONDS = 15.0  # without a line, after which the job's state is looked up

_LATEST = 250_000_000_000_000  # milliseconds: the year 9892

Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """A job; times are Unix times, None before."""

    id: str
    state: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    command: str
    message: str  # Ray's, about its state
    started: float | None
    ended: float | None
    exit_code: int | None  # of its process; None before it ends, or if it was stopped
    metadata: dict[str, str]  # as recorded when it was submitted

    @property
    def has_ended(self) -> bool:
        """Whether it runs no longer, and will not."""
        return self.state in ("SUCCEEDED", "FAILED", "STOPPED")


class Jobs:
    """The jobs of a cluster.

    Args:
        address: ``http://HOST:PORT`` of the job server; or ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT`` of the
            cluster, which names it; None for RAY_API_SERVER_ADDRESS, RAY_ADDRESS, else ``auto``.

    Raises:
        ClusterError: If no job server answers, or the token is missing or wrong.
    """

    def __init__(self, address: str | None = None) -> None:
        self._given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "auto"
        prepare(self._given)
        self.url = job_server(self._given).rstrip("/")
        with self._one_line():
            self._client = _within(_CONNECT_SECONDS, lambda: _client(self.url))

    def submit(self, command: str, runtime_env: dict[str, Any], resources: dict[str, float], note: str) -> str:
        """Submits a shell command; returns the job's id.

        Args:
            command: The shell command.
            runtime_env: Ray's runtime environment; a working directory is uploaded.
            resources: What its process occupies: ``num_cpus``, ``num_gpus``.
            note: Description for the list of jobs.
        """
        variables = {_STOP_WAIT: str(STOP_SECONDS), **runtime_env.get("env_vars", {})}
        options: dict[str, Any] = {f"entrypoint_{name}": value for name, value in resources.items()}
        options |= {"runtime_env": {**runtime_env, "env_vars": variables}, "metadata": {"cdn_tune": note}}
        with self._one_line():
            return str(_within(_UPLOAD_SECONDS, lambda: self._client.submit_job(entrypoint=command, **options)))

    def all(self) -> list[Job]:
        """Returns the jobs that were submitted, the latest first."""
        with self._one_line():
            jobs = _within(_ANSWER_SECONDS, self._client.list_jobs)
        found = [_job(details) for details in jobs if details.submission_id]
        return sorted(found, key=lambda job: job.started or 0.0, reverse=True)

    def job(self, job: str) -> Job:
        """Returns a job as it stands."""
        with self._one_line(job):
            return _job(_within(_ANSWER_SECONDS, lambda: self._client.get_job_info(job)))

    def logs(self, job: str) -> str:
        """Returns what a job has printed so far."""
        with self._one_line(job):
            return str(_within(_ANSWER_SECONDS, lambda: self._client.get_job_logs(job)))

    def follow(self, job: str) -> Iterator[str]:
        """Yields what a job prints, from its beginning to its end, over broken connections.

        Raises:
            ClusterError: If the server cannot be reached for longer.
        """
        seen = failed = 0
        while True:
            position, ended = 0, self.job(job).has_ended
            try:
                for text in self._tail(job):
                    if position + len(text) > seen:
                        yield text[max(seen - position, 0) :]
                        seen, failed = position + len(text), 0
                    position += len(text)
                if ended or self.job(job).has_ended:
                    return
            except (aiohttp.ClientError, RuntimeError, OSError, asyncio.TimeoutError):
                if ended:
                    return
            failed += 1
            if failed > _RETRIES:
                raise ClusterError(f"job {job}: its log breaks off; cdn-tune cluster logs {job} --follow goes on")
            time.sleep(_PAUSE_SECONDS)

    def wait(self, job: str, seconds: float) -> Job:
        """Waits until a job has ended, so many seconds at most; returns it as it stands then."""
        deadline = time.monotonic() + seconds
        while not (found := self.job(job)).has_ended and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
        return found

    def stop(self, job: str) -> bool:
        """Sends a job's process SIGTERM, and SIGKILL `STOP_SECONDS` later; returns whether it ran."""
        with self._one_line(job):
            return bool(_within(_ANSWER_SECONDS, lambda: self._client.stop_job(job)))

    def forget(self, job: str) -> None:
        """Takes an ended job off the list."""
        with self._one_line(job):
            _within(_ANSWER_SECONDS, lambda: self._client.delete_job(job))

    def _tail(self, job: str) -> Iterator[str]:
        loop = asyncio.new_event_loop()
        lines = self._client.tail_job_logs(job)
        pending: asyncio.Task[str | None] | None = None
        try:
            while True:
                pending = pending or loop.create_task(_next(lines))
                done, _ = loop.run_until_complete(asyncio.wait({pending}, timeout=_QUIET_SECONDS))
                if done:
                    text, pending = pending.result(), None
                    if text is None:
                        return
                    yield text
                elif self.job(job).has_ended:
                    return
        finally:
            if pending is not None:
                pending.cancel()
                loop.run_until_complete(asyncio.gather(pending, return_exceptions=True))
            loop.run_until_complete(lines.aclose())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    @contextmanager
    def _one_line(self, job: str | None = None) -> Iterator[None]:
        """Turns what the client raises into ClusterError with one line."""
        ray = _ray()  # its import takes seconds, which no server answers for
        try:
            yield
        except ray.exceptions.AuthenticationError:
            raise ClusterError(f"--address {self._given}: {token_fault()}") from None
        except (requests.RequestException, ConnectionError, TimeLimit, json.JSONDecodeError) as error:
            raise ClusterError(
                f"--address {self._given}: no job server answers there ({_reason(error)}); write http://HOST:PORT of "
                "the head node's dashboard (8265 by default, on its loopback interface unless it was started with "
                "--dashboard-host), through an SSH tunnel for example"
            ) from None
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:  # as of an answer's wrong form
            if job is not None and "does not exist" in str(error):
                raise ClusterError(f"{job}: no such job; cdn-tune cluster jobs lists them") from None
            raise ClusterError(f"--address {self._given}: the job server refuses this ({_reason(error)})") from None


async def _next(lines: Any) -> str | None:
    async for text in lines:
        return str(text)
    return None


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """Returns what a call of Ray's client returns, which by itself waits for ever; raises TimeLimit if it takes longer.

    It is then left to a thread that ends with the process.
    """
    answer: Future[Result] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeLimit:
        raise TimeLimit(f"nothing within {seconds:.0f} s") from None


def _ray() -> Any:
    """Returns Ray with its client of job servers, imported once the environment is prepared; its warnings are not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray.exceptions
        import ray.job_submission
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray


def _client(url: str) -> Any:
    """Returns Ray's client; by itself it lets the environment overrule its address."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    try:
        return _ray().job_submission.JobSubmissionClient(url)
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _job(details: Any) -> Job:
    return Job(
        id=str(details.submission_id),
        state=str(getattr(details.status, "value", details.status)),
        command=str(details.entrypoint),
        message=str(details.message or ""),
        started=_seconds(details.start_time),
        ended=_seconds(details.end_time),
        exit_code=details.driver_exit_code,
        metadata=dict(details.metadata or {}),
    )


def _seconds(milliseconds: int | None) -> float | None:
    """Returns a Unix time in seconds; None if there is none, or none that a calendar has."""
    return milliseconds / 1000 if milliseconds is not None and 0 <= milliseconds < _LATEST else None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
