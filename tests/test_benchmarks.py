"""The benchmark scripts do what they say, at sizes of seconds."""

import ast
import csv
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from algorithms import bc
from benchmarks import lengths, official, report, results, scaling, throughput, two_ways
from common import environments, tasks
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
    with pytest.raises(Refused, match="unknown task"):
        tasks.find("benchmarks.two_ways:ThreeWays-v0")


@pytest.fixture
def small(monkeypatch):
    """Throughput's algorithms, in small."""
    monkeypatch.setattr(throughput, "ROWS", 2000)
    monkeypatch.setattr(throughput, "CAPACITY", 20)
    for algorithm, (module, agent_class, values) in throughput.OURS.items():
        utd = {"utd": 3} if algorithm in throughput.ONLINE else {}
        monkeypatch.setitem(throughput.UPDATES, algorithm, 3)
        monkeypatch.setitem(throughput.OURS, algorithm, (module, agent_class, values | {"hidden": (8, 8)} | utd))


@pytest.mark.parametrize("algorithm", ["bc", "iql", "redq_adaptive_bc"])
def test_updates_are_timed_per_run(algorithm, small):
    timed = throughput.Ours(algorithm, 2)
    assert timed.timing() > 0
    assert timed.done == 9
    leaf = timed.learner.agent.policy if algorithm == "bc" else timed.learner.agent.critic
    assert np.asarray(leaf.opt_state.count).tolist() == [9, 9]
    assert timed.memory() > 2000 * 4 * 17  # the data's observations alone


def flops(counts) -> float:
    return sum(product.flops() * count for product, count in counts.items())


def test_matrix_products_are_counted_as_by_hand(small):
    """Of the networks' layers: forward, input gradients, weight gradients; each 2 x 256 x in x out."""
    observation, action, n = throughput.OBSERVATION, throughput.ACTION, 2 * 256

    def layers(*widths):
        return [n * a * b for a, b in itertools.pairwise(widths)]

    actor, value = layers(observation, 8, 8, action), layers(observation, 8, 8, 1)
    critic = layers(observation + action, 8, 8, 1)
    # Cloning: forward, weight gradients, and input gradients of all but the first layer.
    assert flops(throughput.Ours("bc", 1).counts()) == 3 * sum(actor) - actor[0]
    # IQL's value of s is wanted before and after the value's step, that of s' after it; the two target critics once.
    learned = 3 * (sum(value) + 2 * sum(critic) + sum(actor)) - value[0] - 2 * critic[0] - actor[0]
    assert flops(throughput.Ours("iql", 1).counts()) == learned + 2 * sum(value) + 2 * sum(critic)
    # RLPD: three critic steps (target: the policy and one critic; ten critics learn), then one of the policy, through
    # the ten critics to the action; the policy's last layer is twice as wide, for means and deviations.
    actor = layers(observation, 8, 8, 2 * action)
    step = sum(actor) + sum(critic) + 10 * (3 * sum(critic) - critic[0])
    last = 3 * sum(actor) - actor[0] + 10 * 2 * sum(critic)
    np.testing.assert_allclose(flops(throughput.Ours("rlpd", 1).counts()), step + last / 3)


def test_what_is_not_needed_or_known_already_is_not_counted():
    x = np.ones((4, 4), np.float32)

    def function(x, many):
        unused = x @ x @ x
        del unused
        rare = jax.lax.cond(x[0, 0] > 2, lambda: x @ x.T @ x, lambda: x)
        return x @ x + x @ x, jax.lax.scan(lambda carry, y: (carry @ y, None), x, many)[0], rare

    counts = throughput.products(function, x, np.ones((5, 4, 4), np.float32), rarely=0.25)
    assert flops(counts) == 2 * 4**3 * (1 + 5 + 2 * 0.25)


