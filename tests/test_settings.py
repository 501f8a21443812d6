"""Settings are timed in processes of their own, and what they change is seen."""

import io
import json

import numpy as np
import pytest

from benchmarks.measuring import timed
from benchmarks.reporting import results
from benchmarks.studies import settings
from common.errors import Refused


def test_differences_are_in_units_of_the_largest_number():
    ones = [np.array([1.0, -4.0]), np.zeros(3), np.zeros(0)]
    assert settings.difference(ones, ones) == 0
    assert settings.difference([np.array([1.0, -3.0]), *ones[1:]], ones) == 0.25


def test_a_process_answers_each_line_and_leaves_its_parameters(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timed, "ROWS", 2000)
    monkeypatch.setitem(timed.UPDATES, "bc", 3)
    asked = {"algorithm": "bc", "runs": 1, "hidden": [4], "parameters": str(tmp_path / "0.npz")}
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join((json.dumps(asked), "", "end", ""))))
    settings.answer()
    ready, seconds, done = map(float, capsys.readouterr().out.split())
    assert ready == done == 0
    assert 0 < seconds < 10
    with np.load(tmp_path / "0.npz") as arrays:
        assert (1, 17, 4) in {arrays[name].shape for name in arrays.files}


@pytest.mark.every
def test_a_setting_has_its_process(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setitem(settings.SETTINGS, "doubled", {"JAX_ENABLE_X64": "1"})
    settings.main(settings.Settings(("bc",), (1,), ("doubled",), hidden=(4,), rounds=2, name="here"))
    first, second = results.rows_of("settings", "here")
    assert [row["setting"] for row in (first, second)] == ["as it is", "doubled"]
    assert (float(first["times_as_it_is"]), float(first["parameters_differ_by"])) == (1, 0)
    assert float(second["updates_per_second"]) > 0
    assert float(second["parameters_differ_by"]) > 0


def test_a_process_that_has_ended_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(settings.SETTINGS, "broken", {"PYTHONHOME": "/nowhere"})
    with pytest.raises(Refused, match="broken: its process has ended with status 1"):
        settings.Timed("broken", {}, tmp_path).answer()
