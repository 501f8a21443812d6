"""The benchmark scripts do what they say, at sizes of seconds."""

import ast

import numpy as np
import pytest

from algorithms import bc
from benchmarks import lengths, two_ways, updates
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
