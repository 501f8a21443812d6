"""benchmarks/sweep.py does what is missing and nothing else; benchmarks/report.py counts as it says."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import published, report, results, sweep
from benchmarks.page import costs
from common import datasets, recipes, tasks
from common.errors import Refused
from common.recipes import locomotion
from common.runs import RunDirectory

SUITE = """
size = 500
flags = "--hidden 8 8 --batch-size 16 --offline-steps 20 --log-every 5 --eval-every 10 --eval-episodes 2"

[[parts]]
tasks = ["pointmaze-umaze"]
[parts.variants]
"TD3+BC" = "td3_bc --actor-hidden 8"
"cloning" = "bc --policy gaussian"
"""


def written(folder: Path, text: str) -> str:
    path = folder / "tiny.toml"
    path.write_text(text)
    return str(path)


def test_a_sweep_does_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    asked = sweep.Sweep(written(tmp_path, SUITE), jobs=2, runs=tmp_path / "runs")
    assert sweep.main(asked) == 0
    folders = [tmp_path / "runs" / "tiny" / "pointmaze-umaze" / name for name in ("TD3+BC", "cloning")]
    first = [(f / "summary.json").read_text() for f in folders]
    card = json.loads((folders[0] / "config.json").read_text())["dataset"]
    assert card["transitions"] == 500
    assert recipes.dataset_id("pointmaze-umaze", 500) in card["source"]

    # As if one had been killed just before its end: it is resumed, the other left alone.
    (folders[1] / "summary.json").unlink()
    assert "2 jobs, 2 to do" in capsys.readouterr().out
    assert sweep.main(asked) == 0
    assert "2 jobs, 1 to do" in capsys.readouterr().out
    assert (folders[0] / "summary.json").read_text() == first[0]
    finals = [json.loads(text)["final"] for text in (first[1], (folders[1] / "summary.json").read_text())]
    assert finals[0] == finals[1]
    assert "resuming" in (folders[1].parent / "cloning.log").read_text()

    # A folder with another run in it is not touched.
    changed = sweep.Sweep(written(tmp_path, SUITE.replace("steps 20", "steps 30")), runs=tmp_path / "runs")
    with pytest.raises(Refused, match="move it away"):
        sweep.main(changed)

    found = report.find([tmp_path / "runs" / "tiny"])
    assert [(run.task, run.variant) for run in found] == [
        ("pointmaze-umaze", "TD3+BC"), ("pointmaze-umaze", "cloning"),
    ]  # fmt: skip


def test_a_slurm_script_runs_each_open_job_once(tmp_path, monkeypatch, capsys):
    """The script is run as Slurm would, once for each number of its array."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    suite = written(tmp_path, SUITE)
    monkeypatch.chdir(tmp_path)
    asked = sweep.Sweep("tiny.toml", runs=Path("runs"), launcher="slurm", sbatch=("--gpus=1", "--time=1:00:00"))
    assert sweep.main(asked) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "data" / recipes.dataset_id("pointmaze-umaze", 500)).is_dir()
    head = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--array=0,1", "--requeue", "--gpus=1", "--time=1:00:00"} < set(head)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "suite.sh").write_text(text)
    command, folder = ["bash", "suite.sh"], tmp_path / "runs" / "tiny" / "pointmaze-umaze"
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "1"}
    subprocess.run(command, cwd=tmp_path / "elsewhere", env=environment, check=True, capture_output=True)
    assert (folder / "cloning" / "summary.json").exists()
    assert not (folder / "TD3+BC").exists()
    # What has finished is not in the next script.
    assert sweep.main(sweep.Sweep(suite, runs=tmp_path / "runs", launcher="slurm")) == 0
    assert "--array=0\n" in capsys.readouterr().out
    subprocess.run(command, cwd=tmp_path / "elsewhere", env=environment | {"SLURM_ARRAY_TASK_ID": "0"}, check=True)
    capsys.readouterr()
    assert sweep.main(sweep.Sweep(suite, runs=tmp_path / "runs", launcher="slurm")) == 0
    assert capsys.readouterr().out == ""
    with pytest.raises(Refused, match="--only 2: tiny has the jobs 0 to 1"):
        sweep.main(sweep.Sweep(suite, runs=tmp_path / "runs", only=2))


