"""benchmarks/sweep.py does what is missing and nothing else; benchmarks/report.py counts as it says."""

import csv
import dataclasses
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tyro
from rich.console import Console

from benchmarks import report, sweep
from benchmarks import suite as suites
from benchmarks.reporting import figures, published, results
from benchmarks.reporting.page import costs, rate
from benchmarks.studies import two_ways
from common import commandline, counts, datasets, recipes, tasks
from common.datasets import cards
from common.errors import Refused
from common.machine import cores
from common.runs import RunDirectory

SUITE = """
size = 500
flags = "--hidden 8 --batch-size 16 --offline-steps 20 --log-every 5 --eval-every 10 --eval-episodes 2"

[[parts]]
tasks = ["pointmaze-umaze"]
[parts.variants]
"TD3+BC" = "td3_bc --actor-hidden 8"
"cloning" = "bc --policy gaussian"
"""

LONG = """
size = 500
flags = "--hidden 8 --batch-size 16 --log-every 500 --eval-every 500 --checkpoint-every 500 --eval-episodes 1"

[[parts]]
tasks = ["pointmaze-umaze"]
[parts.variants]
"long" = "bc --offline-steps 5000"
"short" = "bc --offline-steps 500"
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
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "tiny: 2 jobs, 1 to do"
    assert re.fullmatch(r"pointmaze-umaze, cloning: finished after 0:00:\d\d; 1 of 1 done", said[1])
    assert said[2:] == [f"python -m benchmarks.report {tmp_path}/runs/tiny"]
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


def head_of(script: str) -> list[str]:
    """The options of a Slurm script; a shell reads double quotes as Slurm does."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    return [option for line in lines for option in shlex.split(line, comments=True)]


def test_a_slurm_script_runs_each_open_job_once(tmp_path, monkeypatch, capsys):
    """The script is run as Slurm would, once for each number of its array."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    here, runs = tmp_path / "50% of it", tmp_path / "50% of it" / 'my "runs"'
    here.mkdir()
    monkeypatch.chdir(here)
    # With a file and a module that are found from here alone.
    np.savez("own.npz", **two_ways.demonstrations(2, seed=0))
    Path("own_module.py").write_text("import benchmarks.studies.two_ways")
    own = '[[parts]]\ntasks = ["own_module:TwoWays-v0"]\n[parts.variants]\n"cloning" = "bc --dataset npz:own.npz '
    suite = written(here, SUITE.replace('"cloning" = "bc ', own))
    line = [
        "tiny.toml", "--runs", 'my "runs"', "--num-seeds", "2", "--seed", "5", "--launcher", "slurm",
        "--sbatch=--gpus=1", '--sbatch=--time=1:00:00 --comment="two words"',
    ]  # fmt: skip
    assert sweep.main(tyro.cli(sweep.Sweep, args=line)) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "data" / recipes.dataset_id("pointmaze-umaze", 500)).is_dir()
    assert head_of(text) == [
        "--job-name=tiny", "--array=0,1", f"--output={runs}/tiny/slurm-%a.log".replace("50%", "50%%"),
        "--open-mode=append", "--requeue", "--signal=B:TERM@120", "--gpus=1", "--time=1:00:00", "--comment=two words",
    ]  # fmt: skip
    # The signal goes to the batch shell alone, in whose place the sweep must be.
    assert text.splitlines()[-1].startswith("exec ")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "suite.sh").write_text(text)
    command, folder = ["bash", "suite.sh"], runs / "tiny" / "own_module:TwoWays-v0"
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "1"}
    subprocess.run(command, cwd=tmp_path / "elsewhere", env=environment, check=True, capture_output=True)
    run = json.loads((folder / "cloning" / "config.json").read_text())["run"]
    assert (run["num_seeds"], run["seed"]) == (2, 5)
    assert (folder / "cloning" / "summary.json").exists()
    assert not (runs / "tiny" / "pointmaze-umaze").exists()
    # What has finished is not in the next script.
    again = sweep.Sweep(suite, runs=runs, num_seeds=2, seed=5, launcher="slurm")
    assert sweep.main(again) == 0
    assert "--array=0" in head_of(capsys.readouterr().out)
    subprocess.run(command, cwd=tmp_path / "elsewhere", env=environment | {"SLURM_ARRAY_TASK_ID": "0"}, check=True)
    capsys.readouterr()
    assert sweep.main(again) == 0
    assert capsys.readouterr().out == ""
    with pytest.raises(Refused, match="--only 2: tiny has the jobs 0 to 1"):
        sweep.main(sweep.Sweep(suite, runs=runs, only=2))


def running(words: str) -> list[str]:
    """The command lines, with these words in them, of algorithms that are being trained."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text().replace("\0", " "))
        except OSError:
            continue
    return [line for line in lines if words in line and "/algorithms/" in line]


