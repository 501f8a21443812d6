"""The loop: runs side by side, the axis over devices, both phases, checkpoints, refusals of the command line."""

import importlib.machinery
import io
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from interruption import stopped_at
from rich.console import Console
from served import FILE, SMALL, crash, serve, table, without

from algorithms import bc, dagger
from algorithms.rlpd import RLPD, Config
from common import command, environments, launch, recipes, tasks, training
from common.checkpoints import Checkpoints, Saving
from common.collection import Collector
from common.commandline import Request, Run
from common.errors import Refused
from common.players import playable
from common.progress import Progress
from common.reporting import Reporter
from common.runs import RunDirectory, Table
from common.spreading import Program


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Two seeds, on one device each, without interruption."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert serve(*SMALL, "--num-seeds", 2, "--out", out)[0] == 0
    return out


def test_the_run_directory_is_complete(whole):
    config = json.loads((whole / "config.json").read_text())
    assert config["config"]["utd"] == 2
    assert config["versions"]["jax"]
    assert config["device"]["backend"] == "cpu"
    summary = json.loads((whole / "summary.json").read_text())
    assert [f["seed"] for f in summary["final"]] == [0, 1]
    assert summary["steps_per_second"] > summary["steps_per_second_with_evaluation"] > 0
    times = summary["online_step_milliseconds"]
    assert list(times) == ["act", "environment", "update"]
    assert min(times.values()) > 0
    assert (whole / "curve.png").read_bytes().startswith(b"\x89PNG")
    evaluations = table(whole / "eval.csv")
    assert list(evaluations[0])[:4] == ["run", "seed", "step", "phase"]
    assert [(r["run"], r["step"]) for r in evaluations] == [("0", "90"), ("1", "90"), ("0", "180"), ("1", "180")]
    final = np.mean([float(r["return_mean"]) for r in evaluations if r["step"] == "180"])
    np.testing.assert_allclose(summary["final_mean"]["return_mean"], final)
    # The first row of metrics comes with the first update after start_training.
    assert [r["step"] for r in table(whole / "metrics.csv", run=1)] == ["90", "120", "150", "180"]


