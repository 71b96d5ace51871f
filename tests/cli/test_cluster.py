"""`cdn-tune cluster` in words: what is submitted, what stays, what is told of nodes and jobs."""

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.cli.cluster.jobs import job_facts, jobs_table
from cdn_tune.cli.cluster.logs import exit_code, follow
from cdn_tune.cli.cluster.status import fault_lines, nodes_table, plain, room_for, room_line, versions_table
from cdn_tune.cli.cluster.submit import Shipping, _data_root, as_job, check, entrypoint, parsed, run_job
from cdn_tune.cli.show.output import facts_table
from cdn_tune.config import ResourcesConfig
from cdn_tune.config.secrets import without_secrets
from cdn_tune.distributed import job_package as package
from cdn_tune.distributed.job_package import pack, staged, unpacked
from cdn_tune.distributed.jobs import Job
from cdn_tune.distributed.node_info import NodeInfo
from cdn_tune.errors import ConfigError
from cdn_tune.training.runs.run_folder import describe_run

OURS: dict[str, str | None] = {
    "python": "3.11.7",
    "executable": "/usr/bin/python",
    "cdn-tune": "0.1.0",
    "torch": "2.6.0",
    "ray": "2.60.0",
    "optuna": "5.0.0",
}
HEAD = NodeInfo(
    id="aa",
    address="10.0.0.1",
    host="head",
    is_alive=True,
    is_head=True,
    total={"CPU": 8.0, "GPU": 2.0, "memory": 64e9, "object_store_memory": 16e9},
    free={"CPU": 3.0, "GPU": 1.0, "memory": 60e9, "object_store_memory": 16e9},
    gpu="A100",
    versions=dict(OURS),
    clock=0.0,
)
OLD = replace(
    HEAD, id="bb", address="10.0.0.2", host="old", is_head=False, clock=-200.0, versions={**OURS, "torch": "2.1.0"}
)
SILENT = replace(HEAD, id="cc", host="mute", is_head=False, versions=None, clock=None, fault="did not answer")


def printed(table: object) -> str:
    console = Console(width=160, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize(
    ("command", "given", "job"),
    [
        (
            ["search", "s.yaml", "--address", "http://h:8265", "--run", "/r"],
            ["search", "s.yaml", "--run", "/r"],
            "http://h:8265",
        ),
        (["train", "e.yaml", "--address=ray://h:10001"], ["train", "e.yaml"], "ray://h:10001"),
    ],
)
def test_a_job_servers_address_makes_a_job(command: list[str], given: list[str], job: str) -> None:
    assert as_job(command) == ["cluster", "submit", "--address", job, "--", *given]


@pytest.mark.parametrize(
    "command",
    [
        ["search", "s.yaml", "--address", "auto"],
        ["search", "s.yaml"],
        ["search", "s.yaml", "--address"],
        ["cluster", "jobs", "--address", "http://h:1"],
        ["predict", "--address", "http://h:1"],
        [],
    ],
)
def test_other_commands_run_here(command: list[str]) -> None:
    assert as_job(command) == command


def test_a_submitted_command_is_understood_as_if_it_ran_here() -> None:
    name, values = parsed(["search", "s.yaml", "optim.lr=1", "--trials", "3", "--run", "/r"])
    assert (name, values["space"], values["overrides"], values["trials"]) == (
        "search start",
        "s.yaml",
        ["optim.lr=1"],
        3,
    )
    assert parsed(["search", "stop", "/r"])[0] == "search stop"
    assert parsed(["train", "e.yaml", "--workers", "2"])[1]["workers"] == 2
    result = CliRunner().invoke(app, ["cluster", "submit", "--", "search", "s.yaml", "--trails", "3"])
    assert result.exit_code == 2
    assert "No such option" in result.output


def test_a_space_is_checked_as_set_has_changed_it(tmp_path: Path) -> None:
    command = ["search", "charades-core", f"data.root={tmp_path}", "train.epochs=1", "--run", "/r"]
    with pytest.raises(ConfigError, match="min_resource=3 is above"):
        _data_root(*parsed(command), tmp_path)
    command += ["--set", "early_stopping.min_resource=1"]
    assert _data_root(*parsed(command), tmp_path) == [tmp_path]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["demo"], "cluster submit -- demo: runs here"),
        (["search", "s.yaml"], "name a run folder that every node reaches"),
        (["search", "s.yaml", "--run", "runs/x"], "runs/x: is gone when the job is"),
        (["evaluate", "runs/x"], "runs/x: is gone when the job is"),
        (["search", "s.yaml", "--run", "/r", "--address", "auto"], "give --address before"),
        (["search", "s.yaml", "--run", "/r", "data.root=data/x"], "data do not go with a job"),
        (["search", "s.yaml", "--run", "/r", "--storage", "postgresql://me:s3cret@h/d"], r"postgresql://me:\*\*\*@h/d"),
    ],
)
def test_what_cannot_run_as_a_job_is_refused(command: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        check(command, *parsed(command))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        (
            ["search", "my space.yaml", "--run", "/r"],
            "exec python -m cdn_tune search --address auto 'my space.yaml' --run /r",
        ),
        (["search", "stop", "/r"], "exec python -m cdn_tune search stop /r"),
        (["train", "e.yaml", "--run", "/r"], "exec python -m cdn_tune train e.yaml --run /r"),
        (
            ["train", "e.yaml", "--workers", "2", "--run", "/r"],
            "exec python -m cdn_tune train --address auto e.yaml --workers 2 --run /r",
        ),
        (["evaluate", "/r"], "exec python -m cdn_tune evaluate /r"),
        (["cluster", "status", "--json"], "exec python -m cdn_tune cluster status --address auto --json"),
    ],
)
def test_a_job_joins_the_cluster_it_runs_on(command: list[str], runs: str) -> None:
    assert entrypoint(command, *parsed(command), "python") == runs
    check(command, *parsed(command))
    inside = runs.removeprefix("exec python -m cdn_tune ").replace("'my space.yaml'", "my_space.yaml").split()
    assert parsed(inside)[0] == parsed(command)[0]


