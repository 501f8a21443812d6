"""What must hold to the last bit for whole runs, compiled as users' programs are."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from served import FILE, SMALL, crash, serve, table, without

pytestmark = pytest.mark.optimised


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Two seeds, on one device each, without interruption."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert serve(*SMALL, "--num-seeds", 2, "--out", out)[0] == 0
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Seed 1 on its own."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    assert serve(*SMALL, "--seed", 1, "--out", out)[0] == 0
    return out


def test_a_seed_is_bitwise_the_same_alone_and_in_a_group(alone, tmp_path):
    serve(*SMALL, "--num-seeds", 3, "--devices", 1, "--out", tmp_path / "group")
    for name in ("metrics.csv", "eval.csv"):
        assert without(table(tmp_path / "group" / name, seed=1), "run") == without(table(alone / name), "run")


def test_a_seed_is_the_same_on_several_devices(alone, whole):
    """Another program, which may round differently: the first updates agree closely, before chaos sets in."""
    one, other = table(alone / "metrics.csv")[0], table(whole / "metrics.csv", seed=1)[0]
    for name in ("critic_loss", "actor_loss", "entropy", "q", "temperature", "episode_return"):
        np.testing.assert_allclose(float(one[name]), float(other[name]), rtol=1e-4)


def test_runs_that_do_not_divide_over_the_devices_fill_them(whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    crash([*SMALL, "--num-seeds", 3, "--checkpoint-every", 25, "--out", out], 150, monkeypatch)
    assert serve("--resume", out)[0] == 0
    for name in ("metrics.csv", "eval.csv"):
        assert [r for r in table(out / name) if r["seed"] != "2"] == table(whole / name)
        assert {r["seed"] for r in table(out / name)} == {"0", "1", "2"}
    assert len(json.loads((out / "summary.json").read_text())["final"]) == 3


def test_a_grid_is_its_points(whole, tmp_path):
    serve(*SMALL, "--grid.discount", 0.9, 0.99, "--grid.learning-rate", 3e-4, "--out", tmp_path / "grid")
    rows = table(tmp_path / "grid" / "metrics.csv")
    points = ["learning_rate=0.0003, discount=0.9", "learning_rate=0.0003, discount=0.99"]
    assert [r["point"] for r in rows[:2]] == points
    assert {r["seed"] for r in rows} == {"0"}
    # The point with the default values is the run without a grid, on as many devices.
    default = [r for r in rows if r["run"] == "1"]
    assert without(default, "run", "point") == without(table(whole / "metrics.csv", seed=0), "run", "point")
    assert len({r["q"] for r in rows if r["step"] == "180"}) == 2


def test_sigterm_writes_a_checkpoint_and_a_resume_gives_the_same_numbers(whole, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, FILE, *SMALL, "--num-seeds", "2", "--devices", "2", "--out", out]
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True)
    while not (out / "metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    if process.returncode == 0:
        pytest.skip("the run had finished before the signal arrived")
    assert process.returncode == 143
    assert "--resume" in said
    assert list((out / "checkpoints").iterdir())
    assert serve("--resume", out)[0] == 0
    for name in ("metrics.csv", "eval.csv"):
        assert table(out / name) == table(whole / name)