def wait_for(happened: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """Until it has happened, while the process lives."""
    until = time.monotonic() + 240
    while not happened():
        assert time.monotonic() < until
        assert process is None or process.poll() is None
        time.sleep(0.05)


@pytest.mark.skipif(not shutil.which("setpriv"), reason="without util-linux jobs outlive a sweep that is killed")
def test_a_sweep_that_is_stopped_or_killed_leaves_no_job_behind_and_goes_on(tmp_path, monkeypatch):
    suite, folder = written(tmp_path, LONG), tmp_path / "runs" / "tiny" / "pointmaze-umaze"
    command = [sys.executable, "-m", "benchmarks.sweep", suite, "--runs", str(tmp_path / "runs"), "--jobs", "1"]
    environment = os.environ | {"MINARI_DATASETS_PATH": str(tmp_path / "data")}

    def newest() -> int:
        names = [path.name for path in (folder / "long" / "checkpoints").glob("*")]
        return max((int(name) for name in names if name.isdigit()), default=0)

    def ended_by(number: signal.Signals) -> int:
        """The status of the sweep, which gets the signal when its job has written another checkpoint."""
        before, process = newest(), subprocess.Popen(command, cwd=sweep.ROOT, env=environment)
        try:
            wait_for(lambda: newest() > before, process)
            process.send_signal(number)
            return process.wait(timeout=60)
        finally:
            process.kill()

    assert ended_by(signal.SIGTERM) == 1
    assert not running(str(folder))
    assert "interrupted after step" in (folder / "long.log").read_text()
    assert not (folder / "short").exists()
    assert ended_by(signal.SIGKILL) == -signal.SIGKILL
    wait_for(lambda: not running(str(folder)))
    assert not (folder / "long" / "summary.json").exists()

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    assert sweep.main(sweep.Sweep(suite, runs=tmp_path / "runs", jobs=1)) == 0
    assert (folder / "short" / "summary.json").exists()
    with (folder / "long" / "eval.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(500, 5001, 500))


def test_a_job_that_fails_is_told_and_the_others_go_on(tmp_path, capsys):
    suite = sweep.Suite.read(written(tmp_path, SUITE.replace("size = 500", "").replace("bc --policy", "bc --nonsense")))
    runner = sweep.Runner(sweep.Sweep("tiny", runs=tmp_path / "runs"), suite, sweep.Console())
    started = []

    class Process:
        def __init__(self, command, stdout, stderr, env):
            started.append(command)
            # Side by side, they share the cores, for JAX's devices and for the processes that evaluate.
            assert int(env["HEADSTART_CORES"]) == max(1, cores() // 2)
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


LISTED = '[[parts]]\ntasks = ["x"]\nvariants = '


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("num_seeds = 3", "tiny.toml: parts missing"),
        ("colour = 1" + SUITE, "tiny.toml: unknown colour; there are data, flags, num_seeds, parts, size"),
        (SUITE.replace('"bc ', '"td4 '), "tiny.toml, part 1: variant 'cloning': there is no algorithms/td4.py; first"),
        (SUITE.replace("pointmaze-umaze", "pointmase"), "tiny.toml, part 1: unknown task 'pointmase': "),
        (SUITE.replace('"cloning"', '"TD3+BC "'), "tiny.toml: two variants of pointmaze-umaze would share the folder"),
        ("[[parts", "tiny.toml: Expected"),
        (SUITE.replace("[[parts]]", "[parts]"), "tiny.toml: parts must be tables, at least one, each headed [[parts]]"),
        ("parts = []", "tiny.toml: parts must be tables, at least one, each headed [[parts]]"),
        (
            SUITE.replace('"bc --policy gaussian"', '""'),
            "part 1: variant 'cloning': names no algorithm; first comes one",
        ),
        (SUITE.replace("bc --policy", "bc '--policy"), "part 1: variant 'cloning': no closing quotation in"),
        (SUITE.replace("--hidden 8", "--hidden '8"), "tiny.toml: flags: no closing quotation in"),
        ("flags = ['--hidden 8']" + SUITE.replace("\nflags", "\n#"), "tiny.toml: flags must be one string, such as"),
        (LISTED + '["bc"]', "tiny.toml, part 1: variants must be a table headed [parts.variants]"),
        (LISTED + "{}", "part 1: variants must be a table"),
        (LISTED + "{a = 3}", "part 1: variants must be a table"),
        (LISTED + '{"" = "bc"}', "part 1: variants must be a table"),
        (SUITE.replace('["pointmaze-umaze"]', '"pointmaze-umaze"'), "part 1: tasks must be a list of names"),
        (SUITE.replace('["pointmaze-umaze"]', "[]"), "part 1: tasks must be a list of names, at least one"),
        (SUITE.replace("500", '"100k"', 1), "tiny.toml: size must be a whole number of transitions, such as 100_000"),
        (SUITE.replace("500", "0", 1), "tiny.toml: size must be"),
        ("num_seeds = true" + SUITE, "tiny.toml: num_seeds must be a whole number of at least 1"),
        ("num_seeds = 0" + SUITE, "tiny.toml: num_seeds must be"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused(tmp_path, text, told):
    with pytest.raises(Refused) as refusal:
        sweep.Suite.read(written(tmp_path, text))
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_suite_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "tiny.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(Refused, match=r"tiny\.toml: 'utf-8' codec"):
        sweep.Suite.read(str(tmp_path / "tiny.toml"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--jobs 0", "--jobs must be at least 1, not 0"),
        ("--num-seeds 0", "--num-seeds must be at least 1, not 0"),
        ("--num-seeds -1", "--num-seeds must be at least 1, not -1"),
        ("--jobs 0.5e1 --num-seeds 0", "--num-seeds must be at least 1, not 0"),
        ("--launcher ray --job-gpus -1", "--job-gpus must be at least 0 and finite, not -1"),
        ("--launcher ray --job-cpus nan", "--job-cpus must be at least 0 and finite, not nan"),
        ("--retries -1", "--retries must be at least 0 and finite, not -1"),
        ("--seed -1", "--seed must be at least 0 and finite, not -1"),
        ("--launcher ray --job-gpus 1.5", "--job-gpus must be a share of one GPU or a whole number"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(tmp_path, flags, told):
    line = [written(tmp_path, SUITE), "--runs", str(tmp_path / "runs"), *flags.split()]
    with pytest.raises(Refused, match=told):
        sweep.main(counts.cli(sweep.Sweep, args=line))
    assert not (tmp_path / "runs").exists()


def test_counts_of_a_suite_may_have_an_exponent(tmp_path):
    text = "num_seeds = 2e0" + SUITE.replace("size = 500", "size = 1e6").replace("steps 20", "steps 2e1")
    job, _ = sweep.Suite.read(written(tmp_path, text)).jobs
    assert (job.num_seeds, job.size, job.request.config.offline_steps) == (2, 10**6, 20)
    assert "2.0" not in job.arguments()
    with pytest.raises(Refused, match="size must be a whole number"):
        sweep.Suite.read(written(tmp_path, SUITE.replace("size = 500", "size = 1.5")))


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """Of the two jobs of a suite, and what it has told; the clock stands still at 1000 s."""
    clock = [1000.0]
    monkeypatch.setattr(sweep.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), width=20)
    made = sweep.Runner(
        sweep.Sweep("tiny", runs=tmp_path / "my runs"), sweep.Suite.read(written(tmp_path, SUITE)), console
    )
    made.begin(3)
    return made, clock, console.file


def test_what_is_left_of_a_sweep_goes_by_the_pace_of_what_has_finished(runner):
    made, clock, said = runner
    job = made.chosen[0]
    made.tell(job, 1, 5.0)  # a failure says nothing about the pace
    clock[0] += 60
    made.tell(job, 0, 55.0)
    clock[0] += 120
    made.tell(job, 0)
    made.tell(job, 0)
    first, *others = said.getvalue().splitlines()
    assert first.startswith("pointmaze-umaze, TD3+BC: ended with status 1, see ")
    assert first.endswith("TD3+BC.log after 0:00:05")
    assert [line.partition("TD3+BC: ")[2] for line in others] == [
        "finished after 0:00:55; 1 of 3 done, about 0:02:00 left",
        "finished; 2 of 3 done, about 0:01:30 left",
        "finished; 3 of 3 done",
    ]


@pytest.mark.parametrize(("finished", "status"), [(0, 1), (1, 1), (2, 0)])
def test_the_last_line_of_a_sweep_is_the_command_of_its_report(runner, finished, status):
    made, _, said = runner
    for job in made.chosen[:finished]:
        (made.folder / job.folder).mkdir(parents=True)
        (made.folder / job.folder / "summary.json").write_text("{}")
    assert made.conclude() == status
    lines = said.getvalue().splitlines()
    reported = [f"python -m benchmarks.report '{made.folder}'"] if finished else []
    missing = [f"{2 - finished} of 2 jobs have not finished: the same command goes on with them"] if status else []
    assert lines == missing + reported
    # What is reported can be: the program takes the line's words.
    for line in reported:
        assert tyro.cli(report.Report, args=shlex.split(line)[3:]).runs == (made.folder,)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("--policy gaussian", "--polcy gaussian", "--polcy"),
        ("td3_bc --actor", "td3_bc --td-share 0.5 --actor", "--mixed"),
        ("--policy gaussian", "--dataset npz:none.npz", "--dataset npz:none.npz: there is no such file"),
        ("--policy gaussian", "--dataset ogbench:none.npz", "--dataset ogbench:none.npz: there is no such file"),
        ("--policy gaussian", "--dataset d5rl:none", "--dataset d5rl:none: the sources are minari:, d4rl:"),
        ("--policy gaussian", "--dataset recipe:none", "--dataset recipe:none: the recipes are pointmaze-umaze"),
        ("--policy gaussian", "--env=pointmaze-large", "--env=pointmaze-large is for the sweep to say"),
        ("--policy gaussian", "--out here", "--out is for the sweep to say"),
    ],
)
def test_a_command_line_that_would_be_refused_is_refused_before_the_first_job(tmp_path, old, new, told):
    asked = sweep.Sweep(written(tmp_path, SUITE.replace(old, new)), runs=tmp_path / "runs")
    with pytest.raises(Refused, match=told) as refusal:
        sweep.main(asked)
    assert "on pointmaze-umaze" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("Hopper-v5", "variant 'TD3+BC' on Hopper-v5: the task has no prior data of its own; name some with --dataset"),
        ("CartPole-v1", "variant 'TD3+BC' on CartPole-v1: CartPole-v1 has actions"),
    ],
)
def test_a_task_that_could_not_be_learnt_is_refused_before_the_first_job(tmp_path, task, told):
    suite = written(tmp_path, SUITE.replace("pointmaze-umaze", task))
    with pytest.raises(Refused) as refusal:
        sweep.main(sweep.Sweep(suite, runs=tmp_path / "runs"))
    assert told in str(refusal.value)
    assert not (tmp_path / "runs").exists()


def test_what_has_finished_needs_no_data_any_more(tmp_path, capsys):
    text = SUITE.replace("--policy gaussian", f"--dataset npz:{tmp_path}/own.npz").replace('"TD3+BC" =', "#")
    suite = written(tmp_path, text)
    asked = sweep.Sweep(suite, runs=tmp_path / "runs")
    with pytest.raises(Refused, match="no such file"):
        sweep.main(asked)
    (job,) = sweep.Suite.read(suite).jobs
    out = tmp_path / "runs" / "tiny" / job.folder
    out.mkdir(parents=True)
    told = {"algorithm": "bc", "arguments": job.arguments(), "dataset": {"source": f"npz:{tmp_path}/own.npz"}}
    (out / "config.json").write_text(json.dumps(told))
    (out / "summary.json").write_text("{}")
    assert sweep.main(asked) == 0
    assert "1 jobs, 0 to do" in capsys.readouterr().out


def test_data_are_made_before_the_jobs_that_need_them(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "within_reach", lambda source: False)

    def needed(text: str) -> list[tuple[str, int | None] | None]:
        return [job.decided({}).data() for job in sweep.Suite.read(written(tmp_path, text)).jobs]

    recipe = "recipe:pointmaze-umaze"
    own = SUITE.replace("size = 500", "")
    assert needed(SUITE) == [(recipe, 500)] * 2
    assert needed(own) == [(recipe, None)] * 2
    scratch = SUITE.replace('"bc --policy gaussian"', '"redq_adaptive_bc --preset redq-scratch"')
    scratch = scratch.replace("--offline-steps 20 ", "")
    assert needed(scratch) == [(recipe, 500), None]
    # A run refuses data that it would not learn from.
    assert ["--dataset" in job.arguments() for job in sweep.Suite.read(written(tmp_path, scratch)).jobs] == [
        True,
        False,
    ]
    for text, size in ((SUITE, 500), (own, None)):
        for source in ("d4rl:own.hdf5", "recipe:pointmaze-medium"):
            chosen = text.replace("bc --policy", f"bc --dataset {source} --policy")
            assert needed(chosen) == [(recipe, size), (source, None)]


def test_all_jobs_of_a_sweep_learn_from_the_data_it_began_with(tmp_path, monkeypatch):
    """Also where others are within reach: on the machines that a script is run on, or a day later."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    suite = written(tmp_path, SUITE.replace("size = 500", "").replace("pointmaze-umaze", "hopper-medium"))
    asked = sweep.Sweep(suite, runs=tmp_path / "runs", launcher="slurm")
    fetched, made = [], []
    monkeypatch.setattr(sweep, "fetch", fetched.append)
    monkeypatch.setattr(recipes, "make", lambda name, size, progress: made.append(name))
    for reachable, sources in ((False, {"hopper-medium": "recipe:hopper-medium"}), (True, None)):
        monkeypatch.setattr(datasets, "within_reach", lambda source, reachable=reachable: reachable)
        assert sweep.main(asked) == 0
        told = json.loads((tmp_path / "runs" / "tiny" / "suite.json").read_text())
        assert told["sources"] == (sources or {"hopper-medium": "recipe:hopper-medium"})
        runner = sweep.Runner(asked, sweep.Suite.read(suite), Console())
        runner.decide()
        for job in runner.chosen:
            assert job.arguments()[:4] == ["--env", "hopper-medium", "--dataset", "recipe:hopper-medium"]
    assert (made, fetched) == (["hopper-medium"] * 2, [])
    # A sweep that begins where the published data are within reach has them, and fetches them once.
    (tmp_path / "runs" / "tiny" / "suite.json").unlink()
    assert sweep.main(asked) == 0
    published = tasks.find("hopper-medium").default_dataset
    assert published.startswith("d4rl:")
    assert fetched == [published]
    runner = sweep.Runner(asked, sweep.Suite.read(suite), Console())
    runner.decide()
    assert runner.chosen[0].arguments()[3] == published


@pytest.mark.parametrize(
    ("line", "task", "told"),
    [
        ("rlpd --offline-ratio 0 --dataset recipe:hopper-medium", "hopper-medium", "nothing is learnt from data"),
        ("redq_adaptive_bc --dataset recipe:hopper-medium", "Hopper-v4", "no normalised return"),
        ("bc --wandb", "hopper-medium", "wandb is not installed"),
    ],
)
def test_what_a_run_would_refuse_stops_a_sweep_before_it_makes_anything(tmp_path, monkeypatch, line, task, told):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    there = importlib.util.find_spec
    text = f'[[parts]]\ntasks = ["{task}"]\n[parts.variants]\n"mine" = "{line}"\n'
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else there(name))
    with pytest.raises(Refused, match=f"variant 'mine' on {task}: .*{told}"):
        sweep.main(sweep.Sweep(written(tmp_path, text), runs=tmp_path / "runs"))
    assert not list((tmp_path / "data").glob("*"))
    assert not (tmp_path / "runs").exists()


def test_a_suite_may_ask_for_recipes(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "within_reach", lambda source: pytest.fail("asked a host"))
    lines = '[[parts]]\ntasks = ["{}"]\n[parts.variants]\n"mine" = "{}"\n'
    for line, source in (("bc", "recipe:hopper-medium"), ("bc --dataset npz:mine.npz", "npz:mine.npz")):
        suite = sweep.Suite.read(written(tmp_path, 'data = "recipe"\n' + lines.format("hopper-medium", line)))
        sources = {}
        (job,) = (job.decided(sources) for job in suite.jobs)
        assert (job.data(), sources) == ((source, None), {})
        assert source in job.arguments()
    (job,) = sweep.Suite.read(written(tmp_path, 'data = "recipe"\n' + lines.format("door-human", "bc"))).jobs
    with pytest.raises(Refused, match="--dataset recipe:door-human: the recipes are"):
        job.check()
    with pytest.raises(Refused, match='data must be "recipe", or left out'):
        sweep.Suite.read(written(tmp_path, 'data = "minari"\n' + lines.format("hopper-medium", "bc")))


def test_seeds_may_begin_elsewhere(tmp_path):
    suite = written(tmp_path, SUITE)
    assert "--seed" not in sweep.Suite.read(suite).jobs[0].arguments()
    for job in sweep.Suite.read(suite, seed=7).jobs:
        assert job.request.run.seed == 7


def test_shipped_suites_can_be_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse, parsed = commandline.parse, {}

    def parsed_once(arguments, name, description, config_class, presets):
        """A command line means the same for all tasks of a family that have no presets of their own."""
        env = arguments[1]
        own = [name for name in presets if name.endswith(f"/{env}")]
        key = (name, tasks.find(env).family, *own, *arguments[2:])
        if key not in parsed:
            parsed[key] = parse(arguments, name, description, config_class, presets)
        return dataclasses.replace(parsed[key], run=dataclasses.replace(parsed[key].run, env=env))

    monkeypatch.setattr(commandline, "parse", parsed_once)
    with pytest.raises(Refused, match=r"--dataset npz:runs/two-ways\.npz: there is no such file"):
        sweep.main(sweep.Sweep("two-ways"))
    two_ways.main(two_ways.Data(episodes=2))  # as the suite's first line says
    Path("door-human.hdf5").touch()  # D4RL's, of which the sweep asks only that it is there
    for path in suites.SUITES.glob("*.toml"):
        for job in sweep.Suite.read(path.stem).jobs:
            job.check()
    with pytest.raises(Refused, match="there are"):
        sweep.Suite.read("nonsense")


def test_what_a_kill_left_at_the_very_start_does_not_stop_a_new_run(tmp_path):
    (tmp_path / ".config.json.partial").write_text("{")
    RunDirectory.create(tmp_path, {"id": "1"})
    with pytest.raises(Refused, match="exists already"):
        RunDirectory.create(tmp_path, {"id": "1"})


WRITING = threading.Lock()


def fake(folder: Path, task: str, scores: list[float], online: bool = False, diverged: dict | None = None) -> None:
    """A run directory whose seeds end with these scores; of a sweep that calls it by its folder."""
    folder.mkdir(parents=True)
    config = {
        "algorithm": "td3_bc", "arguments": ["--env", task, "--out", "somewhere"], "commit": "abc",
        "run": {"env": task, "eval_episodes": 10},
        "dataset": {"source": "recipe", "fingerprint": "f", "transitions": 5, "env_spec": "long"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    with WRITING:
        suite = folder.parent / "suite.json"
        jobs = json.loads(suite.read_text())["jobs"] if suite.exists() else []
        suite.write_text(json.dumps({"jobs": [*jobs, {"folder": folder.name, "task": task, "variant": folder.name}]}))
    more = {"offline": 50.0, "drop": 10.0, "online_mean": 60.0} if online else {}
    final = [
        {"run": k, "seed": k, "point": {}, "score": s, "return_mean": 10 * s, "success": None} | more
        for k, s in enumerate(scores)
    ]
    summary = {"final": final, "diverged_at_step": diverged or {}, "steps_per_second": 1.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    with (folder / "eval.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "seed", "step", "phase", "episodes", "score", "return_mean", "success"])
        for phase in ("offline", "online") if online else ("offline",):
            for step in (10, 20):
                for run, score in enumerate(scores):
                    writer.writerow([run, run, step, phase, 10, score * step / 20, score * step / 2, ""])


def unscored(folder: Path) -> None:
    """As if the run's task had no score."""
    summary = json.loads((folder / "summary.json").read_text())
    for final in summary["final"]:
        final["score"] = None
    (folder / "summary.json").write_text(json.dumps(summary))


def learnt_from(folder: Path, data: dict | None) -> None:
    """As if the run had learnt from these data, or from none."""
    config = json.loads((folder / "config.json").read_text())
    config["dataset"] = data and (config["dataset"] | data)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_report_counts_every_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
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


def rows_of_table(folder: Path) -> list[dict[str, str]]:
    """The lines of the table of the runs in a folder, by the names of its columns."""
    head, *lines = report.table(report.find([folder]))
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_tasks_of_unequally_many_seeds_count_alike(tmp_path):
    fake(tmp_path / "hopper-medium" / "a", "hopper-medium", [90, 90, 90])
    fake(tmp_path / "walker2d-medium" / "a", "walker2d-medium", [0])
    fake(tmp_path / "hopper-medium" / "b", "hopper-medium", [80, 80, 80], online=True)
    fake(tmp_path / "walker2d-medium" / "b", "walker2d-medium", [-20, -20], online=True)
    summary = tmp_path / "walker2d-medium" / "b" / "summary.json"
    summary.write_text(summary.read_text().replace('"drop": 10.0', '"drop": 40.0'))
    a, b = rows_of_table(tmp_path)
    assert "IQM of all" not in a
    assert (a["mean of all"], b["mean of all"]) == ("45.0", "30.0 [30.0, 30.0]")
    assert (b["drop"], b["online mean"]) == ("25.0", "60.0")
    # In a curve the second half holds half the final score and all of it, online.
    assert (b["unrest"], a["unrest"]) == ("12", "0")
    # The picture of all tasks: mean and gap, and not what has no meaning.
    figure = figures.aggregates({"b": [run.finals() for run in report.find([tmp_path]) if run.variant == "b"]}, ["b"])
    assert [axes.get_title() for axes in figure.axes] == ["mean, %", "optimality gap, %"]
    mean, gap = (axes.lines[1].get_xdata()[0] for axes in figure.axes)
    assert (mean, gap) == (30, (20 + 120) / 2)


def test_returns_are_not_averaged_over_tasks(tmp_path):
    fake(tmp_path / "hopper-medium" / "a", "hopper-medium", [90, 80], online=True)
    fake(tmp_path / "own" / "a", "own:Own-v0", [90, 80], online=True)
    fake(tmp_path / "own" / "b", "own:Own-v0", [90, 80], online=True)
    for variant in "ab":
        unscored(tmp_path / "own" / variant)
    a, b = rows_of_table(tmp_path)
    assert not {"mean of all", "IQM of all"} & a.keys()
    assert (a["own:Own-v0"][:5], a["steps to 90 %"]) == ("850.0", "20")
    assert (a["unrest"], a["drop"], a["online mean"]) == ("", "", "")
    assert (b["unrest"], b["drop"], b["online mean"]) == ("2.1e+02", "10.0", "60.0")


def test_a_variant_in_two_folders_is_refused(tmp_path):
    for sweep_of in ("one", "two"):
        fake(tmp_path / sweep_of / "hopper-medium" / "BC", "hopper-medium", [10])
        fake(tmp_path / sweep_of / "walker2d-medium" / sweep_of, "walker2d-medium", [10])
    with pytest.raises(Refused, match=r"one/hopper-medium/BC and .*two/hopper-medium/BC both hold BC on hopper-medium"):
        report.find([tmp_path])
    # Folders that overlap hold no run twice.
    assert (
        len(report.find([tmp_path / "one", tmp_path / "one" / "walker2d-medium", tmp_path / "one" / ".." / "one"])) == 2
    )


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("a/eval.csv", None, r"a/eval\.csv: holds no evaluations"),
        ("a/eval.csv", "run,seed,st", r"a/eval\.csv: holds no evaluations"),
        ("a/config.json", None, r"a/config\.json: cannot be read"),
        ("a/config.json", '{"algorithm": ', r"a/config\.json: cannot be read"),
        ("a/config.json", '{"algorithm": "bc", "dataset": null}', r"a/config\.json: run, commit missing"),
        ("a/summary.json", "", r"a/summary\.json: cannot be read"),
        ("suite.json", '{"jobs": [', r"suite\.json: cannot be read"),
    ],
)
def test_a_damaged_run_is_named(tmp_path, file, text, told):
    for name in "ab":
        fake(tmp_path / name, "hopper-medium", [10])
    if text is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(text)
    with pytest.raises(Refused, match=told):
        report.find([tmp_path])


