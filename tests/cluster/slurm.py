"""A real Slurm on this machine: munge, a controller and two nodes, with everything they write in one folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NODES = {"n0": "127.0.0.2", "n1": "127.0.0.3"}  # names that resolve nowhere, and where Slurm reaches them
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
_CPUS = 4  # of a node, whatever this machine has
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

_CONFIGURATION = """\
ClusterName=cdn-tune
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A job that is put back may start again once credentials of its last start have run out.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# What a container has: no cgroups of its own, no accounting.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2
# A node that does not answer is down within half a minute; what is asked to end has as long.
SlurmdTimeout=20
KillWait=30
ReturnToService=2
# Ray's ports and folders follow from a job's number.
FirstJobId={first}
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.2 Port={ports[1]} CPUs={cpus}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.3 Port={ports[2]} CPUs={cpus}
PartitionName=all Nodes=n0,n1 Default=YES MaxTime=60 State=UP
"""


def missing() -> list[str]:
    """Returns the programs of a Slurm that are not installed here."""
    return [name for name in NEEDED if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin"


class Slurm:
    """A controller and two nodes, from `start` to `stop`.

    Args:
        folder: An empty folder with a short path: sockets lie in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM", "SBATCH_"))}
        self.environment = {**kept, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf"), "HOME": str(folder)}
        self.environment["RAY_worker_niceness"] = "0"  # or trials starve beside other tests
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Starts all of it; returns once both nodes take jobs."""
        ports = _free_ports(3)
        first = 10_000 + secrets.randbelow(1_000_000)
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                host=socket.gethostname().split(".")[0],
                user=getpass.getuser(),
                folder=self.folder,
                ports=ports,
                cpus=_CPUS,
                first=first,
            )
        )
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "log-file": "munge.log"}
        files["seed-file"] = "munge.seed"
        options = [f"--{name}={self.folder / file}" for name, file in files.items()]
        self._start("munged", "--foreground", "--force", "--num-threads=2", *options)
        self.wait_until((self.folder / "munge.socket").exists)
        self._start("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        self.wait_until(lambda: all(state.startswith("IDLE") for state in self.node_states().values()))

    def start_node(self, node: str) -> None:
        """Starts the daemon of a node."""
        self._start("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """Has a node die: its daemon and all that it runs, at once."""
        daemon = self._daemons.pop(node)
        for process in [daemon.pid, *_below(daemon.pid), *self._of_node(node)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        daemon.wait()

    def stop(self) -> list[str]:
        """Ends every job, then the daemons; returns the command lines of processes that live on, and kills them."""
        with contextlib.suppress(subprocess.SubprocessError, AssertionError):  # a daemon is gone, or a job stays
            self.ask("scancel", "--user", getpass.getuser())
            self.wait_until(lambda: not self.ask("squeue", "--noheader"))
            self.wait_until(lambda: not [each for each in self.processes() if each not in self._pids()])
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=20)
            daemon.kill()
            daemon.wait()
        left = {process: _read(process, "cmdline").replace(b"\0", b" ").decode() for process in self.processes()}
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return list(left.values())

    def ask(self, *command: str) -> str:
        """Returns what a command of Slurm prints; raises `subprocess.CalledProcessError` if it fails."""
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout.strip()

    def node_states(self) -> dict[str, str]:
        """Returns the state of each node."""
        found = {}
        with contextlib.suppress(subprocess.SubprocessError):  # the controller has only just started
            for line in self.ask("scontrol", "show", "node", "--oneliner").splitlines():
                facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
                found[facts["NodeName"]] = facts["State"]
        return {node: found.get(node, "?") for node in NODES}

    def submit(self, script: Path, *arguments: str, options: tuple[str, ...] = (), **environment: str) -> Job:
        """Submits a script from the folder; returns the job."""
        done = subprocess.run(
            ["sbatch", "--parsable", *options, str(script), *arguments],
            env={**self.environment, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return Job(self, done.stdout.strip())

    def processes(self) -> list[int]:
        """Returns the processes on this machine that belong to it or to its jobs."""
        mark = f"SLURM_CONF={self.folder}/".encode()
        return [process for process in _processes() if mark in _read(process, "environ")]

    def _pids(self) -> set[int]:
        """Returns the processes of the daemons."""
        return {process for daemon in self._daemons.values() for process in (daemon.pid, *_below(daemon.pid))}

    def _of_node(self, node: str) -> list[int]:
        """Returns the processes of the steps that run on a node, those that manage them included."""
        mark = f"SLURMD_NODENAME={node}\0".encode()
        steps = [process for process in self.processes() if mark in _read(process, "environ")]
        return [*steps, *{_parent(process) for process in steps} - {1, os.getpid()}]

    def wait_until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        """Waits for a condition; fails with the daemons' logs."""
        deadline = time.monotonic() + seconds
        while not condition():
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            assert not dead, f"{dead} ended\n{self.said()}"
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def said(self) -> str:
        """Returns the last lines of all logs."""
        files = (
            sorted(self.folder.glob("*.log"))
            + sorted(self.folder.glob("slurm-*.out"))
            + sorted(self.folder.glob("slurm-*-nodes/*.log"))
        )
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-4000:]}" for file in files)

    def _start(self, *command: str, name: str | None = None) -> None:
        with (self.folder / f"{name or command[0]}.out").open("ab") as output:
            self._daemons[name or command[0]] = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


