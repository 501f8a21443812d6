"""The machine a program runs on, for modules that must not import JAX."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

_PROCESS = Path("/proc/self")
_MACHINE = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Processor cores this process may use: those it is bound to, and no more than HEADSTART_CORES, if that is set."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("HEADSTART_CORES", "")
    return max(1, min(there, int(share))) if share.isdigit() else there


def tied(command: Sequence[str]) -> list[str]:
    """The command such that it does not outlive the thread that starts it, where util-linux is at hand."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", *command] if setpriv else list(command)


def available_memory() -> int | None:
    """Bytes this process may still fill: by its own limits, its control group's and the machine's; None if unknown."""
    left = [*_left_by_limits(), *_left_by_cgroup(), *_left_by_machine()]
    return max(0, min(left)) if left else None


def in_words(count: int) -> str:
    """So many bytes, for a person: 11.4 GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _left_by_limits() -> list[int]:
    """Bytes left of the limits on address space and on data (`ulimit -v`, `ulimit -d`), where these are set."""
    used = _bytes(_PROCESS / "status")
    kinds = ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))
    limits = [(resource.getrlimit(kind)[0], used.get(name, 0)) for kind, name in kinds]
    return [limit - taken for limit, taken in limits if limit != resource.RLIM_INFINITY]


def _left_by_cgroup() -> list[int]:
    """Bytes left in the control group and those around it (containers, Slurm), of versions 1 and 2."""
    left = []
    for line in _lines(_PROCESS / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, limit, current, cache = _CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, current = _CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        own = root / path.strip("/")
        # A container sees its own group as the root, and no folder of the path that is told.
        for group in (place for place in (own, *own.parents) if place.is_relative_to(root)):
            most, used = (_lines(group / name) for name in (limit, current))
            if most and used and most[0].isdigit():  # "max" is none
                freed = sum(int(row.split()[1]) for row in _lines(group / "memory.stat") if row.startswith(f"{cache} "))
                left.append(int(most[0]) - int(used[0]) + freed)
    return left


def _left_by_machine() -> list[int]:
    """Bytes that Linux can give without swapping."""
    there = _bytes(_MACHINE)
    return [there["MemAvailable"]] if "MemAvailable" in there else []


def _bytes(path: Path) -> dict[str, int]:
    """The sizes in a file of Linux' with lines `Name:   123 kB`."""
    rows = (line.partition(":") for line in _lines(path) if line.endswith(" kB"))
    return {name: 1024 * int(text.split()[0]) for name, _, text in rows}


def _lines(path: Path) -> list[str]:
    """The lines of a small file; none where it is missing or not for us."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