def test_a_name_may_have_dots(tmp_path, monkeypatch):
    folder = tmp_path / "results"
    monkeypatch.setattr(results, "FOLDER", folder)
    fake(tmp_path / "runs" / "a", "hopper-medium", [10])
    for name in ("jax0.10", "jax0.10.2"):
        report.main(report.Report((tmp_path / "runs",), name))
    endings = (".csv", ".json", ".md", ".png", "_evaluations.csv")
    expected = sorted(name + ending for name in ("jax0.10", "jax0.10.2") for ending in endings)
    assert sorted(path.name for path in folder.iterdir()) == expected
    with pytest.raises(Refused, match=r"'\.\./other' cannot name a result"):
        report.main(report.Report((tmp_path / "runs",), "../other"))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    fake(tmp_path / "runs" / "a", "hopper-medium", [10])
    asked = report.Report((tmp_path / "runs",), "test")
    report.main(asked)
    for path in (tmp_path / "runs" / "report.html", *(tmp_path / "results").glob("test.[mp]*")):
        before, in_its_way = path.read_bytes(), path.with_name(f".{path.name}.partial")
        in_its_way.mkdir()
        with pytest.raises(Refused, match=f"{path.name}: cannot be written"):
            report.main(asked)
        assert path.read_bytes() == before
        in_its_way.rmdir()