class Job:
    """A job that was submitted, or a task of an array job.

    Attributes:
        slurm: Where.
        number: Its number, of a task ``JOB_TASK``.
    """

    def __init__(self, slurm: Slurm, number: str) -> None:
        self.slurm, self.number = slurm, number

    def task(self, number: int) -> Job:
        """Returns a task of an array job."""
        return Job(self.slurm, f"{self.number}_{number}")

    @property
    def log(self) -> str:
        """All that its script has printed."""
        files = self.slurm.folder.glob(f"slurm-{self.number}.*")  # .log of a search, .out of a training
        return "".join(file.read_text() for file in files)

    @property
    def facts(self) -> dict[str, str]:
        """What the controller knows of it."""
        text = self.slurm.ask("scontrol", "show", "job", "--oneliner", self.number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    @property
    def state(self) -> str:
        """``PENDING``, ``RUNNING``, ``COMPLETED``, ..."""
        return self.facts["JobState"]

    def wait_for(self, state: str, seconds: float = 120) -> None:
        """Waits until it is in a state; fails if it ends in another."""
        self.wait_until(lambda: self.state == state, seconds)

    def wait_until(self, condition: Callable[[], Any], seconds: float = 120) -> None:
        """Waits for a condition; fails if the job ends before."""
        deadline = time.monotonic() + seconds
        while not condition():
            state = self.state
            assert state not in ENDED or condition(), f"{state}\n{self.slurm.said()}"
            assert time.monotonic() < deadline, f"{state}\n{self.slurm.said()}"
            time.sleep(0.2)

    def cancel(self, *options: str) -> None:
        """Has Slurm end it, or send it a signal."""
        self.slurm.ask("scancel", *options, self.number)

    def requeue(self) -> None:
        """Has Slurm put it back into the queue, as an operator does."""
        self.slurm.ask("scontrol", "requeue", self.number)


def _free_ports(count: int) -> list[int]:
    """Returns ports on which nothing listens now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(process: int, file: str) -> bytes:
    try:
        return Path(f"/proc/{process}/{file}").read_bytes()
    except OSError:
        return b""


def _parent(process: int) -> int:
    fields = _read(process, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 1


def _below(process: int) -> list[int]:
    """Returns all processes that a process has started, directly or not."""
    children = [each for each in _processes() if _parent(each) == process]
    return [*children, *(each for child in children for each in _below(child))]
