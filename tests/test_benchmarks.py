"""The benchmark scripts do what they say, at sizes of seconds."""

import ast
from pathlib import Path

import numpy as np
import pytest

from algorithms import bc
from benchmarks import lengths, official, report, two_ways, updates
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


@pytest.mark.parametrize("algorithm", ["bc", "iql", "redq_adaptive_bc"])
def test_updates_are_timed_per_run(algorithm, monkeypatch):
    monkeypatch.setattr(updates, "ROWS", 2000)
    monkeypatch.setattr(updates, "CAPACITY", 20)
    monkeypatch.setitem(updates.UPDATES, algorithm, 3)
    module, agent_class, _ = updates.OURS[algorithm]
    small = {"hidden": (8, 8)} | ({"utd": 3} if algorithm == "redq_adaptive_bc" else {})
    monkeypatch.setitem(updates.OURS, algorithm, (module, agent_class, small))
    timed = updates.Ours(algorithm, 2)
    assert timed.timing() > 0
    assert timed.done == 9
    leaf = timed.learner.agent.policy if algorithm == "bc" else timed.learner.agent.critic
    assert np.asarray(leaf.opt_state.count).tolist() == [9, 9]


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