def test_a_job_that_fails_is_told_and_the_others_go_on(tmp_path, capsys):
    suite = sweep.Suite.read(written(tmp_path, SUITE.replace("size = 500", "").replace("bc --policy", "bc --nonsense")))
    runner = sweep.Runner(sweep.Sweep("tiny", runs=tmp_path / "runs"), suite, sweep.Console())
    started = []

    class Process:
        def __init__(self, command, stdout, stderr):
            started.append(command)
            self.fails = "--nonsense" in command
            out = Path(command[command.index("--out") + 1])
            if not self.fails:
                out.mkdir(parents=True)
                (out / "summary.json").write_text("{}")

        def wait(self):
            return 2 if self.fails else 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep.subprocess, "Popen", Process)
        assert not runner.all()
    assert len(started) == 2
    assert "cloning: ended with status 2" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seeds = 3", "parts missing"),
        ("colour = 1" + SUITE, "unknown colour"),
        (SUITE.replace('"bc ', '"td4 '), "algorithms/td4.py"),
        (SUITE.replace("pointmaze-umaze", "pointmase"), "pointmase"),
        (SUITE.replace('"cloning"', '"TD3+BC "'), "share the folder"),
        ("[[parts", "tiny.toml"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused(tmp_path, text, told):
    with pytest.raises(Refused, match=told):
        sweep.Suite.read(written(tmp_path, text))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("--policy gaussian", "--polcy gaussian", "--polcy"),
        ("td3_bc --actor", "td3_bc --td-share 0.5 --actor", "--mixed"),
    ],
)
def test_a_command_line_that_would_be_refused_is_refused_before_the_first_job(tmp_path, old, new, told):
    asked = sweep.Sweep(written(tmp_path, SUITE.replace(old, new)), runs=tmp_path / "runs")
    with pytest.raises(Refused, match=told) as refusal:
        sweep.main(asked)
    assert "on pointmaze-umaze" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "runs").exists()


def test_data_are_made_before_the_jobs_that_need_them(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "answers", lambda host: False)
    text = SUITE.replace("size = 500", "").replace('["pointmaze-umaze"]', '["pointmaze-umaze", "Hopper-v5"]')
    jobs = sweep.Suite.read(written(tmp_path, text)).jobs
    assert [job.recipe() for job in jobs] == [("pointmaze-umaze", None)] * 2 + [None] * 2
    text = SUITE.replace('"bc --policy gaussian"', '"redq_adaptive_bc --preset redq-scratch"')
    text = text.replace("--offline-steps 20 ", "")
    assert [job.recipe() for job in sweep.Suite.read(written(tmp_path, text)).jobs] == [("pointmaze-umaze", 500), None]
    text = SUITE.replace("size = 500", "").replace("bc --policy", "bc --dataset d4rl:own.hdf5 --policy")
    assert [job.recipe() for job in sweep.Suite.read(written(tmp_path, text)).jobs] == [("pointmaze-umaze", None), None]


def test_seeds_may_begin_elsewhere(tmp_path):
    suite = written(tmp_path, SUITE)
    assert "--seed" not in sweep.Suite.read(suite).jobs[0].arguments()
    for job in sweep.Suite.read(suite, seed=7).jobs:
        assert job.check().run.seed == 7


def test_shipped_suites_can_be_run():
    for path in sweep.SUITES.glob("*.toml"):
        for job in sweep.Suite.read(path.stem).jobs:
            job.check()
    with pytest.raises(Refused, match="there are"):
        sweep.Suite.read("nonsense")


def test_what_a_kill_left_at_the_very_start_does_not_stop_a_new_run(tmp_path):
    (tmp_path / ".config.json.partial").write_text("{")
    RunDirectory.create(tmp_path, {})
    with pytest.raises(Refused, match="exists already"):
        RunDirectory.create(tmp_path, {})


