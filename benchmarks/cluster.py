"""The jobs of a sweep on a Ray cluster: benchmarks/sweep.py with `--launcher ray`.

Every machine has this package installed and sees the folders of runs and data under the same paths. Ray places the jobs
by the cores and GPUs they ask for; a job whose worker or machine dies is tried again, elsewhere if need be, and goes on
from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import algorithms
from common.errors import Refused
from common.machine import tied

PASSED_ON = ("MINARI_", "JAX_", "XLA_", "MUJOCO_", "WANDB_", "PYTHONPATH")
"""Beginnings of the names of the environment's variables that hold for a sweep's jobs on whatever machine."""
Start = Callable[[str, Sequence[str], Path], Any]
"""Gives Ray a job, an algorithm with its arguments and its run directory; returns what stands for its end."""


@dataclass(frozen=True)
class Resources:
    """What Ray is told."""

    address: str | None
    """Of a running cluster, as `ray.init` takes it; None starts one on this machine."""
    cpus: float
    """Cores of each job."""
    gpus: float
    """GPUs of each job; a fraction shares one."""
    retries: int
    """How often a job is tried again whose worker has died."""

    def __str__(self) -> str:
        """As asked for on the command line."""
        return f"--job-cpus {self.cpus:g} --job-gpus {self.gpus:g} --retries {self.retries}"


@contextlib.contextmanager
def connected(resources: Resources) -> Iterator[Start]:
    """What starts jobs on the cluster. Raises Refused if it is out of reach or could never take one of them."""
    if importlib.util.find_spec("ray") is None:
        raise Refused("--launcher ray: Ray is not installed; pip install -e '.[ray]'")
    import ray

    alone = {"include_dashboard": False} if resources.address is None else {}
    try:
        reach(resources.address)
        ray.init(address=resources.address, log_to_driver=False, logging_level="ERROR", **alone)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise Refused(f"--ray-address {resources.address}: {reason}; start a cluster there with `ray start`") from error
    try:
        check(resources, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        try:
            task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=resources.retries)(train)
        except ValueError as error:
            raise Refused(f"{resources}: {error}") from error
        passed_on = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        passed_on["HEADSTART_CORES"] = str(max(1, int(resources.cpus)))  # Ray does not bind a job to its cores
        if 0 < resources.gpus < 1:
            # JAX would take three quarters of the memory for each of those that share a GPU.
            passed_on.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 * resources.gpus:.3f}")

        def start(algorithm: str, arguments: Sequence[str], out: Path) -> Any:
            return task.remote(algorithm, list(arguments), str(out.absolute()), os.getcwd(), passed_on)

        yield start
    finally:
        ray.shutdown()


def check(resources: Resources, machines: Sequence[Mapping[str, float]]) -> None:
    """Refuse jobs that none of the machines could take: Ray would let them wait for ever, without a word."""
    # A cluster that grows with what is asked of it might, but nothing that Ray makes public tells that it would.
    sizes = {(machine.get("CPU", 0.0), machine.get("GPU", 0.0)) for machine in machines}
    if not any(resources.cpus <= cpus and resources.gpus <= gpus for cpus, gpus in sizes):
        there = " or ".join(f"{cpus:g} cores and {gpus:g} GPUs" for cpus, gpus in sorted(sizes))
        raise Refused(f"{resources}: no machine of the cluster has as much, they have {there}; ask for less")


def run(start: Start, jobs: Sequence[tuple[str, Sequence[str], Path]], told: Callable[[int, int | str], None]) -> None:
    """Train jobs, each an algorithm, its arguments, and its run directory.

    `told` is called with a job's number and how it ended: its status, or in words if Ray gave it up. SIGTERM and SIGINT
    ask the running jobs to write their checkpoints, and start no other.
    """
    import ray

    numbers = {start(*job): number for number, job in enumerate(jobs)}
    waiting = list(numbers)
    with stopping(lambda: [ray.cancel(job) for job in waiting]):
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=1.0)
            for job in ready:
                try:
                    told(numbers[job], ray.get(job))
                except ray.exceptions.RayError as error:
                    told(numbers[job], reason(error))


def reason(error: Exception) -> str:
    """Why Ray gave a job up, in one line: an exception in it by itself, without Ray's words about where it was."""
    cause = getattr(error, "cause", None) or error
    first, *_ = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {first}"


def reach(address: str | None) -> None:
    """Raise OSError or ValueError if nothing listens at host:port, which Ray itself would try for minutes."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=10).close()


def train(algorithm: str, arguments: list[str], folder: str, here: str, variables: dict[str, str]) -> int:
    """On a machine of the cluster: the status of a job, run in `here` with these environment variables.

    What is in its folder is gone on with.
    """
    out = Path(folder)
    if (out / "summary.json").exists():
        return 0
    asked = ["--resume", folder] if (out / "config.json").exists() else [*arguments, "--out", folder]
    program = Path(algorithms.__file__).parent / f"{algorithm}.py"
    out.parent.mkdir(parents=True, exist_ok=True)
    # A shell that starts a sweep with "&" has it ignored, down to here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with out.with_name(f"{out.name}.log").open("a") as output:
        # Not to go on beside the worker that Ray starts in place of one that was killed.
        command = tied([sys.executable, str(program), *asked])
        process = subprocess.Popen(
            command, cwd=here, env=os.environ | variables, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            # By and by, since an interrupt that Ray only simulates does not end a wait.
            while process.poll() is None:
                time.sleep(0.1)
        except KeyboardInterrupt:  # how Ray cancels
            process.terminate()
        return process.wait()


@contextlib.contextmanager
def stopping(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` on SIGTERM and SIGINT."""
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
