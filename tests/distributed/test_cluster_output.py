"""What Ray's threads print is logged; what others print is printed."""

import logging
import os
import sys
import threading
import time

import pytest

from cdn_tune.distributed.cluster import ray_output_logged


def printed_by(name: str, text: str) -> None:
    thread = threading.Thread(name=name, target=lambda: print(text))  # noqa: T201
    thread.start()
    thread.join()


def test_only_what_ray_prints_is_kept_from_the_terminal(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ray"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("ray"), "handlers", [])
    before = sys.stdout
    with caplog.at_level(logging.WARNING, "ray"), ray_output_logged():
        printed_by("ray_listen_error_messages", "(raylet) A worker died.")
        printed_by("progress", "epoch 1")
        sys.stderr.write("warning\n")
        assert sys.stdout.isatty() == before.isatty()
    assert sys.stdout is before
    assert capsys.readouterr() == ("epoch 1\n", "warning\n")
    assert [record.getMessage() for record in caplog.records] == ["(raylet) A worker died."]


@pytest.mark.compat("what Ray reports of killed processes is logged, not printed")
@pytest.mark.usefixtures("ray_session")
def test_a_killed_process_is_logged(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from cdn_tune.distributed.cluster import connected
    from cdn_tune.distributed.ray import RayError, ray

    logged: list[str] = []
    monkeypatch.setattr(logging.getLogger("ray"), "warning", lambda form, *values: logged.append(form % values))

    def dies() -> None:
        os._exit(1)

    with connected():
        with pytest.raises(RayError):
            ray.get(ray.remote(num_cpus=0, max_retries=0)(dies).remote())
        deadline = time.monotonic() + 60
        while not any("worker died" in line for line in logged) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert any("worker died" in line for line in logged)
    assert "worker died" not in "".join(capfd.readouterr())


def test_a_handler_that_writes_to_the_terminal_does_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("ray")
    before = logger.level, logger.handlers
    with ray_output_logged():
        logger.setLevel(logging.WARNING)
        logger.handlers = [logging.StreamHandler(sys.stderr)]
        try:
            printed_by("ray_x", "killed")
        finally:
            logger.handlers = before[1]
            logger.setLevel(before[0])
    assert capsys.readouterr() == ("", "killed\n")


def test_a_stream_that_was_put_on_top_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before, later = sys.stdout, object()
    with ray_output_logged():
        monkeypatch.setattr(sys, "stdout", later)
    assert sys.stdout is later
    monkeypatch.undo()
    sys.stdout = before
