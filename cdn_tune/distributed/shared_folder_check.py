"""Checks that every node of the cluster reaches the run folder, before a trial is lost to it."""

import secrets
from pathlib import Path

from cdn_tune.distributed.nodes import Node, alive_nodes, pinned, small_task
from cdn_tune.distributed.ray import GetTimeoutError, RayError, ray
from cdn_tune.errors import RunError
from cdn_tune.training.object_store.working_copy import place_of, portable, shown, working_copy
from cdn_tune.training.runs.files import write_errors

_SECONDS = 180.0  # for all nodes together; the first import from a shared file system can take a minute and more


def check_shared_folder(run: Path) -> None:
    """Raises RunError, with the remedy, if a node of the joined cluster does not find a file written to a run."""
    place = place_of(run)
    nodes = alive_nodes()
    if len(nodes) < 2:
        return
    name, token = f".reach-{secrets.token_hex(8)}", secrets.token_hex(8)
    try:
        if place is not None:
            place.store.write(name, token.encode())
        else:
            with write_errors(run / name):
                (run / name).write_text(token, encoding="ascii")
        _check_nodes(nodes, run, name, token)
    finally:
        if place is not None:
            place.store.delete(name)
        else:
            (run / name).unlink(missing_ok=True)


def _check_nodes(nodes: list[Node], run: Path, name: str, token: str) -> None:
    task = small_task(what_is_missing)
    tasks = {pinned(task, node.id).remote(portable(run), name, token): node for node in nodes}
    ray.wait(list(tasks), num_returns=len(tasks), timeout=_SECONDS)
    for reference, node in tasks.items():
        where = f"node {node.name} ({node.address})"
        try:
            missing = ray.get(reference, timeout=0.1)
        except (GetTimeoutError, RayError) as error:
            reason = " ".join(str(error).split())[:160]
            raise RunError(f"{shown(run)}: {where} did not say whether it sees it ({reason}); is it up?") from None
        if missing is not None:
            raise RunError(f"{shown(run)}: {where} {missing}")


def what_is_missing(run: str, name: str, token: str) -> str | None:
    """Returns why this node does not reach the run folder; None if it does. Module-level, so that it pickles."""
    try:
        folder = working_copy(run)
        place = place_of(folder)
        if place is not None:
            found = place.store.read(name)
        else:
            found = (folder / name).read_bytes() if (folder / name).exists() else None
    except (RunError, OSError) as error:
        return f"cannot reach it ({error})"
    if found == token.encode():
        return None
    return (
        "does not see it: that folder is not shared with this machine; choose a --run folder on a file system that all "
        "nodes have under the same path, or one on an object store, such as s3://BUCKET/NAME"
    )
