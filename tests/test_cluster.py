"""A sweep on a Ray cluster of two nodes: each job once, and one whose worker is killed goes on from its checkpoint.

Jobs that the cluster could never place are refused, those that run can be stopped, and what one failed of is told.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from benchmarks import cluster, sweep
from common import recipes
from common.errors import Refused

ROOT = Path(__file__).parents[1]
SUITE = """
size = 500
flags = "--hidden 8 --batch-size 16 --log-every 500 --eval-every 500 --checkpoint-every 500 --eval-episodes 1"

[[parts]]
tasks = ["pointmaze-umaze"]
[parts.variants]
"short" = "bc --offline-steps 500"
"long" = "bc --offline-steps 5000"
"""


@pytest.fixture(scope="module")
def address():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # Ray's own leaves next to nothing of cores that other tests are at
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
def test_a_killed_worker_costs_no_more_than_a_checkpoint(address, tmp_path, monkeypatch, capsys):
    suite = tmp_path / "tiny.toml"
    suite.write_text(SUITE)
    runs, folder = tmp_path / "runs", tmp_path / "runs" / "tiny" / "pointmaze-umaze"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    command = [sys.executable, "-m", "benchmarks.sweep", str(suite), "--runs", str(runs), "--launcher", "ray"]
    started = subprocess.Popen(
        [*command, "--ray-address", address],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 240
    while not list((folder / "long" / "checkpoints").glob("[0-9]*")):
        assert time.monotonic() < until
        assert started.poll() is None, started.communicate()[0]
        time.sleep(0.1)
    (job,) = running(str(folder / "long"))
    os.kill(parent(job), signal.SIGKILL)
    said, _ = started.communicate(timeout=240)
    assert started.returncode == 0, said
    assert "short: finished" in said
    assert "long: finished" in said
    log = (folder / "long.log").read_text()
    assert "resuming" in log
    steps = [line.split(",")[2] for line in (folder / "long" / "eval.csv").read_text().splitlines()[1:]]
    assert steps == [str(step) for step in range(500, 5001, 500)]
    assert "resuming" not in (folder / "short.log").read_text()
    assert sweep.main(sweep.Sweep(str(suite), runs=runs)) == 0
    assert "2 jobs, 0 to do" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("setpriv"), reason="without util-linux a job outlives its worker")
def test_a_job_ends_with_the_worker_that_runs_it(tmp_path):
    """With the worker itself, whatever else Ray would clear away."""
    (tmp_path / "bc.py").write_text("import time; open(__file__ + '.begun', 'w').close(); time.sleep(600)")
    there = f"import algorithms; algorithms.__file__ = {str(tmp_path / '__init__.py')!r}"
    work = f"from benchmarks import cluster; cluster.train('bc', [], {str(tmp_path / 'run')!r}, '.', {{}})"
    worker = subprocess.Popen([sys.executable, "-c", f"{there}; {work}"], cwd=ROOT)
    until = time.monotonic() + 60
    while not (tmp_path / "bc.py.begun").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    worker.kill()
    worker.wait()
    while running(str(tmp_path / "bc.py")):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def terminated():
    """SIGTERM does nothing here, but for what a test sets."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


def test_jobs_are_stopped_and_what_one_failed_of_is_told(address, tmp_path, monkeypatch, terminated):
    """Three jobs that take long on two nodes, and one before them whose folder cannot be made."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    data = recipes.make("pointmaze-umaze", 500)
    flags = f"--env pointmaze-umaze --dataset minari:{data} --offline-steps 100000 --hidden 8 --batch-size 16"
    arguments = f"{flags} --eval-every 500 --checkpoint-every 500 --eval-episodes 1 --devices 1".split()
    (tmp_path / "file").write_text("")
    folders = [tmp_path / "file" / "below", *(tmp_path / name for name in ("first", "second", "third"))]
    ended: dict[int, int | str] = {}

    def stop_when_two_run() -> None:
        until = time.monotonic() + 240
        while sum((folder / "metrics.csv").exists() for folder in folders) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_two_run, daemon=True).start()
    with cluster.connected(cluster.Resources(address, 1, 0, 0)) as start:
        cluster.run(start, [("bc", arguments, folder) for folder in folders], ended.__setitem__)
    assert str(ended[0]).startswith("FileExistsError: [Errno 17] File exists: ")
    assert "\n" not in str(ended[0])
    stopped = [number for number in (1, 2, 3) if folders[number].exists()]
    assert len(stopped) == 2
    for number in stopped:
        assert ended[number] == 128 + signal.SIGTERM
        assert "interrupted after step" in folders[number].with_name(f"{folders[number].name}.log").read_text()
    (never,) = {1, 2, 3} - {*stopped}
    assert str(ended[never]).startswith("TaskCancelledError: ")


def test_jobs_that_no_machine_could_take_are_refused(address):
    there = "no machine of the cluster has as much, they have 1 cores and 0 GPUs; ask for less"
    for cpus, gpus, told in (
        (2, 0, f"--job-cpus 2 --job-gpus 0 --retries 3: {there}"),
        (1, 0.25, f"--job-cpus 1 --job-gpus 0.25 --retries 3: {there}"),
        (-1, 0, "--job-cpus -1 .*cannot be negative"),
    ):
        resources = cluster.Resources(address, cpus, gpus, 3)
        with pytest.raises(Refused, match=told), cluster.connected(resources):
            pass


def test_one_machine_must_have_all_that_a_job_asks_for():
    cluster.check(cluster.Resources(None, 4, 1, 0), [{"CPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}])
    with pytest.raises(Refused, match="they have 1 cores and 2 GPUs or 8 cores and 0 GPUs"):
        cluster.check(cluster.Resources(None, 4, 1, 0), [{"CPU": 8.0}, {"CPU": 1.0, "GPU": 2.0}, {"CPU": 8.0}])


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "ray://127.0.0.1:1"])
def test_a_cluster_out_of_reach_is_refused_at_once(address):
    refused = pytest.raises(Refused, match=f"--ray-address {address}: .*; start a cluster there")
    with refused, cluster.connected(cluster.Resources(address, 1, 0, 0)):
        pass
