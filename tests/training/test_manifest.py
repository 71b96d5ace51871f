"""The manifest tells how a run was made, and no password."""

import sys
from collections.abc import Callable

import pytest

from cdn_tune.config import Experiment
from cdn_tune.training.runs.manifest import describe_run


def test_a_password_on_the_command_line_is_not_recorded(
    tiny: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["/bin/cdn-tune", "search", "a.yaml", "--storage", "postgresql://me:s3cr:t/w%rd@h/d?sslpassword=s3cret&a=b"]
    monkeypatch.setattr(sys, "argv", [*given, "--address", "h:1", "optim.lr=1", "--storage=mysql://u:s3@h/d"])
    command = describe_run("search", tiny(), {})["command"]
    assert command[:5] == ["cdn-tune", "search", "a.yaml", "--storage", "postgresql://me:***@h/d?sslpassword=***&a=b"]
    assert command[5:] == ["--address", "h:1", "optim.lr=1", "--storage=mysql://u:***@h/d"]