def test_data_are_said_once_where_they_are_the_same(tmp_path):
    for name in "abc":
        fake(tmp_path / name, "hopper-medium", [10])
    learnt_from(tmp_path / "c", None)
    card = {"source": "recipe", "fingerprint": "f", "transitions": 5}
    assert report.datasets_of(report.find([tmp_path])) == {"hopper-medium": card}
    learnt_from(tmp_path / "b", {"fingerprint": "g"})
    assert report.datasets_of(report.find([tmp_path])) == {
        "hopper-medium, a": card, "hopper-medium, b": card | {"fingerprint": "g"},
    }  # fmt: skip


def test_the_cost_is_that_of_all_phases(tmp_path):
    fake(tmp_path / "a", "hopper-medium", [10, 20])

    def cells(**counted: float) -> list[str]:
        path = tmp_path / "a" / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | counted))
        head, line = costs(report.find([tmp_path]))
        return [line[head.index(name)] for name in ("time", "of it evaluation", "steps/s of all runs")]

    assert cells() == ["", "", "2"]
    assert cells(learning_seconds=30.0, evaluation_seconds=12.0, compile_seconds=5.0) == ["47 s", "12 s", "2"]
    assert cells(whole_seconds=90.0) == ["1.5 min", "12 s", "2"]
    assert [rate(per_second) for per_second in (0.123, 9.87, 12.3, 29_530.4)] == ["0.12", "9.9", "12", "29,530"]


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
    unscored(tmp_path / "own" / "c")
    report.main(report.Report((tmp_path,)))
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,") == 1


