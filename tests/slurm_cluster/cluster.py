"""`Cluster`: munge, MariaDB, slurmdbd, slurmctld and several slurmd of Debian's packages, below one directory.

    with Cluster(nodes=2, gpus=8) as cluster:
        cluster.run(["srun", "--nodes=2", "hostname"])

It needs root (slurmd runs jobs as their users) and touches nothing outside its directory, its loopback ports and the
processes that it started; two clusters live side by side. What it starts ends with it, also where its owner is killed.
"""

import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from slurm.commands import seconds_of
from slurm_cluster.configuration import Layout, files

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "srun", "sacctmgr")
PACKAGES = "slurm-wlm slurmdbd mariadb-server munge"
IN_SERVICE = {"idle", "mixed", "allocated"}
LONGEST = 60
"""Characters of the directory: slurmstepd's socket below it adds about 40, and Linux takes 107."""
PATIENCE_S = 60.0
POLL_S = 0.1

# What a site's administrator sets up: accounts, who may use them, qualities of service with a limit to run into.
ACCOUNTING = """\
add qos debug MaxWall=00:05:00 MaxTRESPerUser=gres/gpu=2 Flags=DenyOnLimit
add account research Description=research Organization=research
add account small Description=small Organization=small GrpTRES=gres/gpu=2
add user root Account=research,small DefaultAccount=research QOS=normal,debug DefaultQOS=normal
"""


def why_not() -> str | None:
    """Why no cluster can be brought up here; None where it can."""
    if sys.platform != "linux":
        return "Slurm runs on Linux"
    if os.geteuid() != 0:
        return "a cluster of several slurmd needs root"
    missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: apt-get install {PACKAGES})"
    address = socket.gethostbyname(host_name())
    if not address.startswith("127."):
        return f"the host's name resolves to {address}; put '127.0.0.1 {host_name()}' first in /etc/hosts"
    return None