def fake(folder: Path, task: str, scores: list[float], online: bool = False, diverged: dict | None = None) -> None:
    """A run directory whose seeds end with these scores."""
    folder.mkdir(parents=True)
    config = {
        "algorithm": "td3_bc", "arguments": ["--env", task, "--out", "somewhere"], "commit": "abc",
        "run": {"env": task, "eval_episodes": 10},
        "dataset": {"source": "recipe", "fingerprint": "f", "transitions": 5, "env_spec": "long"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    more = {"offline": 50.0, "drop": 10.0, "online_mean": 60.0} if online else {}
    final = [
        {"run": k, "seed": k, "point": {}, "score": s, "return_mean": 10 * s, "success": None} | more
        for k, s in enumerate(scores)
    ]
    summary = {"final": final, "diverged_at_step": diverged or {}, "steps_per_second": 1.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    with (folder / "eval.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "seed", "step", "phase", "episodes", "score", "return_mean"])
        for phase in ("offline", "online") if online else ("offline",):
            for step in (10, 20):
                for run, score in enumerate(scores):
                    writer.writerow([run, run, step, phase, 10, score * step / 20, 0])


def test_a_report_counts_every_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(report, "FOLDER", tmp_path / "results")
    fake(tmp_path / "hopper-medium" / "a", "hopper-medium", [10, 20, 90], diverged={"0": 5})
    fake(tmp_path / "hopper-medium" / "b", "hopper-medium", [40, 40, 40], online=True)
    fake(tmp_path / "walker2d-medium" / "a", "walker2d-medium", [0, 10, 50])
    report.main(report.Report((tmp_path,), "test"))
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    head, _, a, b = [[cell.strip() for cell in line] for line in lines]
    assert head == [
        "variant", "hopper-medium", "walker2d-medium", "mean of all", "IQM of all", "steps to 90 %", "unrest", "drop",
        "online mean",
    ]  # fmt: skip
    assert a[0] == "a (1 diverged)"
    assert a[1].startswith("40.0 [10.0, 90.0]")  # seeds are drawn with replacement: all alike in 1 of 27 draws
    assert a[3].startswith("30.0 [")
    assert a[4].startswith("22.5 [")  # 0 and 90 cut off: of 0 10 10 20 50 90, one each side; (10 + 10 + 20 + 50) / 4
    # Scores of 20 and 40 in either phase: the final one is first reached at step 20 of 40.
    assert b == ["b", "40.0 [40.0, 40.0]", "", "", "", "20", "10", "10.0", "60.0"]
    with (tmp_path / "results" / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["task"], r["variant"], r["score"]) for r in rows][:3] == [
        ("hopper-medium", "a", "10"), ("hopper-medium", "a", "20"), ("hopper-medium", "a", "90"),
    ]  # fmt: skip
    assert [r["diverged"] for r in rows][:2] == ["True", "False"]
    with (tmp_path / "results" / "test_evaluations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 + 3 * 4 + 3 * 2
    mine = [(r["phase"], r["step"], r["score"]) for r in rows if r["variant"] == "b" and r["seed"] == "1"]
    assert mine == [
        ("offline", "10", "20.0"),
        ("offline", "20", "40.0"),
        ("online", "10", "20.0"),
        ("online", "20", "40.0"),
    ]
    about = json.loads((tmp_path / "results" / "test.json").read_text())
    assert about["runs"]["hopper-medium, a"] == "python algorithms/td3_bc.py --env hopper-medium"
    assert about["datasets"]["hopper-medium"] == {"source": "recipe", "fingerprint": "f", "transitions": 5}
    assert (tmp_path / "results" / "test.md").read_text().startswith("| variant |")
    assert (tmp_path / "results" / "test.png").stat().st_size > 5000


def test_the_page_stands_alone_and_compares_variants(tmp_path):
    for task, better in (("hopper-medium", [20, 30]), ("walker2d-medium", [30, 40])):
        fake(tmp_path / task / "a<b>", task, [10, 20])
        fake(tmp_path / task / "c", task, better)
    report.main(report.Report((tmp_path,)))
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 3
    assert "http" not in text.replace("http-equiv", "")
    assert "a&lt;b&gt;" in text
    assert "<b>" not in text
    # On hopper c wins 3 of 4 pairs and ties one, on walker2d it wins all: (7/8 + 1) / 2.
    assert "94 % [" in text
    assert "6 % [" in text
    assert "<code>python algorithms/td3_bc.py --env hopper-medium</code>" in text
    # A task without a score is not averaged with the others.
    fake(tmp_path / "own" / "c", "two_ways:TwoWays-v0", [1, 2])
    summary = tmp_path / "own" / "c" / "summary.json"
    summary.write_text(summary.read_text().replace('"score": 1,', '"score": null,'))
    report.main(report.Report((tmp_path,)))
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,") == 1


def test_scores_on_the_very_data_have_a_place_among_published_ones(tmp_path):
    def learnt_from(folder: str, source: str, rows: int) -> None:
        path = tmp_path / folder
        fake(path, "hopper-medium", [60, 70])
        config = json.loads((path / "config.json").read_text())
        config["dataset"] |= {"source": source, "rows": rows}
        (path / "config.json").write_text(json.dumps(config))

    learnt_from("same", "d4rl:somewhere/hopper_medium-v2.hdf5", 999_906)
    learnt_from("older", "d4rl:hopper_medium-v0.hdf5", 1_000_000)
    learnt_from("part", "d4rl:hopper_medium-v2.hdf5", 500_000)
    learnt_from("other", "minari:mujoco/hopper/medium-v0", 1_000_000)
    lines = published.ranks(report.find([tmp_path]))
    assert lines[:2] == [["variant", "hopper-medium"], ["same", "65.0, 5 of 11"]]
    # Behind ReBRAC, EDAC, IQL and DT: CORL's README has 102.3, 101.7, 67.5 and 65.1 there.
    assert ["TD3+BC (published)", "60.4 ± 3.5"] in lines
    report.main(report.Report((tmp_path,)))
    assert "65.0, 5 of 11" in (tmp_path / "report.html").read_text()
    assert all(published.ADROIT_SIZES.get(task) or locomotion.usual_size(task) for task in published.table())
    assert set(published.table()) <= set(tasks.names())


def test_a_curve_puts_phases_one_after_another(tmp_path):
    fake(tmp_path / "b", "hopper-medium", [40, 60], online=True)
    (run,) = report.find([tmp_path])
    steps, scores, switch = run.curve()
    assert steps.tolist() == [10, 20, 30, 40]
    assert scores.tolist() == [[20, 30], [40, 60], [20, 30], [40, 60]]
    assert switch == 20
    assert run.steps_to_final().tolist() == [20, 20]
    assert run.unrest().tolist() == [10, 15]  # of 20 and 40, of 30 and 60


def test_every_point_of_a_grid_is_a_variant_of_its_own(tmp_path):
    fake(tmp_path / "a", "hopper-medium", [10, 20, 70, 90], diverged={"3": 5})
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    for final in summary["final"]:
        final |= {"seed": final["run"] % 2, "point": "alpha=0" if final["run"] < 2 else "alpha=1"}
    (tmp_path / "a" / "summary.json").write_text(json.dumps(summary))
    low, high = report.find([tmp_path])
    assert [run.variant for run in (low, high)] == ["a, alpha=0", "a, alpha=1"]
    assert [run.finals().tolist() for run in (low, high)] == [[10, 20], [70, 90]]
    assert high.curve()[1].tolist() == [[35, 45], [70, 90]]
    assert [[row["diverged"] for row in report.rows_of([run])] for run in (low, high)] == [[False] * 2, [False, True]]
    assert [line[1:3] for line in costs([low, high])[1:]] == [["a, alpha=0 and 1 more of its grid", "4"]]


def test_nothing_to_report_is_told_in_one_line(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "benchmarks.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("report: no finished run")
    assert done.stderr.count("\n") == 1
