"""What is published: a run as it is, an ablation as a whole; and every command that makes it refuses in one line."""

import csv
import json
import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_sweep import fake

from benchmarks import record
from benchmarks.reporting import results
from benchmarks.studies import ablation
from common.errors import Refused


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where results are written."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    return tmp_path / "results"


def test_a_run_is_recorded_as_it_is(tmp_path, folder):
    run = tmp_path / "run"
    fake(run, "hopper-medium", [10])
    with pytest.raises(Refused, match=r"config\.json: versions, device missing"):
        record.main(run, "one")
    config = json.loads((run / "config.json").read_text()) | {"versions": {"jax": "1"}, "device": {"kind": "cpu"}}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match=r"curve\.png: cannot be read"):
        record.main(run, "one")
    assert not folder.exists()
    (run / "curve.png").write_bytes(b"picture")
    record.main(run, "jax0.10.2")
    assert sorted(path.name for path in folder.iterdir()) == [f"jax0.10.2.{kind}" for kind in ("csv", "json", "png")]
    assert (folder / "jax0.10.2.csv").read_bytes() == (run / "eval.csv").read_bytes()
    assert (folder / "jax0.10.2.png").read_bytes() == b"picture"
    about = json.loads((folder / "jax0.10.2.json").read_text())
    assert about["summary"]["final"][0]["score"] == 10
    assert about["dataset"] == {"source": "recipe", "fingerprint": "f", "transitions": 5}
    # What cannot be replaced stays as it was.
    (run / "curve.png").write_bytes(b"another")
    (folder / ".jax0.10.2.png.partial").mkdir()
    with pytest.raises(Refused, match=r"jax0\.10\.2\.png: cannot be written"):
        record.main(run, "jax0.10.2")
    assert (folder / "jax0.10.2.png").read_bytes() == b"picture"
    (run / "summary.json").unlink()
    with pytest.raises(Refused, match="not a finished run"):
        record.main(run, "jax0.10.2")


def test_an_ablation_is_of_the_runs_asked_for(tmp_path, folder, monkeypatch):
    started = []

    def train(command, **_):
        arguments = command[command.index(str(ablation.ROOT / "algorithms" / "rlpd.py")) + 1 :]
        started.append(arguments)
        out = Path(arguments[arguments.index("--out") + 1])
        fake(out, "own:Own-v0", [10, 20])
        config = json.loads((out / "config.json").read_text()) | {"arguments": arguments}
        (out / "config.json").write_text(json.dumps(config))
        return subprocess.CompletedProcess(command, 0)

    with monkeypatch.context() as patch:
        patch.setattr(ablation, "subprocess", SimpleNamespace(run=train, DEVNULL=None))
        asked = ablation.Ablation("own:Own-v0.5", num_seeds=2, runs=tmp_path / "runs")
        ablation.main(asked)
    assert len(started) == len(ablation.VARIANTS)
    expected = [f"rlpd_ablation_own-Own-v0.5.{kind}" for kind in ("csv", "json", "png")]
    assert sorted(path.name for path in folder.iterdir()) == expected
    with (folder / expected[0]).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(ablation.VARIANTS) * 2 * 2
    assert rows[-1]["flags"] == "--utd 1"
    # What has finished is not trained again, and not taken for something else.
    assert [asked.command(name) for name in ablation.VARIANTS] == [None] * len(ablation.VARIANTS)
    with pytest.raises(Refused, match="RLPD holds another run than is asked for now: move it away"):
        ablation.main(ablation.Ablation("own:Own-v0.5", num_seeds=3, runs=tmp_path / "runs"))
    (asked.folder("SACfD") / "summary.json").unlink()
    assert asked.command("SACfD")[2:] == ["--resume", str(asked.folder("SACfD"))]
    with pytest.raises(Refused, match="--jobs must be at least 1"):
        ablation.main(ablation.Ablation(jobs=0))
    with monkeypatch.context() as patch:
        failing = SimpleNamespace(run=lambda command, **_: subprocess.CompletedProcess(command, 1), DEVNULL=None)
        patch.setattr(ablation, "subprocess", failing)
        with pytest.raises(Refused, match="SACfD: training has ended with status 1"):
            ablation.train(asked, "SACfD", {0})


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize(
    ("program", "arguments", "told"),
    [
        ("record", ["nowhere", "name"], "record: nowhere: not a finished run"),
        ("selection", ["nowhere", "--policies", "0"], "selection: --policies must be at least 1, not 0"),
        ("studies.official", [], "official: no peer to train"),
        ("studies.ablation", ["--jobs", "0"], "ablation: --jobs must be at least 1, not 0"),
        ("check", ["nowhere", "--against", "nothing"], "check: --against nothing: no report of that name"),
        ("report", ["nowhere"], "report: no finished run"),
    ],
)
def test_a_refusal_is_one_line_and_status_2(program, arguments, told, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [program, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{program}", run_name="__main__", alter_sys=True)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(told)
    assert said.count("\n") == 1