class Cluster:
    """A Slurm cluster of one's own.

    Args:
        directory: where everything lives; what is there is taken up again (jobs, accounting). None: a temporary
            directory, removed in the end.
        nodes: how many slurmd: node1, node2, ...
        gpus: fake GPUs on each node, of type h100.
        preempt_send_user_signal: see `reconfigure`.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        nodes: int = 4,
        gpus: int = 8,
        preempt_send_user_signal: bool = True,
    ):
        self._temporary = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="slurm-")) if directory is None else directory.resolve()
        if len(str(self.directory)) > LONGEST:
            raise ValueError(f"{self.directory}: more than {LONGEST} characters are too many for the sockets below it")
        controller_port, database_port, *node_ports = free_ports(2 + nodes)
        self.layout = Layout(
            self.directory,
            host_name(),
            socket.gethostbyname(host_name()),
            controller_port,
            database_port,
            tuple(node_ports),
            gpus,
            preempt_send_user_signal,
        )
        self._supervisor: subprocess.Popen[str] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a user's shell needs to speak with this cluster: one variable."""
        return {"SLURM_CONF": str(self.layout.slurm_conf)}

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes."""
        return self.layout.nodes

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Bringing up and down

    def start(self) -> None:
        """Bring all daemons up and wait for the nodes; AssertionError with the end of the logs where that fails."""
        self._supervisor = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("supervisor.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self._prepare()
            self._start_munge()
            self._start_database()
            self.start_controller()
            for name in self.nodes:
                self.start_node(name)
            self._account()
            self.wait_for(self._in_service, "nodes in service")
        except BaseException:
            self.stop()
            raise

    def stop(self, *, graceful: bool = False) -> None:
        """End everything, jobs included; gracefully (the state on disk is then whole) or at once."""
        if self._supervisor is not None:
            for name in ("slurmctld", *self.nodes, "slurmdbd", "mariadbd") if graceful else ():
                self._stop(name, signal.SIGTERM)
            self._supervisor.communicate()
            self._supervisor = None
        if self._temporary:
            shutil.rmtree(self.directory)

    def _in_service(self) -> bool:
        states = self.node_states()
        return len(states) == len(self.nodes) and IN_SERVICE.issuperset(states.values())

    def _prepare(self) -> None:
        """Directories, configuration, munge's key, the fake GPUs' device nodes (each is another /dev/null)."""
        for name in (
            "munge",
            "etc",
            "log",
            "out",
            "run",
            "state",
            "dev",
            "tmp",
            *(f"spool/{node}" for node in self.nodes),
        ):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        self._configure()
        key = self.directory / "munge" / "key"
        if not key.exists():
            key.touch(mode=0o400)
            key.write_bytes(os.urandom(64))
        for number in range(self.layout.gpus):
            device = self.directory / "dev" / f"nvidia{number}"
            if not device.exists():
                os.mknod(device, 0o020666, os.makedev(1, 3))

    def _configure(self) -> None:
        for name, text in files(self.layout).items():
            path = self.layout.slurm_conf.with_name(name)
            path.touch(mode=0o600)
            path.write_text(text)
            path.chmod(0o600 if name == "slurmdbd.conf" else 0o644)

    def _start_munge(self) -> None:
        place = self.directory / "munge"
        # --force: a directory below /tmp, which all may write to, is only a warning.
        options = {"key-file": "key", "pid-file": "pid", "seed-file": "seed", "socket": "socket"}
        self._start(
            "munged",
            ["munged", "--foreground", "--force", *(f"--{option}={place / name}" for option, name in options.items())],
        )
        self.wait_for(self.layout.munge_socket.exists, "munged")

    def _start_database(self) -> None:
        """MariaDB on a socket only, and slurmdbd over it, with the accounts."""
        data = self.directory / "mysql"
        if new := not data.exists():
            self._call(
                "mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--tmpdir={self.directory}/tmp",
                "--user=root", "--skip-test-db", "--auth-root-authentication-method=socket",
            )  # fmt: skip
        # A tmpdir of its own: it removes all temporary tables that it finds there, of other servers too.
        # The data need not outlive a power cut, so no write waits for the disk.
        self._start("mariadbd", [
            "mariadbd", "--no-defaults", f"--datadir={data}", f"--tmpdir={self.directory}/tmp", "--user=root",
            "--skip-networking",
            f"--socket={self.layout.mysql_socket}", f"--pid-file={self.directory}/run/mariadbd.pid",
            "--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync", "--innodb-buffer-pool-size=128M",
            "--innodb-lock-wait-timeout=900", "--skip-log-bin", f"--log-error={self.directory}/log/mariadbd.log",
        ])  # fmt: skip
        self.wait_for(lambda: connects(str(self.layout.mysql_socket)), "MariaDB")
        self._start("slurmdbd", ["slurmdbd", "-D"])
        self.wait_for(lambda: connects((self.layout.address, self.layout.database_port)), "slurmdbd")
        if new:
            self._call("sacctmgr", "--immediate", "add", "cluster", "cluster")

    def start_controller(self) -> None:
        """Start slurmctld, and wait until it listens."""
        self._start("slurmctld", ["slurmctld", "-D"])
        self.wait_for(lambda: connects((self.layout.address, self.layout.controller_port)), "slurmctld")

    def _account(self) -> None:
        """Set the accounts up; GPUs can be limited only once the controller has told slurmdbd of them."""
        self.wait_for(lambda: "gpu" in self.run(["sacctmgr", "--noheader", "show", "tres"]).stdout, "GPUs in slurmdbd")
        if "research" not in self.run(["sacctmgr", "--noheader", "show", "account"]).stdout:
            done = self.run(["sacctmgr", "--immediate"], text=ACCOUNTING, check=False)
            if "error" in done.stderr:
                raise AssertionError(done.stdout + done.stderr)

    # What a test does to it

    def run(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        timeout_s: float = PATIENCE_S,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        text: str | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command as a user of the cluster does; AssertionError with its output where `check` and it fails."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment, **(environment or {})},
            cwd=cwd or self.directory,
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command} exited {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def submit(self, *options: str, script: str) -> int:
        """`sbatch` a script (its text after the first line); returns the job's number."""
        out = self.run(["sbatch", "--parsable", *options], text=f"#!/bin/bash\n{script}\n").stdout
        return int(out.partition(";")[0])

    def state(self, job: int | str) -> str:
        """What squeue says of a job, PENDING, RUNNING, COMPLETED, ...: it knows one until MinJobAge after its end."""
        return self.run(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]).stdout.strip()

    def wait_state(self, job: int | str, *states: str, timeout_s: float = PATIENCE_S) -> str:
        """Wait until squeue says one of `states`."""
        self.wait_for(lambda: self.state(job) in states, f"job {job} in {' or '.join(states)}", timeout_s)
        return self.state(job)

    def accounting(self, job: int, fields: str = "JobID,State") -> list[list[str]]:
        """The rows of `sacct` for a job and its steps; every run of a requeued job has its own."""
        command = ["sacct", "--noheader", "--parsable2", "--duplicates", f"--jobs={job}", f"--format={fields}"]
        return [line.split("|") for line in self.run(command).stdout.splitlines()]

    def node_states(self) -> dict[str, str]:
        """What sinfo says of each node: idle, mixed, down, ... ('*': it does not answer)."""
        done = self.run(["sinfo", "--noheader", "--Node", "--partition=batch", "--format=%N %T"], check=False)
        return dict(line.split(" ") for line in done.stdout.splitlines())

    def wait_node(self, name: str, *states: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until sinfo says one of `states` of a node."""
        self.wait_for(lambda: self.node_states().get(name) in states, f"{name} {' or '.join(states)}", timeout_s)

    def wait_for(self, happened: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Poll until something happens; AssertionError with the end of the logs where it does not."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            if time.monotonic() > deadline:
                raise AssertionError(f"no {what} within {timeout_s:.0f} s\n{self.logs()}")
            time.sleep(POLL_S)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd."""
        self._start(name, ["slurmd", "-D", "-N", name])

    def stop_node(self, name: str, *, graceful: bool = False) -> None:
        """End a node's slurmd, by SIGKILL unless `graceful`. Its jobs go on; after SlurmdTimeout the node is down."""
        self._stop(name, signal.SIGTERM if graceful else signal.SIGKILL)

    def down_node(self, name: str, reason: str) -> None:
        """Set a node down, which ends the jobs on it (NODE_FAIL, or requeued)."""
        self.run(["scontrol", "update", f"nodename={name}", "state=down", f"reason={reason}"])

    def resume_node(self, name: str) -> None:
        """Take a node that is down or drained into service again, and wait for it."""
        self.run(["scontrol", "update", f"nodename={name}", "state=resume"])
        self.wait_node(name, *IN_SERVICE)

    def restart_controller(self, *, graceful: bool = True) -> None:
        """End slurmctld, by SIGTERM or SIGKILL, and start it again; it takes the jobs up from its state."""
        self.stop_controller(graceful=graceful)
        self.start_controller()

    def stop_controller(self, *, graceful: bool = True) -> None:
        """End slurmctld; jobs run on, and `start_controller` brings it back."""
        self._stop("slurmctld", signal.SIGTERM if graceful else signal.SIGKILL)

    def reconfigure(self, *, preempt_send_user_signal: bool) -> None:
        """Choose what a preempted job gets first: the signal it asked for by --signal, or SIGTERM (Slurm's default)."""
        self.layout = replace(self.layout, preempt_send_user_signal=preempt_send_user_signal)
        self._configure()
        self.run(["scontrol", "reconfigure"])

    def expire(self, job: int | str, seconds: int) -> None:
        """Move a running job's end to `seconds` from now: the smallest limit that can be asked for is a minute.

        slurmctld looks at limits, and at the time of --signal, every 30 s only. The limit that squeue shows then is up
        to two minutes beyond that end; `limit` makes one that is in keeping with it.
        """
        self.run(["scontrol", "update", f"jobid={job}", f"endtime=now+{seconds}"])

    def limit(self, job: int | str, seconds: int) -> None:
        """Give a running job the smallest limit, of whole minutes, that leaves it `seconds` at least."""
        used = seconds_of(self.run(["squeue", "--noheader", f"--jobs={job}", "--format=%M"]).stdout.strip())
        assert used is not None, f"job {job} does not run"
        self.run(["scontrol", "update", f"jobid={job}", f"timelimit={math.ceil((used + seconds) / 60)}"])

    def extend_when_requeued(self, job: int | str, minutes: int) -> None:
        """Give a job that ran into its moved end a limit again that a slow machine does not meet a second time."""
        self.wait_for(lambda: self.state(job) == "PENDING", f"job {job} requeued", 120)
        self.run(["scontrol", "update", f"jobid={job}", f"timelimit={minutes}"])

    def tidy(self) -> None:
        """Cancel all jobs, start what was stopped, and take every node into service again."""
        if not self.layout.preempt_send_user_signal:
            self.reconfigure(preempt_send_user_signal=True)
        for name, runs in self.running().items():
            if name in self.nodes and not runs:
                self.start_node(name)
        if self.run(["squeue", "--noheader"]).stdout:
            self.run(["scancel", "--user=root"])
            self.wait_for(lambda: not self.run(["squeue", "--noheader"]).stdout, "empty queue")
        for name, state in self.node_states().items():
            if state.startswith(("down", "drain")):
                self.resume_node(name)
        self.wait_for(lambda: set(self.node_states().values()) == {"idle"}, "idle nodes")

    def logs(self, lines: int = 8) -> str:
        """The end of every log."""
        paths = sorted((self.directory / "log").glob("*"))
        ends = ("\n".join(path.read_text(errors="replace").splitlines()[-lines:]) for path in paths)
        return "\n".join(f"--- {path.name}\n{end}" for path, end in zip(paths, ends, strict=True))

    def running(self) -> dict[str, bool]:
        """Whether each daemon runs, by name: munged, mariadbd, slurmdbd, slurmctld, node1, ..."""
        found: dict[str, bool] = self._ask("running")
        return found

    def processes(self) -> list[int]:
        """Every process of the cluster, jobs' included: the supervisor first."""
        if self._supervisor is None:
            return []
        import psutil

        top = psutil.Process(self._supervisor.pid)
        return [top.pid, *(child.pid for child in top.children(recursive=True))]

    # The supervisor

    def _start(self, name: str, command: Sequence[str]) -> None:
        environment = {**os.environ, **self.environment, "MYSQL_UNIX_PORT": str(self.layout.mysql_socket)}
        environment["PATH"] = _path()
        log = str(self.directory / "out" / name)
        program = shutil.which(command[0], path=_path())
        self._ask("start", name=name, command=[program, *command[1:]], environment=environment, log=log)

    def _stop(self, name: str, number: signal.Signals) -> None:
        self._ask("stop", name=name, number=int(number), patience_s=PATIENCE_S)

    def _ask(self, do: str, **parameters: Any) -> Any:
        supervisor = self._supervisor
        if supervisor is None or supervisor.stdin is None or supervisor.stdout is None:
            raise RuntimeError("the cluster is not running")
        supervisor.stdin.write(json.dumps({"do": do, **parameters}) + "\n")
        supervisor.stdin.flush()
        reply = json.loads(supervisor.stdout.readline())
        if "error" in reply:
            raise RuntimeError(f"{do} {parameters}: {reply['error']}")
        return reply["result"]

    def _call(self, *command: str, text: str | None = None) -> None:
        self.run(command, text=text, environment={"PATH": _path()})


def host_name() -> str:
    """The name by which slurmctld and slurmd know this machine: `hostname --short`."""
    return socket.gethostname().partition(".")[0]


def _path() -> str:
    """PATH with the directories of Debian's daemons, which a user's may lack."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def connects(address: tuple[str, int] | str) -> bool:
    """Whether somebody listens on a port or on a Unix socket."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as probe:
        return probe.connect_ex(address) == 0


def free_ports(count: int) -> list[int]:
    """Loopback ports where nobody listens, below those that the kernel gives to clients (32768 and up)."""
    chosen: list[int] = []
    for port in random.sample(range(10_000, 32_000), 1000):
        if not connects(("127.0.0.1", port)):
            chosen.append(port)
        if len(chosen) == count:
            return chosen
    raise RuntimeError(f"fewer than {count} free ports")
