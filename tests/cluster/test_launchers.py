"""The files for Ray's cluster launcher, as far as they can be checked without a machine to rent."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
LOCAL, CLOUD = ["local", "on-premise"], ["aws", "gcp", "azure"]
TOKEN_FILE = "~/.ray/auth_token"  # noqa: S105 - where it lies, not what it is


def load(name: str) -> dict[str, Any]:
    config = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    assert isinstance(config, dict)
    return config


def prepared(name: str) -> dict[str, Any]:
    """A file as `ray up` sees it before it asks the provider: completed by Ray's defaults."""
    from ray.autoscaler._private.util import prepare_config

    return dict(prepare_config(load(name)))


def start_commands(config: dict[str, Any], whose: str) -> list[list[str]]:
    """The arguments of each `ray start` among the commands."""
    found = []
    for line in config[f"{whose}_start_ray_commands"]:
        for part in line.split(";"):
            words = shlex.split(part)
            if words[:2] == ["ray", "start"]:
                found.append(words[2:])
    return found


@pytest.mark.parametrize("name", LOCAL + CLOUD)
def test_ray_accepts_the_file(name: str) -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared(name))


@pytest.mark.parametrize("name", LOCAL + CLOUD)
def test_ray_refuses_a_key_it_does_not_know(name: str) -> None:
    """The schema is closed: the test above would see a misspelt key."""
    from ray.autoscaler._private.util import validate_config

    config = prepared(name)
    with pytest.raises(ValidationError, match="idle_timeout_minute"):
        validate_config({**config, "idle_timeout_minute": 5})
    kind = next(iter(config["available_node_types"]))
    misspelt = copy.deepcopy(config)
    misspelt["available_node_types"][kind]["min_worker"] = 0
    with pytest.raises(ValidationError, match="min_worker"):
        validate_config(misspelt)


@pytest.mark.parametrize("name", LOCAL + CLOUD)
def test_ray_start_accepts_every_option(name: str) -> None:
    from ray.scripts.scripts import start

    config = load(name)
    (head,) = start_commands(config, "head")
    parsed = start.make_context("ray start", list(head)).params
    assert parsed["head"]
    assert parsed["dashboard_host"] == "127.0.0.1", "the dashboard takes jobs: it listens on loopback only"
    assert parsed["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert parsed["disable_usage_stats"]
    for worker in start_commands(config, "worker"):
        joined = start.make_context("ray start", list(worker)).params
        assert joined["address"] == f"$RAY_HEAD_IP:{parsed['port']}"
    assert bool(start_commands(config, "worker")) == (name != "local")


@pytest.mark.parametrize("name", LOCAL + CLOUD)
def test_what_is_copied_is_there_and_installs(name: str) -> None:
    mounts = load(name)["file_mounts"]
    assert mounts.pop(TOKEN_FILE) == TOKEN_FILE
    assert mounts.pop("~/data", None) == ("REPLACE_DATA" if name in CLOUD else None)
    assert all((ROOT / here).exists() for here in mounts.values())
    assert {f"~/cdn-tune/{here}" for here in mounts.values()} == set(mounts)
    project = (ROOT / "pyproject.toml").read_text()
    needed = {"cdn_tune", "pyproject.toml", *re.findall(r'^(\w+) = "cdn_tune/shipped', project, re.MULTILINE)}
    needed |= set(re.findall(r'^readme = "(.+)"', project, re.MULTILINE))
    assert needed <= set(mounts.values())


@pytest.mark.parametrize("name", LOCAL + CLOUD)
def test_every_process_there_learns_what_it_must(name: str, tmp_path: Path) -> None:
    """The commands that write the environment are run, twice, in an empty home; its login shells then have it."""
    commands = [line for line in load(name)["setup_commands"] if "cdn-tune.env" in line]
    assert len(commands) == 2
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "USER": "somebody"}
    for line in commands * 2:
        subprocess.run(["bash", "-c", line], env=home, check=True, timeout=30)
    # As Ray's launcher runs a command: ray.autoscaler._private.command_runner._with_interactive.
    told = subprocess.run(
        ["bash", "--login", "-c", "-i", "source ~/.bashrc; env"],
        env=home,
        check=True,
        timeout=30,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    ).stdout
    seen = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
    assert seen["RAY_AUTH_MODE"] == "token"
    assert seen["RAY_USAGE_STATS_ENABLED"] == "0"
    assert seen["CDN_TUNE_CACHE"].startswith("/")
    assert "$" not in seen["CDN_TUNE_CACHE"]
    assert seen["PATH"].startswith(f"{tmp_path}/.venvs/cdn-tune/bin:")
    assert (tmp_path / ".bashrc").read_text().count("cdn-tune.env") == 1


@pytest.mark.parametrize("name", CLOUD)
def test_nothing_but_the_head_costs_money_while_idle(name: str) -> None:
    config = prepared(name)
    assert config["idle_timeout_minutes"] <= 10
    workers = {kind: what for kind, what in config["available_node_types"].items() if kind != config["head_node_type"]}
    assert workers
    assert all(what["min_workers"] == 0 and what["max_workers"] > 0 for what in workers.values())
    assert all(what["resources"]["GPU"] > 0 for what in workers.values())
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}, "no trial runs on the head"
    assert head["max_workers"] == 0
    assert config["provider"]["cache_stopped_nodes"], "the study lies on the head's disk"


@pytest.mark.parametrize("name", CLOUD)
def test_workers_are_spot_and_the_head_is_not(name: str) -> None:
    config = load(name)
    spot = {
        "aws": lambda node: node.get("InstanceMarketOptions", {}).get("MarketType") == "spot",
        "gcp": lambda node: node.get("scheduling", {}).get("provisioningModel") == "SPOT",
        "azure": lambda node: node["azure_arm_parameters"].get("priority") == "Spot",
    }[name]
    for kind, what in config["available_node_types"].items():
        assert spot(what["node_config"]) == (kind != config["head_node_type"]), kind


