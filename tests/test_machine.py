"""What is said about the machine a program runs on."""

import resource
from pathlib import Path

import pytest

from common import machine

GIB = 1 << 30


def write(folder: Path, **files: str) -> None:
    """Files of this content below a folder; in names, two underscores stand for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """A machine of 64 GiB, of which 40 are free, without any limit; tests add their own."""
    write(tmp_path, status="VmSize:\t 2097152 kB\nVmData:\t 1048576 kB\nThreads:\t1\n", cgroup="0::/\n")
    write(tmp_path, meminfo=f"MemTotal: {64 << 20} kB\nMemAvailable: {40 << 20} kB\nHugePages_Total: 0\n")
    monkeypatch.setattr(machine, "_PROCESS", tmp_path)
    monkeypatch.setattr(machine, "_MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return tmp_path


def test_without_limits_the_memory_is_what_the_machine_has_left(linux):
    assert machine.available_memory() == 40 * GIB


@pytest.mark.parametrize(
    ("kind", "left"), [(resource.RLIMIT_AS, 8 * GIB), (resource.RLIMIT_DATA, 9 * GIB)], ids=["ulimit -v", "ulimit -d"]
)
def test_a_limit_of_the_process_counts_less_what_is_used(linux, monkeypatch, kind, left):
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (10 * GIB if asked == kind else resource.RLIM_INFINITY, 0))
    assert machine.available_memory() == left


@pytest.mark.parametrize("path", ["/slurm/job", "/", "/seen/from/outside"], ids=["own", "root", "container"])
def test_a_limit_of_the_control_group_counts_less_what_cannot_be_freed(linux, path):
    write(linux, cgroup=f"0::{path}\n")
    group = linux / "groups" / (path.strip("/") if path != "/seen/from/outside" else "")
    write(
        group, memory__max=f"{4 * GIB}\n", memory__current=f"{3 * GIB}\n", memory__stat=f"anon 5\ninactive_file {GIB}\n"
    )
    assert machine.available_memory() == 2 * GIB


def test_the_narrowest_of_the_groups_counts(linux):
    write(linux, cgroup="0::/job/step\n")
    write(linux / "groups" / "job", memory__max=f"{3 * GIB}\n", memory__current=f"{GIB}\n")
    write(linux / "groups" / "job" / "step", memory__max="max\n", memory__current=f"{GIB}\n")
    assert machine.available_memory() == 2 * GIB


def test_the_first_version_of_control_groups_is_known_as_well(linux):
    write(linux, cgroup="9:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n")
    write(
        linux / "groups" / "memory" / "docker" / "abc",
        memory__limit_in_bytes=f"{4 * GIB}\n",
        memory__usage_in_bytes=f"{3 * GIB}\n",
        memory__stat=f"inactive_file 7\ntotal_inactive_file {GIB}\n",
    )
    assert machine.available_memory() == 2 * GIB


def test_more_used_than_allowed_leaves_nothing(linux, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (GIB, GIB))
    assert machine.available_memory() == 0


def test_where_nothing_is_told_the_memory_is_unknown(linux, monkeypatch):
    for name in ("_PROCESS", "_MACHINE", "_CGROUPS"):
        monkeypatch.setattr(machine, name, linux / "nothing")
    assert machine.available_memory() is None


def test_this_machine_has_memory():
    assert machine.available_memory() is None or machine.available_memory() > 0
