"""The benchmark scripts do what they say, at sizes of seconds."""

import ast
import contextlib
import csv
import dataclasses
import itertools
import json
import random
import runpy
import shutil
import signal
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from rich.console import Console

from algorithms import bc
from benchmarks import report, scaling, throughput
from benchmarks.measuring import ceilings, instructions
from benchmarks.measuring import timed as updates
from benchmarks.reporting import results
from benchmarks.reporting.page import costs, rate
from benchmarks.studies import (
    alarm,
    antmaze_data,
    beside,
    collection,
    evaluations,
    fuzz,
    kill,
    lengths,
    official,
    two_ways,
)
from common import datasets, environments, recipes, tasks
from common.errors import Refused


def test_demonstrations_go_two_ways_to_the_goal():
    rows = two_ways.demonstrations(40, seed=0)
    assert rows["terminals"].sum() == 40
    assert rows["rewards"].sum() >= 38  # the noise may push one into the disc
    places = rows["observations"]
    ends = np.flatnonzero(rows["terminals"]) + 1
    sides = [np.sign(walk[np.abs(walk[:, 0]).argmin(), 1]) for walk in np.split(places, ends)[:-1]]
    assert 10 < sides.count(1.0) < 30
    # In front of the disc they point to either side; their mean, straight on.
    fork = (np.abs(places[:, 0] + 0.72) < 0.05) & (np.abs(places[:, 1]) < 0.1)
    upwards = rows["actions"][fork, 1]
    assert (upwards > 0.3).any()
    assert (upwards < -0.3).any()


def test_an_environment_of_ones_own_is_a_task():
    task = tasks.find(two_ways.IDENTIFIER)
    assert (task.family, task.horizon) == ("gym", 150)
    environment = environments.make(task)
    start = environment.reset(0)
    assert np.abs(start - [-1, 0]).max() <= 0.1
    # Straight on, one runs into the disc.
    for _ in range(14):
        step = environment.step(np.array([1.0, 0.0], np.float32))
        if step.terminated:
            break
    assert step.terminated
    assert step.reward == 0
    assert -0.45 < step.next_observation[0] < -0.35
    environment.close()
    with pytest.raises(Refused, match="module that can be imported"):
        tasks.find("no_such_module:Anything-v0")
    with pytest.raises(Refused, match="registers no"):
        tasks.find("benchmarks.studies.two_ways:ThreeWays-v0")


@pytest.fixture
def small(monkeypatch):
    """Throughput's algorithms, in small, compiled for an instant's use."""
    monkeypatch.setattr(ceilings, "DENSE", ceilings.Product((64, 64), (64, 64), ceilings.DENSE.dimensions))
    monkeypatch.setattr(ceilings, "COPIED", 100)
    monkeypatch.setattr(updates, "ROWS", 2000)
    monkeypatch.setattr(updates, "CAPACITY", 20)
    for algorithm, (module, agent_class, values) in updates.OURS.items():
        utd = {"utd": 3} if algorithm in updates.ONLINE else {}
        monkeypatch.setitem(updates.UPDATES, algorithm, 3)
        monkeypatch.setitem(updates.OURS, algorithm, (module, agent_class, values | {"hidden": (8, 8)} | utd))
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.parametrize("algorithm", ["bc", "iql", "redq_adaptive_bc"])
def test_updates_are_timed_per_run(algorithm, small, monkeypatch):
    """By a clock that goes six seconds forward whenever it is looked at: three updates of two runs have taken six."""
    clock = itertools.count(0, 6)
    monkeypatch.setattr(updates, "time", types.SimpleNamespace(perf_counter=lambda: float(next(clock))))
    timed = updates.Ours(algorithm, 2, hidden=(8,))
    assert timed.first_calls == 6 + 12  # compiling, then twice three updates of two runs
    assert timed.timing() == 1
    assert timed.done == 9
    leaf = timed.learner.agent.policy if algorithm == "bc" else timed.learner.agent.critic
    assert np.asarray(leaf.opt_state.count).tolist() == [9, 9]
    assert timed.memory() > 2000 * 4 * 17  # the data's observations alone
    # Of the layers between observations and actions alone, parameters and moments, in and out.
    assert timed.started().bytes > 2 * (3 + 2) * 4 * (17 * 8 + 8 * 6)
    assert timed.started().kernels > 3


