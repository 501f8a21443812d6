"""Two checkouts are timed in turn, and a ratio is the new one's speed over the old one's."""

import csv
import json

import pytest

from benchmarks.reporting import results
from benchmarks.studies import before
from common.errors import Refused


def checkout(folder, seconds):
    """One that answers these seconds, one after the other."""
    package = folder / "benchmarks"
    (folder / "common").mkdir(parents=True)
    (folder / "common" / "machine.py").write_text("def cores():\n    return 1\n")
    package.mkdir()
    lines = f"answers = iter({seconds})\nclass Ours:\n    def __init__(self, algorithm, runs):\n"
    lines += "        assert (algorithm, runs) == ('bc', 5)\n    def timing(self):\n        return next(answers)\n"
    (package / "throughput.py").write_text(lines)
    return folder


def test_a_ratio_is_the_median_of_the_rounds(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(before, "HERE", checkout(tmp_path / "now", [2.0, 2.0, 8.0]))
    old = checkout(tmp_path / "old", [1.0, 3.0, 6.0])
    before.main(before.Before(old, ("bc",), runs=(5,), rounds=3, name="test"))
    with (tmp_path / "before_test.csv").open() as file:
        (row,) = csv.DictReader(file)
    found = {name: float(value) for name, value in row.items() if name not in ("algorithm", "runs")}
    assert found == {
        "updates_per_second_before": 1 / 3, "updates_per_second": 0.5,
        "ratio": 0.75, "ratio_min": 0.5, "ratio_max": 1.5,
    }  # fmt: skip
    assert "before" in json.loads((tmp_path / "before_test.json").read_text())


def test_what_cannot_be_timed_is_told(tmp_path):
    with pytest.raises(Refused, match="is no checkout"):
        before.main(before.Before(tmp_path))
    (tmp_path / "benchmarks").mkdir()
    with pytest.raises(Refused, match="its bc cannot be timed"):
        before.main(before.Before(tmp_path, ("bc",)))
    with pytest.raises(Refused, match="--algorithms b: there are"):
        before.main(before.Before(tmp_path, ("b",)))
