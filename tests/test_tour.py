"""The notebook runs from its first cell to its last."""

import json
import linecache
import sys
import types
from pathlib import Path

import matplotlib as mpl

NOTEBOOK = Path(__file__).parents[1] / "algorithms" / "tour.ipynb"


def test_all_cells_of_the_tour_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    tour = types.ModuleType("tour")
    monkeypatch.setitem(sys.modules, "tour", tour)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert [cell.get("outputs", []) for cell in cells if cell.get("outputs")] == []
    # In the place of the first cell, the budget.
    code[0] = "STEPS, SEEDS = 104, 1"
    for number, source in enumerate(code):
        name = f"<cell {number}>"
        monkeypatch.setitem(linecache.cache, name, (len(source), None, source.splitlines(keepends=True), name))
        exec(compile(source, name, "exec"), vars(tour))
    assert tour.result.config["algorithm"] == "rlpd"
    assert tour.cautious.config["session"]["source"].startswith("class Cautious(RLPD)")
    assert tour.result.evaluations["step"].tolist() == tour.cautious.evaluations["step"].tolist() == [100, 104]
    assert len(tour.way) == 50