def test_ratios_are_our_rate_over_theirs(monkeypatch):
    """A peer that takes 6 seconds per update, ours 3 for one run and 2 with five, and the products 1."""

    def stub(*seconds):
        remaining = iter(seconds)
        return types.SimpleNamespace(
            timing=lambda: next(remaining), first_calls=0.0, memory=lambda: None, counts=Counter, close=lambda: None,
            started=lambda: instructions.Count(7, 1.5e6),
        )  # fmt: skip

    ours = {1: stub(3.0, 3.0, 30.0), 5: stub(2.0, 2.0, 20.0)}
    monkeypatch.setattr(throughput, "Peer", lambda *_: stub(6.0, 6.0, 6.0))
    monkeypatch.setattr(throughput, "Ours", lambda algorithm, runs, *_: ours[runs])
    products = types.SimpleNamespace(flops=5e6, alone=lambda: 1.0, at_dense_rate=lambda: 0.6)
    monkeypatch.setattr(throughput, "Products", lambda counts: products)
    monkeypatch.setattr(throughput, "Copy", lambda: types.SimpleNamespace(seconds_per_byte=lambda: 1e-6))
    asked = throughput.Throughput(("bc",), runs=(1, 5), rounds=3, corl=Path("corl"))
    theirs, one, five = throughput.measure(asked, "bc")
    assert [(row["whose"], row["runs"]) for row in (theirs, one, five)] == [("corl", 1), ("ours", 1), ("ours", 5)]
    assert [row["times_corl"] for row in (theirs, one, five)] == [1, 2, 3]
    assert [row["updates_per_second"] for row in (theirs, one, five)] == [1 / 6, 1 / 3, 1 / 2]
    assert [row["ms_per_update_max"] for row in (theirs, one, five)] == [6e3, 3e4, 2e4]
    assert [row["of_products_alone"] for row in (theirs, one, five)] == [1 / 6, 1 / 3, 1 / 2]
    np.testing.assert_allclose([row["of_dense_rate"] for row in (theirs, one, five)], [0.1, 0.2, 0.3])
    # 1.5 MB take 1.5 seconds to copy; an update of five runs takes five times 2.
    np.testing.assert_allclose([row["of_copy_rate"] for row in (one, five)], [0.5, 0.15])
    assert [(row["kernels"], row["megabytes_moved"]) for row in (theirs, five)] == [(None, None), (7, 1.5)]