def test_two_runs_of_one_command_are_two_lines_of_costs(tmp_path):
    for name in ("before", "after"):
        fake(tmp_path / name, "hopper-medium", [60, 70])
    (tmp_path / "suite.json").unlink()
    head, *lines = costs(report.find([tmp_path]))
    assert [dict(zip(head, line, strict=True))["variant"] for line in lines] == ["td3_bc in after", "td3_bc in before"]
    assert [dict(zip(head, line, strict=True))["runs"] for line in lines] == ["2", "2"]


def test_a_published_command_names_no_folder_of_this_machine_and_can_be_repeated():
    def told(*arguments: str, data: bool = True) -> str:
        config = {"algorithm": "bc", "arguments": list(arguments), "dataset": {} if data else None}
        return results.command_of(config).removeprefix("python algorithms/bc.py ")

    for kind in ("d4rl", "npz", "ogbench"):
        assert told("--dataset", f"{kind}:/home/me/a b.x", "--seed", "1") == f"--dataset '{kind}:a b.x' --seed 1"
        assert told(f"--dataset={kind}:../me/x") == f"--dataset={kind}:x"
    assert told("--dataset", "minari:D4RL/door/human-v2", "--out", "x") == "--dataset minari:D4RL/door/human-v2"
    # Once data could be named to runs that learn from none.
    assert (
        told("--env", "Hopper-v4", "--dataset", "minari:a/b-v0", "--utd", "2", data=False) == "--env Hopper-v4 --utd 2"
    )