def test_azure_node_configs_are_parameters_of_rays_template() -> None:
    """Azure refuses a deployment with a parameter that its template does not declare."""
    import ray.autoscaler._private as private

    folder = Path(private.__path__[0]) / "_azure"
    declared = json.loads((folder / "azure-vm-template.json").read_text())["parameters"]
    types = {"string": str, "int": int, "bool": bool, "object": dict, "array": list}
    for kind, what in load("azure")["available_node_types"].items():
        assert set(what["node_config"]) <= {"azure_arm_parameters", "tags"}
        for key, value in what["node_config"]["azure_arm_parameters"].items():
            assert key == "availability_zone" or isinstance(value, types[declared[key]["type"]]), (kind, key)


def test_aws_node_configs_are_what_ec2_accepts() -> None:
    """Against EC2's own description of RunInstances, which botocore carries."""
    botocore = pytest.importorskip("botocore")
    from botocore.loaders import Loader
    from botocore.model import ServiceModel
    from botocore.validate import ParamValidator

    assert botocore.__version__
    shape = ServiceModel(Loader().load_service_model("ec2", "service-2")).operation_model("RunInstances").input_shape
    for kind, what in load("aws")["available_node_types"].items():
        report = ParamValidator().validate({**what["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), f"{kind}: {report.generate_report()}"
        assert set(what["node_config"]) <= set(shape.members), kind


def test_gcp_node_configs_are_what_compute_engine_accepts() -> None:
    """Against Compute Engine's own description of an Instance, which googleapiclient carries."""
    discovery = pytest.importorskip("googleapiclient.discovery_cache")
    file = Path(discovery.__file__).parent / "documents" / "compute.v1.json"
    schemas = json.loads(file.read_text())["schemas"]
    for kind, what in load("gcp")["available_node_types"].items():
        _check_against(what["node_config"], {"$ref": "Instance"}, schemas, kind)


def _check_against(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str) -> None:
    """Checks names, types and enumerations of a Google API value."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    types = {"object": dict, "array": list, "string": (str, int), "boolean": bool, "integer": int}
    assert isinstance(value, types[schema["type"]]), where
    assert "enum" not in schema or value in schema["enum"], f"{where}: {value}"
    if isinstance(value, dict) and "properties" in schema:
        for key, each in value.items():
            assert key in schema["properties"], f"{where}.{key}"
            _check_against(each, schema["properties"][key], schemas, f"{where}.{key}")
    if isinstance(value, list):
        for each in value:
            _check_against(each, schema["items"], schemas, f"{where}[]")


@pytest.mark.parametrize("name", LOCAL)
def test_ray_up_goes_through(name: str, tmp_path: Path) -> None:
    """`ray up` in earnest, but with an ssh and an rsync that only write down what they are asked."""
    text = (CLUSTER / f"{name}.yaml").read_text()
    for number, mark in enumerate(("REPLACE_WORKSTATION", "REPLACE_HEAD", "REPLACE_WORKER_1", "REPLACE_WORKER_2"), 2):
        text = text.replace(mark, f"127.0.0.{number}")
    file, tools, home = tmp_path / "cluster.yaml", tmp_path / "bin", tmp_path / "home"
    file.write_text(text.replace("REPLACE_USER", "somebody"))
    tools.mkdir()
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("not-to-be-seen")
    for tool in ("ssh", "rsync"):
        (tools / tool).write_text(f'#!/bin/sh\nprintf "%s\\n" "{tool} $*" >> "{tmp_path}/asked"\n')
        (tools / tool).chmod(0o755)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(home),
        "RAY_TMPDIR": str(tmp_path / "ray"),
        "TMPDIR": str(tmp_path),
    }
    (tmp_path / "ray").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "up", "--yes", "--no-config-cache", str(file)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    asked = (tmp_path / "asked").read_text()
    assert "ray start --head" in asked
    assert all(line in asked.replace("'\"'\"'", "'") for line in load(name)["setup_commands"] if "'" not in line)
    assert re.search(rf"rsync .*{re.escape(str(home))}/.ray/auth_token somebody@127\.0\.0\.\d:~/.ray/auth_token", asked)
    assert "somebody@127.0.0." in asked
    assert "not-to-be-seen" not in asked + said, "the token's value appears on a command line"


@pytest.mark.parametrize("file", sorted(CLUSTER.rglob("*.*")), ids=lambda file: file.name)
def test_no_secret_and_no_open_port(file: Path) -> None:
    text = file.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|://\w+:\w+@", text)
    bare = re.sub(r"#.*", "", text)
    given = r"(?i)(password|secret_?key|auth_?token)\s*[:=]\s*(?!-\})[^\s{]"  # `:-}` is bash's empty default
    assert not re.search(given, bare.replace(TOKEN_FILE, "")), file
    assert "0.0.0.0" not in bare  # noqa: S104 - that nothing is bound to it


def test_shell_commands_parse() -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    for name in LOCAL + CLOUD:
        for key, lines in load(name).items():
            for line in lines if key.endswith("_commands") else []:
                subprocess.run(["bash", "-n", "-c", line], check=True, timeout=30)


@pytest.mark.parametrize("name", LOCAL + CLOUD)
def test_every_key_is_explained(name: str) -> None:
    """A comment stands above each top-level key, or above what comes first in it."""
    lines = (CLUSTER / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    for number, line in enumerate(lines):
        if re.match(r"\w+:", line):
            around = [lines[number - 1], *lines[number + 1 : number + 2]]
            assert any(each.strip().startswith("#") for each in around), line