def test_a_table_of_throughput_has_ratios_and_a_ceiling(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setitem(throughput.PEERS, "corl", ("bc",))
    (tmp_path / "algorithms" / "offline").mkdir(parents=True)
    (tmp_path / "algorithms" / "offline" / "any_percent_bc.py").write_text("import torch_is_not_here\n")
    with pytest.raises(Refused, match=r"--corl .*: its bc does not run under"):
        throughput.main(throughput.Throughput(("bc",), rounds=1, corl=tmp_path))
    with pytest.raises(Refused, match="--algorithms b: there are rlpd"):
        throughput.main(throughput.Throughput(("b",)))
    with pytest.raises(Refused, match="own widths"):
        throughput.main(throughput.Throughput(("bc",), hidden=(8,), corl=tmp_path))
    throughput.main(throughput.Throughput(("bc",), runs=(1, 3), rounds=2, hidden=(16, 16), name="test"))
    with (tmp_path / "throughput_test.csv").open() as file:
        one, three = csv.DictReader(file)
    assert (one["whose"], one["runs"], three["runs"], one["times_corl"]) == ("ours", "1", "3", "")
    assert float(one["of_products_alone"]) > 0
    assert float(one["of_dense_rate"]) > 0
    np.testing.assert_allclose(
        float(one["mflop_of_products"]), 2 * 256 * (3 * (17 * 16 + 16 * 16 + 16 * 6) - 17 * 16) / 1e6
    )


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


def test_every_line_of_a_file_is_counted_once():
    source = bc.__loader__.get_source("algorithms.bc")
    counted = lengths.kinds(source)
    assert sum(counted.values()) == sum(bool(line.strip()) for line in source.splitlines())
    docstring = ast.get_docstring(ast.parse(source), clean=False)
    assert counted["equations"] == sum(bool(line.strip()) for line in docstring.splitlines()) + 1  # the quotes
    assert min(counted.values()) > 10


def small_checkout(folder: Path) -> Path:
    """What a checkout of the authors' IQL holds, with a learner that goes forward at the number of its updates."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "mujoco_config.py").write_text("def get_config(): return {'expectile': 0.7}\n")
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
        "        assert (max_steps, expectile) == (4, 0.7)\n"
        "    def update(self, batch):\n"
        "        self.count += 1\n"
        "        assert (batch == 2).all()\n"
        "    def sample_actions(self, observations, temperature):\n"
        "        print('what a peer prints is not an answer')\n"
        "        return np.full((len(observations), self.size), 0.1 * self.count)\n"
    )
    return folder


def test_a_peer_trains_on_our_data_and_leaves_a_run_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.setattr(official, "train_ours", lambda options, name, source, out: None)
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
    finished = (tmp_path / "runs" / "pointmaze-umaze" / "iql-iql" / "summary.json").stat().st_mtime_ns
    official.main(options)
    assert (tmp_path / "runs" / "pointmaze-umaze" / "iql-iql" / "summary.json").stat().st_mtime_ns == finished


def test_jobs_go_to_whichever_machine_is_free():
    assert scaling.makespan([3, 1, 2, 2], 1) == 8
    assert scaling.makespan([3, 1, 2, 2], 2) == 4  # 3 + 1, 2 + 2
    assert scaling.makespan([3, 1, 2, 2], 100) == 3


def test_the_cost_of_a_benchmark_is_what_its_jobs_take(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(scaling, "environment_rate", lambda: 500.0)
    columns = "algorithm,whose,runs,updates_per_second,first_two_calls_seconds\n"
    rows = ["bc,ours,1,1000,5", "bc,ours,5,2000,10", "bc,corl,1,1,1", "rlpd,ours,1,1000,0", "rlpd,ours,5,5000,0"]
    (tmp_path / "throughput_small.csv").write_text(columns + "\n".join(rows))
    (tmp_path / "throughput_small.json").write_text('{"device": {"kind": "cpu", "cores": 2}}')
    with pytest.raises(Refused, match="--throughput gpu: there are small"):
        scaling.main(scaling.Scaling("gpu"))
    with pytest.raises(Refused, match="must be at least 1"):
        scaling.main(scaling.Scaling("small", machines=(0,)))
    (tmp_path / "throughput_old.csv").write_text("algorithm,runs\nbc,1")
    with pytest.raises(Refused, match=r"throughput_old\.csv has other columns: measure anew"):
        scaling.main(scaling.Scaling("old"))
    scaling.main(scaling.Scaling("small", algorithms=2, tasks=3, seeds=10, machines=(1, 1000)))
    with (tmp_path / "scaling_small.csv").open() as file:
        one, many = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    # Ten seeds: cloning a million updates each, five at a time; RLPD five million; evaluations 200,000 steps of each
    # seed at 2 x 500 per second, and RLPD's own 250,000.
    cloning, rlpd = 10 + 10e6 / 2000 + 10 * 200, 10 * 5e6 / 5000 + 10 * 450
    np.testing.assert_allclose(one["together_hours"], 3 * (cloning + rlpd) / 3600)
    assert (one["together_jobs"], one["alone_jobs"], one["together_busy"]) == (6, 60, 1)
    np.testing.assert_allclose(many["together_hours"], rlpd / 3600)
    np.testing.assert_allclose(many["alone_hours"], (5e6 / 1000 + 450) / 3600)
    assert "with 10 seeds" in (tmp_path / "scaling_small.md").read_text()