def test_scores_on_the_very_data_have_a_place_among_published_ones(tmp_path):
    for folder, source, rows in (
        ("same", "d4rl:somewhere/hopper_medium-v2.hdf5", 999_906),
        ("older", "d4rl:hopper_medium-v0.hdf5", 1_000_000),
        ("part", "d4rl:hopper_medium-v2.hdf5", 500_000),
        ("other", "minari:mujoco/hopper/medium-v0", 1_000_000),
    ):
        fake(tmp_path / folder, "hopper-medium", [60, 70])
        learnt_from(tmp_path / folder, {"source": source, "rows": rows})
    lines = published.ranks(report.find([tmp_path]))
    assert lines[:2] == [["variant", "hopper-medium"], ["same", "65.0, 5 of 11"]]
    # Behind ReBRAC, EDAC, IQL and DT: CORL's README has 102.3, 101.7, 67.5 and 65.1 there.
    assert ["TD3+BC (published)", "60.4 ± 3.5"] in lines
    report.main(report.Report((tmp_path,)))
    assert "65.0, 5 of 11" in (tmp_path / "report.html").read_text()
    assert set(published.table()) <= set(cards.D4RL_ROWS)
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


def test_nothing_is_reached_by_a_seed_that_ends_at_nothing(tmp_path):
    for name, finals in (("a", [40, 0]), ("b", [0, -1])):
        fake(tmp_path / name, "hopper-medium", finals)
    runs = report.find([tmp_path])
    assert [np.isnan(run.steps_to_final()).tolist() for run in runs] == [[False, True], [True, True]]
    assert [row["steps_to_90_percent"] for row in report.rows_of(runs)] == [20, None, None, None]
    (_, *lines), column = report.table(runs), report.table(runs)[0].index("steps to 90 %")
    assert [line[column] for line in lines] == ["20", ""]


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


def test_nothing_to_report_is_told(tmp_path):
    with pytest.raises(Refused, match="no finished run"):  # in one line, as test_results.py sees
        report.main(report.Report((tmp_path,)))
