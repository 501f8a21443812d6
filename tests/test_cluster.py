"""A sweep on a Ray cluster of two nodes: each job once, and one whose worker is killed goes on from its checkpoint."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from benchmarks import cluster
from common.errors import Refused

ROOT = Path(__file__).parents[1]
SUITE = """
size = 500
flags = "--hidden 8 --batch-size 16 --log-every 500 --eval-every 500 --checkpoint-every 500 --eval-episodes 1"

[[parts]]
tasks = ["pointmaze-umaze"]
[parts.variants]
"short" = "bc --offline-steps 500"
"long" = "bc --offline-steps 20000"
"""


@pytest.fixture
def address():
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    nodes.shutdown()


def parent(pid: int) -> int:
    """The process that started a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def running(words: str) -> list[int]:
    """Processes of a Python program with these words in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if words in line and "bc.py" in line:
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_a_killed_worker_costs_no_more_than_a_checkpoint(address, tmp_path):
    (tmp_path / "tiny.toml").write_text(SUITE)
    runs, folder = tmp_path / "runs", tmp_path / "runs" / "tiny" / "pointmaze-umaze"
    environment = os.environ | {"MINARI_DATASETS_PATH": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.sweep", str(tmp_path / "tiny.toml"), "--runs", str(runs)]
    sweep = subprocess.Popen(
        [*command, "--launcher", "ray", "--ray-address", address],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 240
    while not list((folder / "long" / "checkpoints").glob("[0-9]*")):
        assert time.monotonic() < until
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.1)
    (job,) = running(str(folder / "long"))
    os.kill(parent(job), signal.SIGKILL)
    said, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, said
    assert "short: finished" in said
    assert "long: finished" in said
    log = (folder / "long.log").read_text()
    assert "resuming" in log
    steps = [line.split(",")[2] for line in (folder / "long" / "eval.csv").read_text().splitlines()[1:]]
    assert steps == [str(step) for step in range(500, 20001, 500)]
    assert "resuming" not in (folder / "short.log").read_text()
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "2 jobs, 0 to do" in again.stdout


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "ray://127.0.0.1:1"])
def test_a_cluster_out_of_reach_is_refused_at_once(address):
    with pytest.raises(Refused, match=f"--ray-address {address}: .*; start a cluster there"):
        cluster.run(cluster.Resources(address, 1, 0, 0), [], lambda number, how: None)
