"""The check of arguments by their annotations, and errors that name them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from cdn_tune.api.arguments import Count, PathLike, Paths, checked, in_python
from cdn_tune.api.load import load
from cdn_tune.api.run import open_run
from cdn_tune.errors import CdnTuneError, ConfigError, NodeUnfit, RunError

NAMES = {"top", "choose_nms", "formats", "start", "settings", "run", "storage", "workers", "warm_start", "train_on"}


@pytest.mark.parametrize(
    ("option", "argument"),
    [
        ("--top and --choose-nms exclude each other", "top and choose_nms exclude each other"),
        ("choose another --run folder", "choose another run folder"),
        ("add --workers N, or --export-format FORMAT", "add workers=N, or formats=FORMAT"),
        ("--warm-start runs/a: holds a train run", "warm_start=runs/a: holds a train run"),
        ("--storage sqlite:///a.db: is a folder; leave --storage out", "storage=sqlite:///a.db: is a folder; leave "
         "storage out"),
        ("--from a.pt: is damaged; --train-on train+val", "start=a.pt: is damaged; train_on=train+val"),
        ("go on with --set sampler.seed=3 as there", "go on with settings sampler.seed=3 as there"),
        ("run cdn-tune cluster fetch --run X; --run X", "run cdn-tune cluster fetch --run X; run=X"),
        ("mlflow restore --experiment-id 3, a--top, R1@0.5", "mlflow restore --experiment-id 3, a--top, R1@0.5"),
    ],
)  # fmt: skip
def test_options_are_arguments_in_python(option: str, argument: str) -> None:
    assert in_python(option, NAMES) == argument


@checked
def function(
    path: PathLike,
    count: Count | None = None,
    *,
    paths: Paths = (),
    kind: Literal["a", "b"] = "a",
    is_so: bool = False,
    text: str | Path | None = None,
    call: Callable[[int], object] | None = None,
    overrides: Any = None,
) -> Any:
    """Is checked."""
    if overrides is not None:
        raise overrides
    return path, count, paths, kind, is_so, text, call


def test_what_fits_comes_as_it_was_given() -> None:
    given: dict[str, Any] = {"paths": ["a", Path("b")], "kind": "b", "is_so": True, "text": "c", "call": print}
    assert function(Path("x"), 3, **given) == (Path("x"), 3, *given.values())
    assert function("s3://bucket/x") == ("s3://bucket/x", None, (), "a", False, None, None)
    assert (function.__name__, function.__doc__) == ("function", "Is checked.")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"path": 5}, "path=5 is wrong: give a path"),
        ({"path": "~no-such-user"}, "path='~no-such-user' begins with the name of no user"),
        ({"count": 0}, "count=0 is wrong: give a whole number from 1"),
        ({"count": True}, "count=True is wrong: give a whole number from 1"),
        ({"paths": "a"}, "paths='a' is wrong: give a list of run folders"),
        ({"kind": "c"}, "kind='c' is wrong: give a or b"),
        ({"is_so": 1}, "is_so=1 is wrong: give True or False"),
        ({"text": 1.5}, "text=1.5 is wrong: give a path"),
        ({"call": 1}, "call=1 is wrong: give a function of one argument"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        function(**{"path": "x", **arguments})
    assert told in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"checkpoint": 5}, "checkpoint=5 is wrong: give a path"),
        ({"other_data": 1}, "other_data=1 is wrong: give True or False"),
        ({"on_stage": 1}, "on_stage=1 is wrong: give a function of one argument"),
        ({"checkpoint": "none.pt"}, "checkpoint=none.pt: no such file"),
    ],
)
def test_arguments_of_a_probe(trained: Path, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(CdnTuneError) as caught:
        open_run(trained).probe(**arguments)
    assert told in str(caught.value)


def test_errors_of_the_function_name_its_arguments() -> None:
    with pytest.raises(RunError) as refused:
        function("x", overrides=RunError("--count 3 of --path; leave --text out, see --other"))
    assert str(refused.value) == "count=3 of path; leave text out, see --other"
    with pytest.raises(ConfigError) as long:
        function("x", overrides=OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000))
    assert str(long.value) == f"{'x' * 200}: File name too long; give another path"
    with pytest.raises(OSError, match="No space left"):
        function("x", overrides=OSError(errno.ENOSPC, "No space left", "x"))
    with pytest.raises(NodeUnfit) as caught:
        function("x", overrides=NodeUnfit("id", "has no data"))
    assert (caught.value.node, str(caught.value)) == ("id", "has no data")


def test_a_model_is_loaded_from_a_path_alone() -> None:
    for arguments, told in (
        ({"path": 5}, "path=5 is wrong: give a path"),
        ({"path": "x" * 300}, "xx: File name too long; give another path"),
        ({"path": ".", "word_vectors": 5}, "word_vectors=5 is wrong: give a path"),
        ({"path": ".", "nms_threshold": "x"}, "nms_threshold='x' is wrong: give a number"),
    ):
        with pytest.raises(ConfigError, match=told):
            load(**arguments)
