"""Resolves a kustomization as far as the project's own need it, so that they are checked where kubectl is absent."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
_KEYS = {"apiVersion", "kind", "namespace", "resources", "patches", "images"}
_CLUSTER_WIDE = {"Namespace"}


def resolve(folder: Path) -> list[Object]:
    """Returns the objects of a kustomization: resources, patched, in its namespace, with its images.

    Args:
        folder: The folder that holds ``kustomization.yaml``.

    Raises:
        ValueError: If a file or a patch's target is missing, a patch does not apply, or a key is not known here.
    """
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := set(plan) - _KEYS:
        raise ValueError(f"{folder}: {sorted(unknown)} not known here")
    objects: list[Object] = []
    for name in plan["resources"]:
        path = folder / name
        if path.is_dir():
            objects += resolve(path)
        elif path.is_file():
            objects += [each for each in yaml.safe_load_all(path.read_text()) if each]
        else:
            raise ValueError(f"{folder}: {name} does not exist")
    objects = copy.deepcopy(objects)  # YAML aliases share what a patch would change in one place
    for patch in plan.get("patches", []):
        objects = _patched(objects, yaml.safe_load((folder / patch["path"]).read_text()), patch.get("target"))
    for each in objects:
        if "namespace" in plan and each["kind"] not in _CLUSTER_WIDE:
            each["metadata"]["namespace"] = plan["namespace"]
        for image in plan.get("images", []):
            _rename(each, image)
    return [_without_aliases(each) for each in objects]


def pods(thing: Any) -> list[Object]:
    """Returns all pod templates' specs within an object."""
    if isinstance(thing, list):
        return [pod for each in thing for pod in pods(each)]
    if not isinstance(thing, dict):
        return []
    here = [thing] if "containers" in thing else []
    return here + [pod for each in thing.values() for pod in pods(each)]


def containers(pod: Object) -> list[Object]:
    """Returns a pod's containers, those that run first included."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def _without_aliases(each: Object) -> Object:
    return yaml.load(yaml.dump(each, Dumper=_Plain), Loader=yaml.SafeLoader)  # type: ignore[no-any-return]


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _patched(objects: list[Object], patch: Any, target: dict[str, str] | None) -> list[Object]:
    if isinstance(patch, list):  # JSON patch, RFC 6902
        found = [each for each in objects if target and _is(each, target["kind"], target["name"])]
        if len(found) != 1:
            raise ValueError(f"a patch's target {target} is there {len(found)} times")
        fixed = _without_aliases(found[0])
        for step in patch:
            _apply(fixed, step)
        return [fixed if each is found[0] else each for each in objects]
    if patch.get("$patch") != "delete":
        raise ValueError("of strategic merge patches only deletions are known here")
    rest = [each for each in objects if not _is(each, patch["kind"], patch["metadata"]["name"])]
    if len(rest) != len(objects) - 1:
        raise ValueError(f"{patch['kind']} {patch['metadata']['name']}: nothing to delete")
    return rest


def _is(each: Object, kind: str, name: str) -> bool:
    return bool(each["kind"] == kind and each["metadata"]["name"] == name)


def _apply(document: Any, step: dict[str, Any]) -> None:
    *parents, last = step["path"].strip("/").split("/")
    for name in parents:
        document = document[int(name)] if isinstance(document, list) else document[name]
    key: Any = int(last) if isinstance(document, list) else last
    there = key < len(document) if isinstance(document, list) else key in document
    if step["op"] != "add" and not there:
        raise ValueError(f"{step['op']} {step['path']}: nothing is there")
    if step["op"] == "test":
        if document[key] != step["value"]:
            raise ValueError(f"test {step['path']}: {document[key]!r} is there, not {step['value']!r}")
    elif step["op"] == "remove":
        del document[key]
    elif step["op"] in ("add", "replace"):
        document[key] = step["value"]
    else:
        raise ValueError(f"{step['op']}: not known here")


def _rename(thing: Object, image: dict[str, str]) -> None:
    for pod in pods(thing):
        for container in containers(pod):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