def test_what_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    class Server:
        url = "http://h:1"

        def __init__(self, address: str | None) -> None:
            sent["address"] = address

        def submit(self, command: str, environment: dict[str, Any], resources: dict[str, float], note: str) -> str:
            sent.update(command=command, environment=environment, resources=resources, note=note)
            folder = Path(environment["working_dir"])
            sent["files"] = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            return "job-1"

    monkeypatch.setattr("cdn_tune.distributed.jobs.Jobs", Server)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "shared" / "r"
    run.mkdir(parents=True)
    for name in ("code.py", "a.log", "shared/r/manifest.json"):
        (tmp_path / name).touch()
    arguments = ["evaluate", str(run)]
    shipping = Shipping(tmp_path, ["*.log"], env=["WANDB_MODE"], gpus=1.0)
    run_job(arguments, *parsed(arguments), "http://h:1", shipping, wait=False)
    assert sent["note"] == f"evaluate {run}"
    assert sent["resources"] == {"num_gpus": 1.0}
    assert sent["environment"]["env_vars"] == {"WANDB_MODE": "offline"}
    assert sent["files"] == ["code.py"]


def test_data_runs_secrets_and_what_git_ignores_stay(tmp_path: Path) -> None:
    for name in (
        "a.py",
        "sub/b.yaml",
        "sub/c.hdf5",
        "runs/x/best.pt",
        ".env",
        ".git/HEAD",
        "key.pem",
        "d/e.txt",
        "tmp.o",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("12345")
    (tmp_path / ".gitignore").write_text("*.o\n")
    packed = pack(tmp_path, ["b.yaml"], [tmp_path / "d", Path("/elsewhere")])
    assert packed.sizes == {".gitignore": 4, "a.py": 5}


def test_ignoring_files_hold_below_their_folder_and_links_in_circles_end(tmp_path: Path) -> None:
    for name in ("a/x.o", "a/keep.o", "b/x.o", "a/build/y.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / ".gitignore").write_text("*.o\n!keep.o\nbuild/\n")
    (tmp_path / "b" / "up").symlink_to(tmp_path / "b")
    packed = pack(tmp_path)
    assert [name for name in packed.sizes if "up" not in name] == ["a/.gitignore", "a/keep.o", "b/x.o"]
    with staged(packed) as folder:
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(
            packed.sizes
        )
    assert not folder.exists()


def test_an_upload_that_is_too_large_names_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "LIMIT", 1000)
    (tmp_path / "large.bin").write_bytes(b"0" * 2000)
    (tmp_path / "small.py").touch()
    with pytest.raises(ConfigError, match=r"largest: large\.bin .*--exclude"):
        pack(tmp_path)
    assert list(pack(tmp_path, ["large.bin"]).sizes) == ["small.py"]
    with pytest.raises(ConfigError, match="no such folder"):
        pack(tmp_path / "nowhere")


def test_a_wheel_is_unpacked_not_installed(tmp_path: Path) -> None:
    wheel = tmp_path / "cdn_tune-9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("cdn_tune/__init__.py", "__version__ = '9'")
        archive.writestr("cdn_tune-9.dist-info/METADATA", "Requires-Dist: torch")
    with unpacked(wheel) as folder:
        assert (folder / "__init__.py").read_text() == "__version__ = '9'"
        assert [path.name for path in folder.parent.iterdir()] == ["cdn_tune"]
    with pytest.raises(ConfigError, match="cannot be read"), unpacked(tmp_path / "none.whl"):
        pass
    (tmp_path / "text.whl").write_text("no zip")
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cdn_tune/__init__.py", "a" * 1000)
    (tmp_path / "damaged.whl").write_bytes(wheel.read_bytes().replace(b"KL", b"\xff\xff", 1))
    for name in ("text.whl", "damaged.whl"):
        with pytest.raises(ConfigError, match="cannot be read"), unpacked(tmp_path / name):
            pass


def test_nodes_are_told_with_what_is_wrong() -> None:
    nodes = [HEAD, OLD, SILENT]
    table = printed(nodes_table(nodes))
    assert "3/8" in table
    assert "6/16" in table, "the silent node counts for nothing"
    assert "worker, silent" in table
    versions = printed(versions_table(nodes, OURS))
    assert "2.1.0 !" in versions
    assert "-3 min 20 s !" in versions
    lines = fault_lines(nodes, OURS)
    assert any("torch 2.1.0 there, 2.6.0 here" in line and "constraints.txt" in line for line in lines)
    assert any("3 min 20 s behind" in line and "NTP" in line for line in lines)
    assert any(line.startswith("mute") and "did not answer" in line for line in lines)
    assert fault_lines([HEAD], OURS) == []


def test_room_is_counted_on_nodes_that_answer() -> None:
    room = room_for(ResourcesConfig(gpus_per_worker=1.0), [HEAD, OLD, SILENT])
    assert (room.now, room.at_most) == (2, 4)
    assert room_line(room) == "trials of 1 CPU and 1 GPU: 2 fit now, 4 when all is free"
    assert room_for(ResourcesConfig(workers=2, cpus_per_worker=4), [HEAD]).at_most == 1
    told = plain([HEAD, OLD], OURS, room)
    assert [node["differs"] for node in told["nodes"]] == [[], ["torch"]]


@pytest.mark.parametrize(
    ("state", "code", "ours"), [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", None, 130)]
)
def test_a_jobs_exit_code_is_ours(state: str, code: int | None, ours: int) -> None:
    job = Job("job-1", state, "exec python", "why", 1000.0, 1090.0, code, {"cdn_tune": "search [s].yaml"})
    assert exit_code(job) == ours
    for table in (jobs_table([job], 2000.0), facts_table(job_facts(job, 2000.0))):
        text = printed(table)
        assert "search [s].yaml" in text
        assert "1 min 30 s" in text
        assert state.lower() in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:p@ss:w@h/d", "postgresql://me:***@h/d"),
        ("--storage=postgresql://me:pw@h/d", "--storage=postgresql://me:***@h/d"),
        ("mysql://h/d?password=pw&a=b", "mysql://h/d?password=***&a=b"),
        ("postgresql://me@h/d", "postgresql://me@h/d"),
        ("optim.lr=3e-4", "optim.lr=3e-4"),
    ],
)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_a_manifest_holds_no_password(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["cdn-tune", "search", "s.yaml", "--storage", "postgresql://me:s3cret@h/d"])
    assert "s3cret" not in str(describe_run("search", tiny(), {}))


def test_ctrl_c_leaves_the_job_alone() -> None:
    asked: list[str] = []

    class Server:
        def follow(self, _job: str) -> Iterator[str]:
            yield "a line\n"
            raise KeyboardInterrupt

        def stop(self, job: str) -> bool:
            asked.append(job)
            return True

    with pytest.raises(KeyboardInterrupt, match="job job-1 goes on; cdn-tune cluster logs job-1 --follow"):
        follow(Server(), "job-1")
    assert asked == []
