"""`cdn-tune cluster status`: what a cluster has, what of it is free, and where its nodes differ from this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from rich.markup import escape
from rich.table import Table
from typer import Argument, Option

from cdn_tune.cli.app import cluster_app
from cdn_tune.cli.options import Json, Server
from cdn_tune.cli.show.output import UNKNOWN, duration_text, err, head_table, out, print_json, print_line, warn
from cdn_tune.errors import ClusterError

if TYPE_CHECKING:
    from cdn_tune.config import ResourcesConfig
    from cdn_tune.distributed.node_info import NodeInfo

_CLOCK_SECONDS = 5.0  # off by more than which timestamps of trials mislead
_SHOWN = ("python", "torch", "ray", "cdn-tune", "optuna")


@cluster_app.command(epilog="Example: cdn-tune cluster status --address auto --space search_spaces/tacos-core.yaml")
def status(
    job: Annotated[
        str | None, Argument(metavar="[JOB]", help="Show this job instead of the nodes.", show_default=False)
    ] = None,
    address: Server = None,
    space: Annotated[
        str | None, Option(metavar="SPACE", help="Count trials of this search space.", show_default="one CPU, GPU")
    ] = None,
    json: Json = False,
) -> None:
    """Show nodes, what of them is free, how many trials fit, and which node has other versions or a wrong clock."""
    from cdn_tune.distributed.address import is_job_server

    if job is not None:
        from cdn_tune.cli.cluster.jobs import print_job

        print_job(job, address, json)
    elif is_job_server(address):  # where only a job server is reached, a job surveys the nodes
        from cdn_tune.cli.cluster.submit import Shipping, run_job

        rest = [*(["--space", space] if space else []), *(["--json"] if json else [])]
        shipping = Shipping(Path() if space else None)
        run_job(["cluster", "status", *rest], "cluster status", {"space": space}, address, shipping, wait=True)
    else:
        _print_nodes(address or "auto", space, json)


def _print_nodes(address: str, space: str | None, as_json: bool) -> None:
    from cdn_tune.distributed.address import prepare

    prepare(address)
    from cdn_tune.config import load_space
    from cdn_tune.distributed.cluster import connected
    from cdn_tune.distributed.node_info import here, node_info

    resources = None if space is None else load_space(space)[0].resources
    with err.status("asking the nodes"), connected(address):
        nodes, ours = node_info(), here()
    room = room_for(resources or _one(nodes), nodes)
    if as_json:
        print_json(plain(nodes, ours, room))
    else:
        out.print(nodes_table(nodes))
        out.print(versions_table(nodes, ours))
        print_line(room_line(room))
        for line in fault_lines(nodes, ours):
            warn(line)
    if not any(node.versions for node in nodes):
        raise ClusterError(f"--address {address}: no node answers; look at the logs of Ray on the nodes")


class Room(NamedTuple):
    """How many trials there is room for."""

    resources: ResourcesConfig  # of one trial
    now: int  # with what is free now
    at_most: int  # with all that the nodes have


def room_for(resources: ResourcesConfig, nodes: Sequence[NodeInfo]) -> Room:
    """Returns how many trials fit on the nodes that answer."""
    from cdn_tune.distributed.cluster import capacity

    alive = [node for node in nodes if node.versions is not None]
    free, total = [node.free for node in alive], [node.total for node in alive]
    return Room(resources, capacity(resources, free), capacity(resources, total))


def nodes_table(nodes: Sequence[NodeInfo]) -> Table:
    """Returns the nodes' resources as a table, with their sum."""
    amounts = ("CPUs free", "GPUs free", "memory free", "object store free")
    table = head_table("node", "state", *amounts, "GPU", right=amounts)
    for node in nodes:
        style = "" if node.versions is not None else "red"
        table.add_row(_name(node), _state(node), *_cells([node]), escape(node.gpu), style=style)
    if len(nodes) > 1:
        answering = [node for node in nodes if node.versions is not None]
        table.add_section()
        table.add_row(f"{len(answering)} nodes", "", *_cells(answering), "", style="bold")
    return table