def test_environments_in_processes_change_nothing_also_over_a_stop(whole, tmp_path, monkeypatch):
    flags = (*SMALL, "--num-seeds", 2, "--env-workers", 2, "--out", tmp_path / "run")
    with stopped_at(120, monkeypatch):
        serve(*flags)
    assert serve("--resume", tmp_path / "run")[0] == 0
    for file in ("metrics.csv", "eval.csv"):
        assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--env-workers", 2), "--env-workers 2: there is 1 run, with an environment each"),
        (("--env-workers", 1, "--single-environment"), "plays in this process: leave out --env-workers"),
        (("--env-workers", -1), "--env-workers must be 0 or more, not -1"),
    ],
)
def test_processes_without_anything_to_do_are_refused(flags, why, tmp_path):
    with pytest.raises(Refused, match=why):
        serve(*SMALL, "--offline-ratio", 0.5, *flags, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for config, found in ((bc.Config(), "nothing is collected"), (dagger.Config(), "an expert is asked")):
        assert launch.check_workers(Request(Run(env_workers=1), config, {})).startswith(found)


def test_every_action_is_random_until_training_starts(tmp_path, monkeypatch):
    taken = []
    step = Collector.step
    monkeypatch.setattr(Collector, "step", lambda self, actions: (taken.append(actions), step(self, actions))[1])
    arguments = [*SMALL, "--learning-rate", 1e-30, "--steps", 600, "--start-training", 500, "--num-seeds", 2]
    serve(*arguments, "--eval-every", 600, "--eval-episodes", 1, "--utd", 1, "--out", tmp_path / "run")
    random = np.stack(taken)[:500]
    assert len(np.unique(random)) == 1000
    assert abs(random.mean()) < 0.06
    np.testing.assert_allclose(random.std(), 1 / np.sqrt(3), rtol=0.05)


def test_seeds_differ(whole):
    first, second = (without(table(whole / "metrics.csv", seed=s), "run", "seed") for s in (0, 1))
    assert all(a["q"] != b["q"] for a, b in zip(first, second, strict=True))


def test_runs_computed_at_once_agree_with_runs_one_after_another(tmp_path):
    short = [*SMALL, "--steps", "62", "--eval-every", "62", "--log-every", "1", "--num-seeds", "2", "--devices", "1"]
    serve(*short, "--width", 1, "--out", tmp_path / "map")
    serve(*short, "--width", 2, "--out", tmp_path / "vmap")
    one, other = (table(tmp_path / name / "metrics.csv") for name in ("map", "vmap"))
    assert len(one) == 4
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(float(a["critic_loss"]), float(b["critic_loss"]), rtol=1e-3)


def test_every_program_compiles_once(tmp_path, monkeypatch):
    sessions = []
    train = training.Session.train
    monkeypatch.setattr(training.Session, "train", lambda self: (sessions.append(self), train(self))[1])
    serve(*SMALL, "--num-seeds", 2, "--out", tmp_path / "run")
    programs = sessions[0].programs
    sizes = {name: p.jitted._cache_size() for name, p in vars(programs).items() if isinstance(p, Program)}
    always = dict.fromkeys(("create", "choose", "collect", "learn", "act", "enter"), 1)
    assert sizes == always | dict.fromkeys(("offline", "proceed", "defer", "study"), 0)


def test_pretraining_takes_exact_steps_and_is_marked(tmp_path, monkeypatch):
    sessions = []
    train = training.Session.train
    monkeypatch.setattr(training.Session, "train", lambda self: (sessions.append(self), train(self))[1])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.setitem(recipes.SIZES, "pointmaze-umaze", 500)
    serve("--env", "pointmaze-umaze", "--hidden", 8, "--ensemble", 2,
          "--utd", 3, "--batch-size", 8, "--pretrain-steps", 5, "--log-every", 2, "--steps", 20, "--start-training", 16,
          "--eval-every", 20, "--eval-episodes", 1, "--out", tmp_path / "run")  # fmt: skip
    rows = table(tmp_path / "run" / "metrics.csv")
    assert [(r["phase"], r["step"]) for r in rows] == [
        ("offline", "2"), ("offline", "4"), ("offline", "5"), ("online", "18"), ("online", "20"),
    ]  # fmt: skip
    assert int(sessions[0].learner.agent.critic.opt_state.count[0]) == 3 * (5 + 4)
    assert int(sessions[0].learner.agent.actor.opt_state.count[0]) == 5 + 4


def test_the_same_transitions_through_three_sources_give_the_same_curve(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    identifier = recipes.make("pointmaze-umaze", size=500)
    episodes = list(minari.load_dataset(identifier).iterate_episodes())
    parts = {
        "observations": [e.observations[:-1] for e in episodes],
        "next_observations": [e.observations[1:] for e in episodes],
        "actions": [e.actions for e in episodes],
        "rewards": [e.rewards for e in episodes],
        "terminals": [e.terminations for e in episodes],
        "timeouts": [e.truncations for e in episodes],
    }
    rows = {key: np.concatenate(value) for key, value in parts.items()}
    np.savez(tmp_path / "data.npz", **rows)
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        for key, value in rows.items():
            file[key] = value
    curves, prints = [], set()
    for source in (f"minari:{identifier}", f"npz:{tmp_path / 'data.npz'}", f"d4rl:{tmp_path / 'data.hdf5'}"):
        out = tmp_path / source.partition(":")[0]
        serve("--env", "pointmaze-umaze", "--dataset", source, "--hidden", 8, "--ensemble", 2, "--utd", 2,
              "--batch-size", 8, "--steps", 40, "--start-training", 10, "--log-every", 5, "--eval-every", 40,
              "--eval-episodes", 1, "--out", out)  # fmt: skip
        curves.append(table(out / "metrics.csv"))
        prints.add(json.loads((out / "config.json").read_text())["dataset"]["fingerprint"])
    assert len(prints) == 1
    assert len(curves[0]) == 6
    assert curves[0] == curves[1] == curves[2]


def test_a_diverged_run_is_named_and_does_not_stop_the_others(whole, tmp_path):
    status, said = serve(*SMALL, "--grid.learning-rate", 1e30, 3e-4, "--out", tmp_path / "run")
    assert status == 0
    assert "run 0 (seed 0) has diverged at online step 6" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["diverged_at_step"]) == ["0"]
    healthy = table(tmp_path / "run" / "metrics.csv", run=1)
    assert without(healthy, "run", "point") == without(table(whole / "metrics.csv", seed=0), "run")


def test_only_what_is_not_finite_is_played_as_zero():
    diverged = []
    action = np.ones((2, 3, 4), np.float32)
    action[1, 2, 0] = np.nan
    played = playable(action, diverged.append)
    assert played[1, 2].tolist() == [0] * 4
    played[1, 2] = 1
    assert (played == 1).all()
    assert diverged == [1]


def test_what_has_diverged_is_said_once(tmp_path):
    said = Console(file=io.StringIO(), width=200)
    progress = Progress({"offline": 5, "online": 10}, "online", 7)
    task = tasks.find("InvertedPendulum-v5")
    reporter = Reporter(RunDirectory(tmp_path, "test"), said, task, Run(), progress, [3, 4], ["", ""])
    for run in (1, 1):
        reporter.diverged(run)
        progress.step += 1
    assert said.file.getvalue() == "run 1 (seed 4) has diverged at online step 7\n"
    # An evaluation beside learning is of an earlier step.
    for step in (7, 6):
        reporter.diverged(1, step)
    assert said.file.getvalue().splitlines()[1:] == ["run 1 (seed 4) has diverged at online step 6"]
    assert progress.diverged_at_step == {"1": {"phase": "online", "step": 6}}
    # A checkpoint keeps it, in words that JSON has.
    again = Progress(progress.phases)
    again.restore(json.loads(json.dumps(progress.state())))
    assert (again.phase, again.step, again.total_step) == ("online", 9, 14)
    assert again.diverged_at_step == progress.diverged_at_step


def test_a_request_is_served_without_a_command_line(whole, tmp_path):
    config = Config(hidden=(8,), ensemble=3, utd=2, batch_size=16, start_training=60, steps=180, offline_ratio=0.0)
    asked = Run("InvertedPendulum-v5", num_seeds=2, eval_every=90, eval_episodes=3, log_every=30, out=tmp_path / "run")
    result = launch.run(RLPD, Request(asked, config, {}), [], Console(file=io.StringIO()))
    assert (result.folder, result.status) == (tmp_path / "run", 0)
    final = json.loads((whole / "summary.json").read_text())["final"]
    assert [run["return_mean"] for run in result.summary["final"]] == [run["return_mean"] for run in final]
    for name in ("metrics.csv", "eval.csv"):
        assert table(result.folder / name) == table(whole / name)


@pytest.mark.parametrize("name", ["eval_every", "eval_episodes", "log_every"])
def test_a_resumed_run_is_evaluated_as_it_began(whole, tmp_path, name):
    out = tmp_path / "run"
    out.mkdir()
    config = json.loads((whole / "config.json").read_text())
    config["run"][name] += 1  # what a preset said then
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match=rf"{name} was \d+ when it began and is \d+ now"):
        serve("--resume", out)
    assert [path.name for path in out.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", ["metrics.csv", "eval.csv"])
def test_tables_that_cannot_be_written_refuse_a_resume(whole, tmp_path, monkeypatch, name):
    out = tmp_path / "run"
    crash([*SMALL, "--num-seeds", 2, "--checkpoint-every", 25, "--out", out], 150, monkeypatch)
    before = (out / name).read_bytes()
    (out / f".{name}.partial").mkdir()
    with pytest.raises(Refused, match=rf"{name}: cannot be written .* --resume"):
        serve("--resume", out)
    assert (out / name).read_bytes() == before
    (out / f".{name}.partial").rmdir()
    assert serve("--resume", out)[0] == 0
    assert table(out / name) == table(whole / name)


def test_evaluation_does_not_touch_training(whole, tmp_path):
    serve(*SMALL, "--num-seeds", 2, "--eval-every", 60, "--eval-episodes", 5, "--out", tmp_path / "run")
    assert [r["step"] for r in table(tmp_path / "run" / "eval.csv", run=0)] == ["60", "120", "180"]
    assert table(tmp_path / "run" / "metrics.csv") == table(whole / "metrics.csv")


@pytest.mark.parametrize("at", [50, 150])
def test_a_resumed_run_gives_the_same_numbers(whole, tmp_path, monkeypatch, at):
    """Stopped before and after training started, in the middle of episodes."""
    out = tmp_path / "run"
    crash([*SMALL, "--num-seeds", 2, "--checkpoint-every", 25, "--out", out], at, monkeypatch)
    status, said = serve("--resume", out)
    assert status == 0
    assert f"after step {at}" in said
    for name in ("metrics.csv", "eval.csv"):
        assert table(out / name) == table(whole / name)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    crash([*SMALL, "--num-seeds", 2, "--checkpoint-every", 25, "--out", out], 150, monkeypatch)
    for path in (out / "checkpoints" / "150").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    status, said = serve("--resume", out)
    assert status == 0
    assert "checkpoint 150 is damaged" in said
    assert "after step 125" in said
    assert table(out / "metrics.csv") == table(whole / "metrics.csv")


def test_with_every_checkpoint_damaged_it_starts_again(whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    crash([*SMALL, "--num-seeds", 2, "--checkpoint-every", 25, "--out", out], 150, monkeypatch)
    for path in (out / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    status, said = serve("--resume", out)
    assert status == 0
    assert "after step 0" in said
    assert table(out / "metrics.csv") == table(whole / "metrics.csv")
    assert sorted(p.name for p in (out / "damaged-checkpoints").iterdir()) == ["125", "150"]


def test_one_flipped_bit_is_noticed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    values = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    checkpoints.save(1, {"x": values}, {"step": 1})
    checkpoints.save(2, {"x": values}, {"step": 2})
    largest = max((p for p in (tmp_path / "2").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    said = []
    step, arrays, progress = checkpoints.restore(said.append)
    assert (step, progress["step"]) == (1, 1)
    np.testing.assert_array_equal(arrays["x"], values)
    assert "checkpoint 2 is damaged" in said[0]


def test_killed_before_the_first_checkpoint_it_starts_again(whole, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(whole / "config.json", out)
    (out / "metrics.csv").write_text((whole / "metrics.csv").read_text()[:300])  # cut in the middle of a line
    assert serve("--resume", out)[0] == 0
    assert table(out / "metrics.csv") == table(whole / "metrics.csv")


def test_a_resumed_run_keeps_its_devices_and_names_what_has_changed(whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    crash([*SMALL, "--num-seeds", 2, "--checkpoint-every", 25, "--out", out], 100, monkeypatch)
    config = json.loads((out / "config.json").read_text())
    assert config["devices"] == 2
    monkeypatch.setattr(command, "cores", lambda: 1)
    changed = config | {
        "sources": {"rlpd.py": "0", "common/": "0"}, "versions": config["versions"] | {"jax": "0.0.1"},
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(changed))
    status, said = serve("--resume", out)
    assert status == 0
    assert "rlpd.py has changed; common/ has changed; jax was 0.0.1, is 0." in said
    assert table(out / "metrics.csv") == table(whole / "metrics.csv")
    # More devices than there are: it goes on with those, and says so.
    shutil.rmtree(out)
    crash([*SMALL, "--num-seeds", 2, "--checkpoint-every", 25, "--out", out], 100, monkeypatch)
    (out / "config.json").write_text(json.dumps(config | {"devices": 5, "device": config["device"] | {"kind": "TPU"}}))
    status, said = serve("--resume", out)
    assert status == 0
    assert "it ran on 5 devices, 2 are here: numbers may differ" in said


def test_a_run_is_not_resumed_with_other_values(tmp_path, monkeypatch):
    out = tmp_path / "run"
    crash([*SMALL, "--checkpoint-every", 25, "--out", out], 50, monkeypatch)
    other = Config(discount=0.5)
    monkeypatch.setattr(Config, "__init__", lambda self, **kw: self.__dict__.update(vars(other) | kw))
    with pytest.raises(Refused, match=r"discount was 0.99 when it began and is 0.5 now"):
        serve("--resume", out)


def test_an_episode_that_could_not_be_repeated_begins_with_an_action_of_its_own(tmp_path, monkeypatch):
    out = tmp_path / "run"
    crash([*SMALL, "--checkpoint-every", 25, "--out", out], 150, monkeypatch)
    replay = environments.Environment.replay
    monkeypatch.setattr(environments.Environment, "replay", lambda *a: replay(*a) + 1)
    taken = []
    step = Collector.step

    def noted(self, actions):
        taken.append((self.observation.copy(), actions.copy()))
        return step(self, actions)

    monkeypatch.setattr(Collector, "step", noted)
    call, chosen = Program.__call__, []

    def noted_call(self, *arguments):
        returned = call(self, *arguments)
        if self.__name__ == "_choose":
            _, _, at, observation = arguments
            chosen.append((at, observation.copy(), returned))
        return returned

    monkeypatch.setattr(Program, "__call__", noted_call)
    status, said = serve("--resume", out)
    assert status == 0
    assert "not deterministic" in said
    (at, observation, action), *later = chosen
    assert (at, {at for at, *_ in later}) == (150, {180})  # those at the end are timed
    np.testing.assert_array_equal(observation, taken[0][0])
    np.testing.assert_array_equal(action, taken[0][1])


def test_checkpoints_take_no_more_than_their_share_of_the_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    saving, always = Saving(10, 0.05), Saving(10, None)
    assert saving.affordable()
    now[0] = 102.0
    saving.done(100.0)
    always.done(100.0)
    for later, affordable in ((103.0, False), (141.9, False), (142.1, True)):
        now[0] = later
        assert saving.affordable() == affordable
        assert always.affordable()
    # At the end of an interval of 10 steps, or past it.
    assert [always.due(first, step) for first, step in ((5, 9), (9, 10), (10, 19), (8, 12))] == [False, True] * 2


def test_trackers_see_all_phases_as_one_and_go_on_after_a_resume(tmp_path, monkeypatch):
    out = tmp_path / "run"
    begun, scalars, logged, came_to = [], [], {}, []

    class Writer:
        def __init__(self, folder, purge_step):
            begun.append(purge_step)

        def add_scalar(self, name, value, step):
            scalars.append((name, step))

        def add_text(self, name, text, step):
            assert '"utd": 1' in text

        def add_hparams(self, hyperparameters, metrics, name, global_step):
            came_to.append((hyperparameters["utd"], hyperparameters["seed"], name, global_step, list(metrics)))

        def close(self):
            begun.append("closed")

    class Wandb:
        @staticmethod
        def init(**given):
            begun.append((given["id"], given["resume"]))
            assert given["config"] == json.loads((out / "config.json").read_text())
            return Wandb()

        def finish(self):
            pass

        def log(self, values, step):
            logged.update({(name, step): value for name, value in values.items()})

    for name, module in (("tensorboardX", {"SummaryWriter": Writer}), ("wandb", {"init": Wandb.init})):
        stub = types.ModuleType(name)
        vars(stub).update(module, __spec__=importlib.machinery.ModuleSpec(name, None))
        monkeypatch.setitem(sys.modules, name, stub)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.setitem(recipes.SIZES, "pointmaze-umaze", 500)
    with stopped_at(16, monkeypatch):
        serve("--env", "pointmaze-umaze", "--hidden", 8, "--ensemble", 2, "--utd", 1, "--batch-size", 8,
              "--pretrain-steps", 6, "--log-every", 2, "--steps", 20, "--start-training", 4, "--eval-every", 10,
              "--eval-episodes", 1, "--checkpoint-every", 2, "--tensorboard", "--wandb", "--out", out)  # fmt: skip
    assert serve("--resume", out)[0] == 0
    identifier = json.loads((out / "config.json").read_text())["id"]
    assert begun == [1, (identifier, "allow"), "closed", 17, (identifier, "allow"), "closed"]
    losses = [step for name, step in scalars if name == "train/critic_loss/run0"]
    assert losses == [2, 4, 6, 12, 14, 16, 18, 20, 22, 24, 26]
    assert [step for name, step in scalars if name == "evaluation/score/run0"] == [6, 16, 26]
    # Both are told the same of every step; what Weights & Biases has of a step already, it does not take again.
    numbers = {name for name, step in scalars}
    assert {(name, step) for name, step in logged if name in numbers} >= set(scalars)
    assert all(np.isnan(value) for key, value in logged.items() if key not in set(scalars))
    assert [row[:4] for row in came_to] == [(1, 0, "run0", 16), (1, 0, "run0", 26)]


def test_a_table_grows_a_column_where_a_row_brings_one(tmp_path):
    told = Table(tmp_path / "metrics.csv")
    assert told.rows() == []
    told.append([{"step": 1, "a": 0.1}, {"step": 2, "a": 0.2}])
    told.append([{"step": 3, "b": 0.3}])
    told.append([{"step": 4, "a": 0.4, "b": 0.5}])
    whole = told.path.read_bytes()
    assert whole.decode().split() == ["step,a,b", "1,0.1,", "2,0.2,", "3,,0.3", "4,0.4,0.5"]
    # Cut back and appended to again it is the same file.
    told.keep(row for row in told.rows() if int(row["step"]) < 3)
    told.append([{"step": 3, "b": 0.3}])
    told.append([{"step": 4, "a": 0.4, "b": 0.5}])
    assert told.path.read_bytes() == whole
    told.keep([])
    assert not told.path.exists()
    with pytest.raises(Refused, match=r"metrics.csv: cannot be written .*--resume"):
        Table(tmp_path / "nowhere" / "metrics.csv").append([{"step": 1}])


def test_what_is_no_damage_is_not_taken_for_it(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": np.ones(3)}, {"step": 1})

    def refuse(*_, **__):
        raise MemoryError

    monkeypatch.setattr(checkpoints.manager, "restore", refuse)
    with pytest.raises(Refused, match=r"checkpoint 1 could not be read \(too little memory\)"):
        checkpoints.restore(print)
    assert (tmp_path / "1").is_dir()


def test_two_processes_do_not_train_in_one_folder(whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    crash([*SMALL, "--num-seeds", 2, "--checkpoint-every", 25, "--out", out], 100, monkeypatch)
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*") if path.name != ".lock")
    with RunDirectory(out, "test").claimed(), pytest.raises(Refused, match="another process is training here"):
        serve("--resume", out)
    assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*") if path.name != ".lock") == before
    assert serve("--resume", out)[0] == 0
    assert table(out / "eval.csv") == table(whole / "eval.csv")


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("summary.json", ".lock"))
    (out / ".lock").mkdir()
    with pytest.raises(Refused, match="cannot be written"):
        serve("--resume", out)


def test_a_finished_run_is_left_alone(whole):
    before = (whole / "summary.json").read_bytes()
    status, said = serve("--resume", whole)
    assert status == 0
    assert "finished already" in said
    assert (whole / "summary.json").read_bytes() == before


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--env", "antmaze-large-divers"], ["antmaze-large-divers", "antmaze-large-diverse"]),
        (["--env", "NoSuchTask-v9"], ["NoSuchTask-v9"]),
        (["--preset", "nonsense"], ["nonsense", "redq"]),
        (["--grid.hidden", "1", "2"], ["--grid.hidden", "fixed", "discount"]),
        (["--grid.discout", "0.9"], ["--grid.discout", "--grid.discount"]),
        (["--offline-ratio", "2"], ["--offline-ratio", "[0, 1]"]),
        (["--steps", "0"], ["--steps"]),
        (["--seed", "-1"], ["--seed"]),
        (["--env", "Hopper-v5", "--offline-ratio", "0.5"], ["Hopper-v5", "--dataset"]),
        (["--dataset", "d4rl:/nowhere.hdf5"], ["/nowhere.hdf5"]),
        (["--dataset", "nonsense"], ["nonsense", "recipe:"]),
        (["--env", "Hopper-v5", "--dataset", "d4rl:/nowhere.hdf5"], ["/nowhere.hdf5", "no such file"]),
        (["--env", "Hopper-v5", "--dataset", "no.npz", "--offline-ratio", "0"], ["no.npz", "--offline-ratio 0"]),
        (["--preset", "redq", "--dataset", "d4rl:/nowhere.hdf5"], ["/nowhere.hdf5", "--offline-ratio 0"]),
        (["--resume", "/nowhere"], ["/nowhere", "not a run directory"]),
        (["--resume", "/nowhere", "--steps", "3"], ["--resume", "--steps"]),
    ],
)
def test_a_request_that_cannot_be_served_is_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused) as refusal:
        serve(*arguments)
    text = str(refusal.value)
    assert "\n" not in text
    assert all(word in text for word in words), text
    assert not list(tmp_path.iterdir())


def test_an_occupied_or_unwritable_folder_is_refused(whole, tmp_path):
    with pytest.raises(Refused, match="exists already"):
        serve(*SMALL, "--out", whole)
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="cannot be written"):
        serve(*SMALL, "--out", tmp_path / "file" / "run")


def test_an_algorithm_does_not_run_with_the_common_of_another_checkout(tmp_path):
    for folder in ("algorithms", "common"):
        (tmp_path / folder).mkdir()
    copy = tmp_path / "algorithms" / "rlpd.py"
    shutil.copy(FILE, copy)
    (tmp_path / "common" / "command.py").write_text("")
    with pytest.raises(Refused, match="PYTHONPATH"):
        command.check_siblings(copy)
    # Alone, a copy runs with the installed one.
    (tmp_path / "common" / "command.py").unlink()
    command.check_siblings(copy)
    command.check_siblings(FILE)


def test_the_command_line_refuses_with_status_2_and_without_a_traceback(tmp_path):
    for arguments in (["--env", "nonsense"], ["--no-such-flag"]):
        done = subprocess.run([sys.executable, FILE, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert arguments[-1] in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_documents_every_hyperparameter_and_imports_nothing_that_learns():
    command = [sys.executable, "-X", "importtime", FILE, "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "optax" in imported
    assert not imported & {"matplotlib", "orbax.checkpoint", "minari", "h5py", "common.training", "common.datasets"}
    for words in ("--target-subset", "clipped double Q-learning", "--grid.discount", "--num-seeds", "line 17"):
        assert words in " ".join(done.stdout.split())


def test_of_several_processes_one_has_the_folder(tmp_path, monkeypatch):
    """Both have seen that there is nothing yet."""
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))
    first = RunDirectory.create(tmp_path / "run", {"id": "first"})
    with pytest.raises(Refused, match="exists already"):
        RunDirectory.create(tmp_path / "run", {"id": "second"})
    monkeypatch.undo()
    assert json.loads((first.path / "config.json").read_text())["id"] == "first"
    assert [path.name for path in first.path.iterdir()] == ["config.json"]
