"""`python -m common.datasets`: what it prints, and that refusals are one line with exit status 2."""

import sys

import numpy as np
import pytest

from common import recipes, tasks
from common.datasets import __main__ as command


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setitem(recipes.SIZES, "pointmaze-umaze", 300)
    monkeypatch.setattr(command.CONSOLE, "width", 200)
    return tmp_path


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["datasets", *arguments])
    status = 0
    try:
        command.main()
    except SystemExit as exit:
        status = exit.code or 0
    said = capsys.readouterr()
    return status, said.out, said.err


def test_list_names_every_task_and_says_what_is_here(monkeypatch, capsys):
    _, before, _ = run(monkeypatch, capsys, "list")
    assert all(name in before for name in tasks.names())
    assert "yes" not in before
    recipes.make("pointmaze-umaze")
    line = next(
        line for line in run(monkeypatch, capsys, "list")[1].splitlines() if line.startswith("pointmaze-umaze ")
    )
    assert "yes" in line


def test_make_then_info_show_the_same_card(monkeypatch, capsys):
    status, said, error = run(monkeypatch, capsys, "info", "pointmaze-umaze")
    assert (status, said) == (2, "")
    assert "datasets make pointmaze-umaze" in error
    status, made, _ = run(monkeypatch, capsys, "make", "pointmaze-umaze")
    assert status == 0
    assert "minari:headstart/pointmaze-umaze-v0" in made
    _, shown, _ = run(monkeypatch, capsys, "info", "pointmaze-umaze")
    fingerprint = next(line for line in made.splitlines() if "fingerprint" in line)
    assert fingerprint in shown
    assert "300 of 301" not in shown
    _, other, _ = run(monkeypatch, capsys, "make", "pointmaze-umaze", "--size", "200", "--seed", "3")
    assert "pointmaze-umaze-size200-seed3-v0" in other


def test_where_published_data_are_missing_their_recipe_counts(monkeypatch, capsys):
    """As for a run without a network."""
    monkeypatch.setitem(recipes.SIZES, "hopper-random", 60)
    status, _, error = run(monkeypatch, capsys, "info", "hopper-random")
    assert status == 2
    assert "d4rl:hopper-random-v2 is not on this machine" in error
    assert "datasets download hopper-random or python -m common.datasets make hopper-random" in error
    run(monkeypatch, capsys, "make", "hopper-random")
    status, said, _ = run(monkeypatch, capsys, "info", "hopper-random")
    assert (status, "recipe:hopper-random for hopper-random" in said) == (0, True)
    listed = run(monkeypatch, capsys, "list")[1].splitlines()
    assert any(line.split() == ["hopper-random", "yes", "recipe:hopper-random"] for line in listed)


def test_check_reads_a_file_as_a_run_would(monkeypatch, capsys, tmp_path):
    rng = np.random.default_rng(0)
    rows = {
        "observations": rng.normal(size=(20, 11)),
        "actions": rng.uniform(-1, 1, (20, 3)),
        "rewards": rng.normal(size=20),
        "terminals": np.arange(20) == 9,
        "timeouts": np.arange(20) == 19,
    }
    np.savez(tmp_path / "mine.npz", **rows)
    status, said, _ = run(monkeypatch, capsys, "check", str(tmp_path / "mine.npz"), "--env", "hopper-medium")
    assert status == 0
    assert "2 of 9 to 10 steps" in said
    for arguments, words in (
        (["check", str(tmp_path / "mine.npz"), "--env", "walker2d-medium"], "11 numbers per observation"),
        (["check", str(tmp_path / "none.hdf5"), "--env", "hopper-medium"], "no such file"),
        (["check", f"vd4rl:{tmp_path}", "--env", "hopper-medium"], "no image and action and reward in it"),
        (["check", "mine.csv", "--env", "hopper-medium"], "unknown dataset source"),
        (["info", "Hopper-v5"], "has no data of its own"),
        (["download", "hopper-random"], "hopper_random-v2.hdf5"),
        (["download", "pointmaze-large"], "does not answer"),
        (["download", "Hopper-v5"], "nobody publishes"),
        (["download", "door-human"], "does not answer"),
        (["make", "nonsense"], "unknown recipe"),
        (["info", "nonsense"], "unknown task"),
    ):
        status, said, error = run(monkeypatch, capsys, *arguments)
        assert status == 2
        assert words in error
        assert error.count("\n") == 1