def versions_table(nodes: Sequence[NodeInfo], ours: dict[str, str | None]) -> Table:
    """Returns the versions on the nodes and on this machine as a table; what differs is marked."""
    from cdn_tune.distributed.node_info import differences

    table = head_table("versions", *_SHOWN, "clock")
    table.add_row("here", *(escape(ours[name] or "none") for name in _SHOWN), "", style="dim")
    for node in nodes:
        if node.versions is None:
            table.add_row(_name(node), *[UNKNOWN] * (len(_SHOWN) + 1), style="red")
            continue
        cells = {name: escape(node.versions[name] or "") for name in _SHOWN}
        for name in cells.keys() & differences(node, ours):
            cells[name] = f"[red]{cells[name] or 'none'} ![/red]"
        table.add_row(_name(node), *cells.values(), _clock(node))
    return table


def room_line(room: Room) -> str:
    """Returns how many trials fit, in a line."""
    needs = f"{room.resources.cpus_per_worker} CPU" + ("s" if room.resources.cpus_per_worker > 1 else "")
    if room.resources.gpus_per_worker:
        needs += f" and {room.resources.gpus_per_worker:g} GPU" + ("s" if room.resources.gpus_per_worker > 1 else "")
    if room.resources.workers > 1:
        needs = f"{room.resources.workers} workers with {needs} each"
    return f"trials of {needs}: {room.now} fit now, {room.at_most} when all is free"


def fault_lines(nodes: Sequence[NodeInfo], ours: dict[str, str | None]) -> list[str]:
    """Returns what is wrong with nodes and what to do, a line each."""
    from cdn_tune.distributed.node_info import differences

    lines = []
    for node in nodes:
        name = f"{node.host} ({node.address})"
        if node.versions is None:
            lines.append(f"{name}: {node.fault}; trials are not placed there until Ray runs on it again")
            continue
        wrong = differences(node, ours).items()
        if wrong:
            found = (f"{what} {there or 'none'} there, {mine or 'none'} here" for what, (there, mine) in wrong)
            lines.append(
                f"{name}: {', '.join(found)}; install the same on every node (pip install -c constraints.txt "
                "cdn-tune), use one image, or ship this cdn-tune with cluster submit --wheel"
            )
        if node.clock is not None and abs(node.clock) > _CLOCK_SECONDS:
            off = f"{duration_text(abs(node.clock))} {'ahead' if node.clock > 0 else 'behind'}"
            remedy = "set it with NTP (chrony), else times of trials and ages of heartbeats are wrong"
            lines.append(f"{name}: its clock is {off}; {remedy}")
    return lines


def plain(nodes: Sequence[NodeInfo], ours: dict[str, str | None], room: Room) -> dict[str, Any]:
    """Returns it all as plain values, ready for JSON."""
    from cdn_tune.distributed.node_info import differences

    return {
        "nodes": [asdict(node) | {"differs": sorted(differences(node, ours))} for node in nodes],
        "here": ours,
        "resources": room.resources.plain(),
        "trials_now": room.now,
        "trials_at_most": room.at_most,
    }


def _one(nodes: Sequence[NodeInfo]) -> ResourcesConfig:
    """Returns what a trial of one worker takes: a GPU if there is one."""
    from cdn_tune.config import ResourcesConfig

    return ResourcesConfig(gpus_per_worker=1.0 if any(node.total.get("GPU") for node in nodes) else 0.0)


def _name(node: NodeInfo) -> str:
    return escape(f"{node.host} {node.address}" if node.host not in ("", node.address) else node.address)


def _state(node: NodeInfo) -> str:
    if not node.is_alive:
        return "dead"
    return ("head" if node.is_head else "worker") + ("" if node.versions is not None else ", silent")


def _cells(nodes: Sequence[NodeInfo]) -> list[str]:
    """Returns free and total CPUs, GPUs, memory and object store of some nodes."""
    cells = []
    for name in ("CPU", "GPU", "memory", "object_store_memory"):
        free = sum(node.free.get(name, 0.0) for node in nodes)
        total = sum(node.total.get(name, 0.0) for node in nodes)
        cells.append(f"{free:g}/{total:g}" if name in ("CPU", "GPU") else f"{free / 1e9:.1f}/{total / 1e9:.1f} GB")
    return cells


def _clock(node: NodeInfo) -> str:
    if node.clock is None:
        return UNKNOWN
    if abs(node.clock) < 1:
        return "ok"
    text = f"{'+' if node.clock > 0 else '-'}{duration_text(abs(node.clock))}"
    return f"[red]{text} ![/red]" if abs(node.clock) > _CLOCK_SECONDS else text