def test_a_peer_that_ends_while_it_is_timed_is_told(tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho 1.5\n")
    (tmp_path / "python").chmod(0o755)
    peer = updates.Peer("jax_corl", tmp_path, "iql", str(tmp_path / "python"))
    assert peer.first_calls == 1.5
    peer.process.wait()
    with pytest.raises(Refused, match=r"--jax-corl .*: its iql does not run under"):
        peer.timing()


def flops(counts) -> float:
    return sum(product.flops() * count for product, count in counts.items())


def test_matrix_products_are_counted_as_by_hand(small):
    """Of the networks' layers: forward, input gradients, weight gradients; each 2 x 256 x in x out."""
    observation, action, n = updates.OBSERVATION, updates.ACTION, 2 * 256

    def layers(*widths):
        return [n * a * b for a, b in itertools.pairwise(widths)]

    actor, value = layers(observation, 8, 8, action), layers(observation, 8, 8, 1)
    critic = layers(observation + action, 8, 8, 1)
    # Cloning: forward, weight gradients, and input gradients of all but the first layer.
    assert flops(updates.Prepared("bc", 1).counts()) == 3 * sum(actor) - actor[0]
    # IQL's value of s is wanted before and after the value's step, that of s' after it; the two target critics once.
    learned = 3 * (sum(value) + 2 * sum(critic) + sum(actor)) - value[0] - 2 * critic[0] - actor[0]
    assert flops(updates.Prepared("iql", 1).counts()) == learned + 2 * sum(value) + 2 * sum(critic)
    # RLPD: three critic steps (target: the policy and one critic; ten critics learn), then one of the policy, through
    # the ten critics to the action; the policy's last layer is twice as wide, for means and deviations.
    actor = layers(observation, 8, 8, 2 * action)
    step = sum(actor) + sum(critic) + 10 * (3 * sum(critic) - critic[0])
    last = 3 * sum(actor) - actor[0] + 10 * 2 * sum(critic)
    np.testing.assert_allclose(flops(updates.Prepared("rlpd", 1).counts()), step + last / 3)


def test_what_is_not_needed_or_known_already_is_not_counted():
    x = np.ones((4, 4), np.float32)

    def function(x, many):
        unused = x @ x @ x
        del unused
        rare = jax.lax.cond(x[0, 0] > 2, lambda: x @ x.T @ x, lambda: x)
        return x @ x + x @ x, jax.lax.scan(lambda carry, y: (carry @ y, None), x, many)[0], rare

    counts = ceilings.products(function, x, np.ones((5, 4, 4), np.float32), rarely=0.25)
    assert flops(counts) == 2 * 4**3 * (1 + 5 + 2 * 0.25)


def test_a_table_of_throughput_has_ratios_and_a_ceiling(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setitem(throughput.PEERS, "corl", ("bc",))
    (tmp_path / "algorithms" / "offline").mkdir(parents=True)
    (tmp_path / "algorithms" / "offline" / "any_percent_bc.py").write_text("import torch_is_not_here\n")
    with pytest.raises(Refused, match=r"--corl .*: its bc does not run under"):
        throughput.main(throughput.Throughput(("bc",), rounds=1, corl=tmp_path))
    with pytest.raises(Refused, match="--peer-python no-such-python: cannot be started"):
        throughput.main(throughput.Throughput(("bc",), rounds=1, corl=tmp_path, peer_python="no-such-python"))
    with pytest.raises(Refused, match="--algorithms b: there are rlpd"):
        throughput.main(throughput.Throughput(("b",)))
    with pytest.raises(Refused, match="own widths"):
        throughput.main(throughput.Throughput(("bc",), hidden=(8,), corl=tmp_path))
    throughput.main(throughput.Throughput(("bc",), runs=(1, 3), rounds=2, hidden=(16,), name="test"))
    picture = tmp_path / "throughput_test.png"
    assert picture.stat().st_size > 5000
    with replaced(picture):
        throughput.main(throughput.Throughput(draw="test"))
    with pytest.raises(Refused, match="throughput gpu: there are test"):
        throughput.main(throughput.Throughput(draw="gpu"))
    with (tmp_path / "throughput_test.csv").open() as file:
        one, three = csv.DictReader(file)
    assert (one["whose"], one["runs"], three["runs"], one["times_corl"]) == ("ours", "1", "3", "")
    assert float(one["of_products_alone"]) > 0
    assert float(one["of_dense_rate"]) > 0
    assert float(three["of_copy_rate"]) > 0
    np.testing.assert_allclose(float(one["mflop_of_products"]), 2 * 256 * (3 * (17 * 16 + 16 * 6) - 17 * 16) / 1e6)


def test_a_result_says_how_it_was_made_without_the_machines_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(
        "sys.argv",
        ["x", "runs/sweeps/smoke", "--name", "two words", "--rlpd", "../rlpd", "--corl", str(tmp_path / "corl")],
    )
    stem = results.publish("test", [{"a": 1, "b": "x,y"}, {"a": 2, "b": ""}], "benchmarks.report", more=3)
    about = json.loads(stem.with_suffix(".json").read_text())
    expected = "python -m benchmarks.report runs/sweeps/smoke --name 'two words' --rlpd .../rlpd --corl .../corl"
    assert (about["command"], about["more"]) == (expected, 3)
    assert {"commit", "versions", "device"} < about.keys()
    assert stem.with_suffix(".csv").read_text().splitlines() == ["a,b", '1,"x,y"', "2,"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("studies.loading --task hoper-medium", "unknown task 'hoper-medium': did you mean hopper-medium"),
        ("studies.loading --frames 499", "--repeats must be at least 1, --frames at least 500"),
        ("studies.locomotion_data --tasks antmaze-umaze", "--tasks antmaze-umaze: there are hopper-random, "),
        ("studies.antmaze_data --tasks hopper-medium", "--tasks hopper-medium: there are antmaze-umaze, "),
        ("studies.antmaze_data --episodes -1", "--episodes must be 0 or more, not -1"),
        ("makers.locomotion_policies --minutes 0", "--minutes must be more than 0"),
        ("makers.ant_controller --minutes 0", "--minutes must be at least 1, for a curve"),
        ("studies.fuzz --trials 0", "--trials must be at least 1, not 0"),
        ("studies.kill --trials 0", "--trials must be at least 1, not 0"),
        ("studies.kernels --algorithms sac", "--algorithms sac: there are rlpd, td3_bc, "),
        ("studies.two_ways --episodes 0", "--episodes must be at least 1"),
        ("studies.two_ways --out two-ways", "--out two-ways: it must be the name of an .npz file"),
        ("studies.two_ways --out FILE/two-ways.npz", "FILE cannot be made (File exists)"),
        ("throughput --rounds 0", "--algorithms, --rounds and --runs: at least one of each"),
        ("throughput --algorithms bc decision_transformer --hidden 8", "--hidden: decision_transformer has no such"),
        ("throughput --name a/b", "'throughput_a/b' cannot name a result"),
    ],
)
def test_a_mistyped_command_ends_with_one_line(tmp_path, monkeypatch, capsys, command, told):
    (tmp_path / "FILE").write_text("")
    monkeypatch.chdir(tmp_path)
    program, *arguments = command.split()
    monkeypatch.setattr("sys.argv", [program, *arguments])
    # What would be too late in this process, or stay.
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(gymnasium, "register", lambda *_, **__: None)
    monkeypatch.delitem(sys.modules, f"benchmarks.{program}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{program}", run_name="__main__", alter_sys=True)
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert said.startswith(f"{program.rpartition('.')[2]}: ")
    assert told in said


def test_lengths_take_no_flag(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["lengths", "--task", "rlpd"])
    monkeypatch.delitem(sys.modules, "benchmarks.studies.lengths")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks.studies.lengths", run_name="__main__", alter_sys=True)
    assert (ended.value.code, list(tmp_path.iterdir())) == (2, [])


def test_a_suite_that_fails_under_the_alarm_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(alarm.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(Refused, match=r"the smoke suite with the code in .* has ended with status 1, see above"):
        alarm.main(alarm.Alarm(tmp_path))


def test_files_are_whole_or_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    written = {"two-ways.npz": lambda: two_ways.main(two_ways.Data(tmp_path / "two-ways.npz", 2))}
    written["antmaze_coverage.png"] = lambda: antmaze_data.draw({"antmaze-umaze": np.zeros((3, 2))})
    for name, write in written.items():
        write()
        with replaced(tmp_path / name):
            write()
    assert {path.name for path in tmp_path.iterdir()} == set(written)
    with np.load(tmp_path / "two-ways.npz") as file:
        assert file["terminals"].sum() == 2


def test_random_actions_turn_one_of_the_two_ants_over():
    weak, strong = antmaze_data.ants(1, Console(quiet=True))
    assert [row["ant"] for row in (weak, strong)] == ["D4RL's", "Gymnasium's"]
    assert (weak["episodes_ending_overturned"], weak["share_of_steps_overturned"]) == (0, 0.0)
    assert strong["episodes_ending_overturned"] == 1
    assert 0.3 < strong["share_of_steps_overturned"] < 1


def test_every_line_of_a_file_is_counted_once():
    source = bc.__loader__.get_source("algorithms.bc")
    counted = lengths.kinds(source)
    assert sum(counted.values()) == sum(bool(line.strip()) for line in source.splitlines())
    docstring = ast.get_docstring(ast.parse(source), clean=False)
    assert counted["equations"] == sum(bool(line.strip()) for line in docstring.splitlines()) + 1  # the quotes
    assert min(counted.values()) > 10


def test_a_files_own_lines_are_those_of_no_other():
    source = (
        '"""What it is.\n\nMore.\n"""\n'
        "import os\nfrom os import (\n    path,\n)\n\n"
        'class Config:\n    rate: float = %s\n    """In one line."""\n\n'
        '@cache\ndef loss(\n    batch,\n):\n    """In one line."""\n    q = batch.q\n    return %s\n'
    )
    one, two = source % ("0.1", "q"), source % ("0.1", "q * q")
    assert lengths.telling(one) == ['"""What it is.', "More.", '"""', "rate: float = 0.1", "q = batch.q", "return q"]
    # What one file says twice is still its own; indentation does not make it another's.
    three = "if True:\n    q = batch.q\n    new = 1\n    new = 1\n"
    assert lengths.own({"one": one, "two": two, "three": three}) == {"one": 1 / 6, "two": 1 / 6, "three": 3 / 4}


def small_checkout(folder: Path) -> Path:
    """What a checkout of the authors' IQL holds, with a learner that goes forward at the number of its updates."""
    (folder / "configs").mkdir(parents=True)
    for name, expectile in (("mujoco", 0.7), ("antmaze", 0.9)):
        text = f"def get_config(): return {{'expectile': {expectile}}}\n"
        (folder / "configs" / f"{name}_config.py").write_text(text)
    (folder / "dataset_utils.py").write_text(
        "class Dataset:\n"
        "    def __init__(self, observations, actions, rewards, masks, ends, next_observations, size):\n"
        "        self.observations, self.actions, self.rewards, self.size = observations, actions, rewards, size\n"
        "        assert abs(actions).max() < 1 and set(masks) <= {0, 1} and ends.sum() > masks.size - masks.sum() - 1\n"
        "    def sample(self, count): return self.rewards[:count]\n"
    )
    (folder / "train_offline.py").write_text(
        "import functools, types\n"
        "import jax, numpy as np\n"
        "@functools.partial(jax.jit, static_argnames=('size', 'gone'))\n"
        "def zeros(size): return jax.numpy.zeros(size)\n"
        "def normalize(rows): rows.rewards = rows.rewards * 0 + 2\n"
        "class Learner:\n"
        "    def __init__(self, seed, observations, actions, max_steps, expectile):\n"
        "        self.count, self.size, self.actor = 0, actions.shape[1], types.SimpleNamespace(params=zeros(3))\n"
        "        self.expectile = expectile\n"
        "        assert max_steps == 4\n"
        "    def update(self, batch):\n"
        "        self.count += 1\n"
        "        assert set(batch) <= ({2} if self.expectile == 0.7 else {-1, 0})\n"
        "    def sample_actions(self, observations, temperature):\n"
        "        print('what a peer prints is not an answer')\n"
        "        return np.full((len(observations), self.size), (self.expectile - 0.6) * self.count)\n"
    )
    return folder


@pytest.mark.parametrize(("task", "actions"), [("pointmaze-umaze", [0.2, 0.4]), ("antmaze-umaze", [0.6, 1.2])])
def test_a_peer_has_its_settings_for_the_task(tmp_path, monkeypatch, task, actions):
    """Of AntMaze other ones than of locomotion, and rewards of -1 for every step."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    data = datasets.load(tasks.find(task), f"minari:{recipes.make(task, 300)}")
    file = tmp_path / "data.npz"
    np.savez(
        file, observations=data.observation, actions=data.action, rewards=data.reward,
        next_observations=data.next_observation, terminals=data.terminated.astype(np.float32),
        timeouts=data.truncated.astype(np.float32),
    )  # fmt: skip
    settings = {"data": str(file), "seed": 0, "updates": 4, "family": tasks.find(task).family}
    with official.Peer(sys.executable, "iql", small_checkout(tmp_path / "iql"), settings) as peer:
        for expected in actions:
            peer.train(2)
            np.testing.assert_allclose(peer.act(data.observation[:3], data.action.shape[1]), expected, rtol=1e-5)


def test_a_peer_trains_on_our_data_and_leaves_a_run_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.setattr(official, "train_ours", lambda side: None)
    played = []
    act = official.Peer.act
    monkeypatch.setattr(official.Peer, "act", lambda self, *x: (played.append(act(self, *x)), played[-1])[1])
    options = official.Official(
        task="pointmaze-umaze", size=500, updates=4, eval_every=2, eval_episodes=2, num_seeds=2,
        iql=small_checkout(tmp_path / "iql"), runs=tmp_path / "runs",
    )  # fmt: skip
    official.main(options)
    (run,) = report.find([tmp_path / "runs"])
    assert (run.variant, run.headline, run.finals().shape) == ("IQL, its authors", "score", (2,))
    steps, scores, switch = run.curve()
    assert steps.tolist() == [2, 4]
    assert (scores.shape, switch) == ((2, 2), 0)
    assert sorted({round(float(x), 1) for actions in played for x in actions.flat}) == [0.2, 0.4]
    # Two seeds of four updates each, one after the other.
    head, line = costs([run])
    assert line[head.index("steps/s of all runs")] == rate(2 * 4 / run.summary["learning_seconds"])
    assert run.summary["whole_seconds"] > run.summary["learning_seconds"]
    assert run.config["command"].endswith(
        "--size 500 --updates 4 --eval-every 2 --eval-episodes 2 --num-seeds 2 --iql ..."
    )

    # A later call adds to what reports know, trains nothing anew, and keeps no run that it did not ask for.
    suite = tmp_path / "runs" / "suite.json"
    mine = json.loads(suite.read_text())["jobs"]
    other = {"task": "hopper-medium", "variant": "of an earlier call", "folder": "hopper-medium/iql-iql"}
    suite.write_text(json.dumps({"jobs": [other]}))
    finished = (tmp_path / "runs" / "pointmaze-umaze" / "iql-iql" / "summary.json").stat().st_mtime_ns
    official.main(options)
    assert (tmp_path / "runs" / "pointmaze-umaze" / "iql-iql" / "summary.json").stat().st_mtime_ns == finished
    assert json.loads(suite.read_text())["jobs"] == [other, *mine]
    for changed in ({"updates": 6}, {"num_seeds": 3}, {"eval_episodes": 1}, {"size": 600}):
        with pytest.raises(Refused, match="iql-iql holds another run than is asked for now: move it away"):
            official.main(dataclasses.replace(options, **changed))


def test_our_side_is_begun_or_resumed(tmp_path, monkeypatch):
    started, status = [], 0

    def train(command, **_):
        started.append(command[2:])
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(official.subprocess, "run", train)
    options = official.Official(task="pointmaze-umaze", size=500, iql=tmp_path, runs=tmp_path / "runs")
    side = official.Side("iql", True, options)
    official.train_ours(side)
    asked = started.pop()
    assert asked == [*side.arguments(), "--out", str(side.out)]
    assert ["--dataset", f"minari:{recipes.dataset_id('pointmaze-umaze', 500)}"] == asked[2:4]
    # The folder is left out of what is compared, wherever it stands.
    side.out.mkdir(parents=True)
    (side.out / "config.json").write_text(json.dumps({"arguments": ["--out", "elsewhere", *side.arguments()]}))
    assert not side.finished()
    official.train_ours(side)
    assert started.pop() == ["--resume", str(side.out)]
    (side.out / "summary.json").write_text("{}")
    assert side.finished()
    with pytest.raises(Refused, match="holds another run"):
        official.Side("iql", True, dataclasses.replace(options, updates=1000)).finished()
    status = 1
    with pytest.raises(Refused, match="training has ended with status 1"):
        official.train_ours(side)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"updates": 5000, "eval_every": 3000}, "--updates 5000 must be a multiple of --eval-every 3000"),
        ({"updates": 1000}, "--updates 1000 must be a multiple of --eval-every 5000"),
        ({"eval_every": 0}, "--eval-every must be at least 1, not 0"),
        ({"num_seeds": 0}, "--num-seeds must be at least 1"),
        ({"iql": None}, "no peer to train: give a checkout with --corl or --iql"),
        ({"corl": Path("nowhere")}, "--corl nowhere: there is no such folder"),
        ({"peer_python": "no-such-python"}, "--peer-python no-such-python"),
        ({"task": "Hopper-v5"}, "--task Hopper-v5: the recipes are"),
    ],
)
def test_what_a_peer_cannot_be_asked_is_refused(tmp_path, changed, told):
    with pytest.raises(Refused, match=told):
        official.main(dataclasses.replace(official.Official(iql=tmp_path, runs=tmp_path / "runs"), **changed))
    assert not (tmp_path / "runs").exists()


def test_a_peer_that_does_not_run_is_told_in_one_line(tmp_path):
    np.savez(tmp_path / "data.npz", observations=np.zeros((2, 3)))
    settings = {"data": str(tmp_path / "data.npz"), "seed": 0, "updates": 1}
    with (
        official.Peer(sys.executable, "no such peer", tmp_path, settings) as peer,
        pytest.raises(Refused, match="the peer's process has ended with status 1"),
    ):
        peer.train(1)


@contextlib.contextmanager
def replaced(path: Path):
    """What is done inside puts another file in the place of the one there was, which is whole at every moment."""
    with path.open():
        before = path.stat().st_ino
        yield
        assert path.stat().st_ino != before


def test_jobs_go_to_whichever_machine_is_free():
    assert scaling.makespan([3, 1, 2, 2], 1) == 8
    assert scaling.makespan([3, 1, 2, 2], 2) == 4  # 3 + 1, 2 + 2
    assert scaling.makespan([3, 1, 2, 2], 100) == 3


def test_no_more_machines_are_of_use_than_end_with_the_longest_job():
    assert scaling.enough([3, 1, 2, 2]) == 3  # 3, 2 and 2 + 1
    assert scaling.enough([3, 2, 2, 2]) == 4  # 9 / 3 machines would, but no two of the jobs fit below the longest
    assert scaling.enough([4, 3, 3, 1, 1]) == 3
    assert scaling.enough([2, 2]) == 2
    assert scaling.enough([5]) == 1
    assert scaling.enough([0.3, 0.1, 0.2]) == 2  # 0.1 + 0.2 > 0.3 only by rounding


def test_the_cost_of_a_benchmark_is_what_its_jobs_take(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(scaling, "environment_rate", lambda: 500.0)
    columns = "algorithm,whose,runs,updates_per_second,first_two_calls_seconds\n"
    rows = ["bc,ours,1,1000,5", "bc,ours,5,2000,10", "bc,corl,1,1,1", "rlpd,ours,1,1000,0", "rlpd,ours,5,5000,0"]
    rows += ["rlpd,ours,8,9000,", "edac,corl,1,1,1"]  # neither says what a job of ours takes
    (tmp_path / "throughput_small.csv").write_text(columns + "\n".join(rows))
    (tmp_path / "throughput_small.json").write_text('{"device": {"kind": "cpu", "cores": 2}}')
    with pytest.raises(Refused, match="throughput gpu: there are small"):
        scaling.main(scaling.Scaling("gpu"))
    for machines in ((0,), ()):
        with pytest.raises(Refused, match="must be at least 1"):
            scaling.main(scaling.Scaling("small", machines=machines))
    for steps in (0.0, float("nan")):
        with pytest.raises(Refused, match="--steps-per-second must be positive"):
            scaling.main(scaling.Scaling("small", steps_per_second=steps))
    (tmp_path / "throughput_old.csv").write_text("algorithm,runs\nbc,1")
    with pytest.raises(Refused, match=r"throughput_old\.csv has other columns: measure anew"):
        scaling.main(scaling.Scaling("old"))
    scaling.main(scaling.Scaling("small", algorithms=2, tasks=3, seeds=10, machines=(1, 1000)))
    with (tmp_path / "scaling_small.csv").open() as file:
        one, many = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    # Ten seeds: cloning half a million updates each, five at a time; RLPD five million; evaluations 200,000 steps of
    # each seed at 2 x 500 per second, and RLPD's own 250,000 at 500.
    cloning, rlpd = 10 + 5e6 / 2000 + 10 * 200, 10 * 5e6 / 5000 + 10 * (200 + 500)
    np.testing.assert_allclose(one["together_hours"], 3 * (cloning + rlpd) / 3600)
    assert (one["together_jobs"], one["alone_jobs"], one["together_busy"]) == (6, 60, 1)
    np.testing.assert_allclose(many["together_hours"], rlpd / 3600)
    np.testing.assert_allclose(many["alone_hours"], (5e6 / 1000 + 700) / 3600)
    # Three of RLPD's jobs, and cloning's all on one; with one seed in each, thirty of RLPD's, and cloning's by eights.
    assert 3 * cloning < rlpd
    assert (5e6 / 1000 + 700) // (5 + 5e5 / 1000 + 200) == 8
    said = " ".join((tmp_path / "scaling_small.md").read_text().split())
    assert "with 10 seeds" in said
    assert "(cpu, 2 cores). A core takes 500 environment steps per second (timed here)." in said
    assert "with all seeds in one job, 4 machines end with it, after 4.7 hours, and more are of no use" in said
    assert "hours, 34 do, after 1.6 hours" in said
    about = json.loads((tmp_path / "scaling_small.json").read_text())
    assert about["machines_of_use"] == {"together": 4, "alone": 34}
    missing = scaling.unmeasured(["bc", "rlpd"])
    assert about["not_measured"] == missing
    assert {"edac", "iql"} < set(missing)
    assert not {"bc", "rlpd", "__init__"} & set(missing)
    named = f"on this machine: {', '.join(missing)}. All other algorithms are taken to cost what the 2 measured"
    assert named in said
    with replaced(tmp_path / "scaling_small.md"):
        scaling.main(scaling.Scaling("small", steps_per_second=1000.0))
    assert "A core takes 1,000 environment steps per second (given)." in (tmp_path / "scaling_small.md").read_text()


def test_what_was_measured_on_a_gpu_is_reckoned_with(tmp_path, monkeypatch, capsys):
    for ending in (".csv", ".json"):
        shutil.copy(results.file("throughput_h100", ending), tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    scaling.main(scaling.Scaling("h100", machines=(1,), steps_per_second=27_000.0))
    about = json.loads((tmp_path / "scaling_h100.json").read_text())
    assert (about["throughput"]["device"]["backend"], "edac" in about["not_measured"]) == ("gpu", True)
    page = (tmp_path / "scaling_h100.md").read_text()
    assert "(NVIDIA H100 80GB, 16 cores)" in page
    # Five million updates of each of ten seeds, at 9,771 per second of all; their environments.
    assert "| rlpd | 1.5 hours | 2% |" in page
    rows, _ = scaling.read("h100")
    cost = scaling.cost(rows, "rlpd", 10, 27_000.0, 16)
    np.testing.assert_allclose(cost.learning, 10 * 5e6 / 9771.12, rtol=1e-5)
    np.testing.assert_allclose(cost.environments, 10 * (250_000 + 200_000 / 16) / 27_000)
    # With 4 and 32 seeds RLPD's first calls were not timed: what one and ten do is known.
    assert scaling.cost(rows, "rlpd", 4, 27_000.0, 16).start == 13.29
    assert scaling.cost(rows, "rlpd", 32, 27_000.0, 16).start == 16.94


def test_evaluations_are_timed_with_and_without_processes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    with pytest.raises(Refused, match="--workers must be at least 1"):
        evaluations.main(evaluations.Evaluations(workers=(0,)))
    evaluations.main(evaluations.Evaluations("pointmaze-umaze", 2, 2, workers=(2,), rounds=1, name="small"))
    with (tmp_path / "evaluations_small.csv").open() as file:
        alone, two = csv.DictReader(file)
    assert float(alone["times_alone"]) == 1
    assert (alone["processes"], two["processes"]) == ("0", "2")
    np.testing.assert_allclose(
        float(two["times_alone"]), float(two["steps_per_second"]) / float(alone["steps_per_second"])
    )
    one = evaluations.Outcome(*(np.zeros(2) for _ in range(3)))
    with pytest.raises(AssertionError):
        evaluations.check([one], [dataclasses.replace(one, returns=np.ones(2))])


def test_collection_is_timed_with_and_without_processes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    with pytest.raises(Refused, match="--workers must be at least 1"):
        collection.main(collection.Collection(workers=(0,)))
    collection.main(collection.Collection(("pointmaze-umaze",), 2, 5, workers=(2,), rounds=1, name="small"))
    alone, two = results.rows_of("collection", "small")
    assert float(alone["times_alone"]) == 1
    assert (alone["processes"], two["processes"]) == ("0", "2")
    np.testing.assert_allclose(
        float(two["times_alone"]), float(two["steps_per_second"]) / float(alone["steps_per_second"])
    )
    # Not what was taken elsewhere.
    step = collection.Collector.step
    other = lambda self, action: step(self, action if not self.environments[1:] else -action)  # noqa: E731
    monkeypatch.setattr(collection.Collector, "step", other)
    with pytest.raises(AssertionError):
        collection.main(collection.Collection(("pointmaze-umaze",), 2, 5, workers=(2,), rounds=1, name="small"))


def test_what_evaluations_beside_learning_save_is_timed(tmp_path, monkeypatch):
    """By a clock that runs while commands do: they learn for 6 s and evaluate for 4 s, or for 1 s beside learning."""
    clock = [0.0]

    def ran(command, capture_output, text):
        out, asked = Path(command[-1]), command[2:-2]
        assert command[:2] == [sys.executable, beside.ALGORITHMS / "own.py"]
        if "--broken" in asked:
            return types.SimpleNamespace(returncode=2, stdout="progress", stderr="own: no such thing\n")
        clock[0] += {"--eval-async": 7.0, "--eval-every": 6.0}.get(next(iter(asked[1:]), None), 10.0)
        out.mkdir(parents=True)
        for name in ("metrics.csv", "eval.csv"):
            (out / name).write_text("other" if {"--wrong", "--eval-async"} <= {*asked} else "same")
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(beside, "subprocess", types.SimpleNamespace(run=ran))
    monkeypatch.setattr(beside, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    beside.main(beside.Beside(("own --flag",), rounds=3, name="small"))
    (row,) = results.rows_of("beside", "small")
    assert row == {
        "command": "own --flag", "seconds_waiting": "10.0", "seconds_beside": "7.0", "seconds_last": "6.0",
        "ratio": str(10 / 7), "saved": "0.75",
    }  # fmt: skip
    for command, said in {"own --broken": "failed: own: no such thing", "own --wrong": "changes metrics.csv"}.items():
        with pytest.raises(Refused, match=rf"{command}: .*{said}"):
            beside.main(beside.Beside((command,), rounds=1))
    with pytest.raises(Refused, match="--rounds"):
        beside.main(beside.Beside(rounds=0))


RUN = """
import pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
before = pathlib.Path(__file__).with_name("begun")
before.open("a").write("x")
if "--broken" in sys.argv:
    sys.exit(3)
out.mkdir()
(out / "config.json").write_text("{}")
if len(before.read_text()) == 2:
    time.sleep(600)
(out / "summary.json").write_text("{}")
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that ends at once where the first one to be begun, and takes long where the second."""
    (tmp_path / "run.py").write_text(RUN)
    monkeypatch.setattr(kill, "RLPD", tmp_path / "run.py")
    return tmp_path / "begun"


class Moments(random.Random):
    """First a moment that is never reached, then at once."""

    def __init__(self, *moments: float):
        super().__init__()
        self.moments = list(moments)

    def random(self) -> float:
        return self.moments.pop(0)


def test_a_run_that_has_ended_before_its_kill_is_begun_anew(tmp_path, run):
    share = kill.killed([], tmp_path / "out", 100.0, Moments(0.9, 0.001))
    assert share == 0.001
    assert run.read_text() == "xx"
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_run_that_fails_is_not_waited_for(tmp_path, run, capfd):
    with pytest.raises(SystemExit, match="ended with status 3"):
        kill.killed(["--broken"], tmp_path / "out", 100.0, Moments(0.9))
    with pytest.raises(Refused, match=r"--arguments: run.py --broken ends with status 3"):
        kill.main(kill.Kill(arguments="--broken"))
    with pytest.raises(Refused, match="--trials must be at least 1"):
        kill.main(kill.Kill(trials=0))


def test_a_sweep_that_has_finished_is_not_killed(tmp_path, monkeypatch, capsys):
    """Two sweeps of one job: the first has written it when the kill comes, the second has not."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    started = []

    class Process:
        def __init__(self, command, cwd, env, stdout):
            self.out = Path(command[-1]) / "suite" / "job"
            self.killed = False
            started.append(Path(command[-1]).name)

        def wait(self, seconds=None):
            if self.killed:
                return -signal.SIGKILL
            if started[-1] != "killed1" or seconds is None:
                self.out.mkdir(parents=True, exist_ok=True)
                (self.out / "summary.json").write_text("{}")
            if seconds is not None:
                raise subprocess.TimeoutExpired("sweep", seconds)
            return 0

        def kill(self):
            self.killed = True

    fake = types.SimpleNamespace(Popen=Process, TimeoutExpired=subprocess.TimeoutExpired, DEVNULL=None)
    monkeypatch.setattr(kill, "subprocess", fake)
    assert kill.main(kill.Kill("sweep", trials=1)) == 0
    assert started == ["first", "sound", "killed0", "killed1", "killed1"]
    with (tmp_path / "kill_sweep.csv").open() as file:
        assert [(row["sweep"], row["jobs_finished"]) for row in csv.DictReader(file)] == [("1", "0")]


@pytest.mark.parametrize(("answer", "status"), [(("read", "f"), 0), (("refused", "no"), 1)])
def test_a_reader_that_refuses_sound_files_is_told(tmp_path, monkeypatch, capsys, answer, status):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    monkeypatch.setenv("HF_ENDPOINT", "")
    monkeypatch.setattr(fuzz, "KINDS", {"npz": fuzz.KINDS["npz"]})
    reader = types.SimpleNamespace(ask=lambda source, folder: answer, process=types.SimpleNamespace(kill=lambda: None))
    monkeypatch.setattr(fuzz, "Reader", lambda: reader)
    assert fuzz.main(fuzz.Fuzz(trials=3)) == status
    assert ("npz, undamaged: refused no" in capsys.readouterr().out) == bool(status)
    with pytest.raises(Refused, match="--trials must be at least 1"):
        fuzz.main(fuzz.Fuzz(trials=0))


def test_an_odd_file_that_gives_other_data_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    monkeypatch.setenv("HF_ENDPOINT", "")
    monkeypatch.setattr(fuzz, "KINDS", {"d4rl": fuzz.KINDS["d4rl"]})
    answers = iter(["sound", "sound", "other", "other", "sound", "other"])  # undamaged, two damaged, ...
    reader = types.SimpleNamespace(
        ask=lambda source, folder: ("read", next(answers)), process=types.SimpleNamespace(kill=lambda: None)
    )
    monkeypatch.setattr(fuzz, "Reader", lambda: reader)
    assert fuzz.main(fuzz.Fuzz(trials=2)) == 1
    said = capsys.readouterr().out
    assert said.count("d4rl, odd file") == 1
    with (tmp_path / "fuzz.csv").open() as file:
        assert {row["changed"]: row["other numbers"] for row in csv.DictReader(file)} == {
            "arrays": "0", "bytes": "1", "odd": "1",
        }  # fmt: skip
