"""Replay, collection and evaluation on an environment small enough to work out by hand."""

import contextlib
import dataclasses
import functools
import subprocess
import sys
import time
import types
from pathlib import Path

import chex
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from stuck import Failing, Summing

from common import environments, evaluation, machine, processes, tasks
from common.collection import Collector
from common.environments import Step
from common.errors import EnvironmentFailed
from common.evaluation import Evaluator, episode_seed, useful_workers
from common.networks import DeterministicActor, Network
from common.programs import Programs
from common.replay import Batch, Replay, sample, sample_union

pytestmark = pytest.mark.optimised

TASK = dataclasses.replace(tasks.find("pointmaze-umaze"), reward_scale=2.0, reward_shift=-1.0)


class Counter:
    """Counts up from its seed's last digit; terminates at 5, is cut after three steps. Reward is the count."""

    observation_size, action_size, horizon = 1, 1, 3

    def reset(self, seed: int) -> np.ndarray:
        self.count, self.steps = seed % 10 % 5, 0
        return np.array([self.count], np.float32)

    def step(self, action: np.ndarray) -> Step:
        self.count, self.steps = self.count + 1, self.steps + 1
        done = self.count == 5
        return Step(np.array([self.count], np.float32), float(self.count), done, self.steps == 3 and not done, done)

    def replay(self, seed, actions):
        observation = self.reset(seed)
        for action in actions:
            observation = self.step(action).next_observation
        return observation

    def close(self) -> None:
        pass


def row(value: float) -> Batch:
    one = np.full(1, value, np.float32)
    return Batch(one, one, np.float32(value), np.float32(1), one)


def test_replay_is_a_ring():
    buffer = Replay.create(row(0), 3)
    contents = []
    for value in range(1, 6):
        buffer = buffer.insert(row(value))
        contents.append(sorted(np.asarray(buffer.rows.reward[: int(buffer.size)]).tolist()))
    assert contents == [[1], [1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]


def test_only_filled_rows_are_drawn_and_all_of_them_alike():
    buffer = Replay.create(row(0), 50)
    for value in range(1, 5):
        buffer = buffer.insert(row(value))
    drawn = np.asarray(sample(jax.random.key(0), buffer.rows, buffer.size, (4000,)).reward)
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [1, 2, 3, 4]
    assert counts.min() > 900


def test_a_row_stays_together():
    rows = jax.tree.map(lambda *x: jnp.stack(x), *[row(v) for v in range(20)])
    buffer = Replay.create(row(0), 10).insert(row(77))
    for drawn in (sample(jax.random.key(0), rows, 20, (6, 5)), sample_union(jax.random.key(0), buffer, rows, 6, 5)):
        assert drawn.observation.shape == (6, 5, 1)
        for leaf in (drawn.observation[..., 0], drawn.action[..., 0], drawn.next_observation[..., 0]):
            np.testing.assert_array_equal(leaf, drawn.reward)


def test_collected_transitions_by_hand(monkeypatch):
    starts = iter([3, 0, 4, 0])
    monkeypatch.setattr("common.stages.episode_seed", lambda *path: next(starts))
    collector = Collector(Counter, TASK, [0])
    seen, episodes = [], []
    for _ in range(6):
        acted_on = collector.observation.copy()
        transition, episode = collector.step(np.zeros((1, 1), np.float32))
        np.testing.assert_array_equal(transition.observation, acted_on)
        seen.append(tuple(float(x[0].item()) for x in jax.tree.leaves(transition) if x is not transition.action))
        episodes.append(tuple(x[0].item() for x in jax.tree.leaves(episode)))
    assert seen == [
        # observation, reward 2 r - 1, mask, next observation
        (3, 7, 1, 4),
        (4, 9, 0, 5),  # terminated
        (0, 1, 1, 1),
        (1, 3, 1, 2),
        (2, 5, 1, 3),  # cut by the time limit: the mask stays 1, and the next observation is the episode's own
        (4, 9, 0, 5),
    ]
    assert episodes == [
        # over, score in percent (success so far), length
        (False, 0, 1),
        (True, 100, 2),
        (False, 0, 1),
        (False, 0, 2),
        (True, 0, 3),
        (True, 100, 1),
    ]
    (told,) = collector.report()
    assert told == pytest.approx({"episode_return": (9 + 6 + 5) / 3, "episode_success": 200 / 3})
    assert np.isnan(collector.report()[0]["episode_return"])


def test_a_collector_continues_from_its_state():
    collector, actions = Collector(Counter, TASK, [4, 9]), np.zeros((2, 1), np.float32)
    for _ in range(7):
        collector.step(actions)
    arrays, progress = collector.state()
    other = Collector(Counter, TASK, [4, 9])
    other.restore(arrays, progress, pytest.fail)
    for _ in range(9):
        chex.assert_trees_all_equal(collector.step(actions), other.step(actions))
    assert collector.report() == other.report()


@pytest.fixture
def collecting(monkeypatch):
    """Collectors of five runs, by the number of processes; closed in the end."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    made = []

    def make(workers, environment=Summing, announce=pytest.fail):
        made.append(Collector(environment, TASK, [3, 1, 4, 1, 5], True, workers, announce))
        return made[-1]

    yield make
    for collector in made:
        collector.close()


def test_environments_go_the_same_way_in_however_many_processes(collecting):
    actions = np.linspace(-1, 1, 12 * 5, dtype=np.float32).reshape(12, 5, 1)
    here, two, five = (collecting(workers) for workers in (0, 2, 5))
    assert [len(collector.environments) for collector in (here, two, five)] == [5, 1, 1]
    for action in actions[:7]:
        chex.assert_trees_all_equal(here.step(action), two.step(action), five.step(action))
    assert here.report() == two.report() == five.report()
    other = collecting(2)
    other.restore(*five.state(), pytest.fail)
    for action in actions[7:]:
        chex.assert_trees_all_equal(here.step(action), other.step(action))
    assert here.report() == other.report()


def test_an_environment_that_fails_elsewhere_leaves_all_as_it_was(collecting):
    here, there = collecting(0, Failing), collecting(2, Failing)
    for collector in (here, there):
        collector.step(np.zeros((5, 1), np.float32))
        collector.step(np.zeros((5, 1), np.float32))
        before = collector.state()
        with pytest.raises(EnvironmentFailed, match="Failing: it raised at step 3"):
            collector.step(np.zeros((5, 1), np.float32))
        chex.assert_trees_all_equal(collector.state(), before)
    # Where its episode cannot be repeated, the next one begins, in the same process.
    arrays, progress = there.state()
    said, longer = [], {name: np.zeros((4, 1), np.float32) for name in arrays if name.startswith("episode_actions")}
    other = collecting(2, Failing, said.append)
    assert other.restore(arrays | longer, progress, said.append) == [0, 1, 2, 3, 4]
    assert said[0] == "run 0: Failing: it raised at step 3; its episode starts again"
    other.step(np.zeros((5, 1), np.float32))


def test_a_process_that_steps_and_is_lost_is_told_as_a_failure(collecting):
    collector = collecting(2)
    collector.step(np.zeros((5, 1), np.float32))
    before = collector.state()
    (group, _), _ = collector._groups
    group.process.kill()
    with pytest.raises(EnvironmentFailed, match="a process that plays episodes has ended with status -9"):
        collector.step(np.zeros((5, 1), np.float32))
    chex.assert_trees_all_equal(collector.state(), before)


def test_environments_that_cannot_be_made_elsewhere_are_stepped_here(collecting, monkeypatch):
    def refuse(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(processes.subprocess, "Popen", refuse)
    said = []
    collector = collecting(2, announce=said.append)
    assert said == [
        "a process that plays episodes cannot be started (Too many open files); environments are stepped in this one"
    ]
    chex.assert_trees_all_equal(collector.step(np.ones((5, 1))), collecting(0).step(np.ones((5, 1))))


def test_an_environment_that_does_not_repeat_itself_is_announced():
    class Drifting(Counter):
        def replay(self, seed, actions):
            return super().replay(seed, actions) + 1

    collector = Collector(Drifting, TASK, [4])
    collector.step(np.zeros((1, 1), np.float32))
    said = []
    assert Collector(Drifting, TASK, [4]).restore(*collector.state(), said.append) == [0]
    assert "not deterministic" in said[0]


@pytest.mark.parametrize("most", [1, 4, 100])
def test_evaluation_counts_every_episode_once_however_many_are_side_by_side(monkeypatch, most):
    monkeypatch.setattr(evaluation, "MOST_ENVIRONMENTS", most)
    calls = []

    def act(observations):
        calls.append(observations.shape)
        return np.zeros((*observations.shape[:2], 1), np.float32)

    outcomes = Evaluator(Counter, 2, 7)(act, [3, 8], 50)
    for seed, outcome in zip([3, 8], outcomes, strict=True):
        for number in range(7):
            start = episode_seed(seed, 1, 50, number) % 10 % 5
            visited = range(start + 1, min(start + 3, 5) + 1)
            assert outcome.returns[number] == sum(visited)
            assert outcome.lengths[number] == len(visited)
            assert outcome.success[number] == (start >= 2)
    assert len(set(calls)) == 1


def grasping(observations):
    """Actions that depend on what is seen, and differ between the numbers of an action."""
    return np.tanh(observations[..., :1] + np.arange(2)).astype(np.float32)


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_play_the_same_episodes(workers):
    make = functools.partial(environments.make_named, "pointmaze-umaze")
    alone, together = Evaluator(make, 2, 5), Evaluator(make, 2, 5, workers)
    with contextlib.closing(alone), contextlib.closing(together):
        for step in (0, 10):
            expected, outcomes = (evaluator(grasping, [3, 8], step) for evaluator in (alone, together))
            for one, other in zip(expected, outcomes, strict=True):
                chex.assert_trees_all_equal(vars(one), vars(other))
        assert len({group._process.process.pid for group, _ in together.groups}) == workers
        assert all(group._process.process.poll() is None for group, _ in together.groups)
        shares = [len(range(*share.indices(10))) for _, share in together.groups]
        assert sum(shares) == 10
        assert max(shares) - min(shares) <= 1
    assert all(group._process.process.returncode is not None for group, _ in together.groups)


class Policy(struct.PyTreeNode):
    """An agent that evaluations know."""

    actor: Network

    @classmethod
    def acting(cls, runs: int, widths: tuple[int, ...], actions: int):
        """What acts for so many runs that are alike, [runs, n, 11] to [runs, n, actions]."""
        policy = cls(Network.create(DeterministicActor(widths, actions), jax.random.key(0), jnp.zeros(11)))
        programs = Programs(cls, types.SimpleNamespace(phases=()), runs, None, 1)
        policies = programs.place(jax.tree.map(lambda x: np.stack([x] * runs), policy))
        return functools.partial(programs.act, policies)

    def act(self, observation):
        return self.actor(observation)


@pytest.mark.parametrize(
    ("episodes", "groups", "slots"),
    [(2, ([3], [3, 8], [*range(70)]), (2, 2, 1)), (70, ([3], [3, 8], [1, 2, 3, 4, 5]), (64, 32, 12))],
)
def test_an_episode_goes_the_same_way_however_many_are_side_by_side(episodes, groups, slots):
    # A body that falls differently for every rounding of its actions, and the network that gives them.
    make = functools.partial(environments.make_named, "hopper-medium")
    found = []
    for seeds, count in zip(groups, slots, strict=True):
        evaluator = Evaluator(make, len(seeds), episodes)
        assert evaluator.slots == count
        act = Policy.acting(len(seeds), (256, 256), 3)
        found.append(evaluator(act, seeds, 0)[seeds.index(3)].returns.tolist())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("actions", [1, 3])
def test_an_action_does_not_depend_on_what_else_is_acted_on(actions):
    # Twelve rows are no whole number of the blocks in which a CPU multiplies: the last ones go another way.
    rows = np.random.default_rng(0).normal(size=(1, 12, 11)).astype(np.float32)
    act = Policy.acting(1, (300, 300), actions)
    together = act(rows)
    np.testing.assert_array_equal(act(rows[:, ::-1])[:, ::-1], together)
    np.testing.assert_array_equal(np.concatenate([act(rows[:, k : k + 1]) for k in range(12)], axis=1), together)
    several = Policy.acting(3, (300, 300), actions)(np.concatenate([rows * 0, rows, -rows]))
    np.testing.assert_array_equal(several[1:2], together)


def test_what_is_seen_of_an_environment_whose_episodes_are_over_is_zero():
    class Ending(Counter):
        def step(self, action):
            taken = super().step(action)
            return taken._replace(next_observation=np.full(1, np.inf, np.float32)) if taken.terminated else taken

    seen = []

    def act(observations):
        seen.append(observations.copy())
        return np.zeros((*observations.shape[:2], 1), np.float32)

    Evaluator(Ending, 1, 6)(act, [3], 50)
    assert np.isfinite(seen).all()
    assert (seen[-1] == 0).any()


def test_an_evaluation_outlives_the_processes_that_play_it():
    make, said = functools.partial(environments.make_named, "pointmaze-umaze"), []
    expected = Evaluator(make, 2, 3)(grasping, [3, 8], 0)
    evaluator, calls = Evaluator(make, 2, 3, 2, said.append), 0

    def act(observations):
        nonlocal calls
        calls += 1
        if calls == 5:
            evaluator.groups[1][0]._process.process.kill()
        return grasping(observations)

    outcomes = evaluator(act, [3, 8], 0)
    chex.assert_trees_all_equal([vars(x) for x in expected], [vars(x) for x in outcomes])
    assert said == ["a process that plays episodes has ended with status -9; evaluation goes on in this one"]
    evaluator(grasping, [3, 8], 1)
    assert len(said) == 1


def test_where_no_process_can_be_started_this_one_plays(monkeypatch):
    def refuse(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(processes.subprocess, "Popen", refuse)
    said = []
    make = functools.partial(environments.make_named, "pointmaze-umaze")
    with contextlib.closing(Evaluator(make, 1, 2, 2, said.append)) as evaluator:
        assert len(evaluator(grasping, [0], 0)[0].returns) == 2
    assert said == [
        "a process that plays episodes cannot be started (Too many open files); evaluation goes on in this one"
    ]


def test_environments_that_only_this_process_knows_are_played_in_it():
    gymnasium.register(
        "OnlyHere-v0", "gymnasium.envs.mujoco.inverted_pendulum_v5:InvertedPendulumEnv", max_episode_steps=5
    )
    said = []
    with contextlib.closing(
        Evaluator(functools.partial(environments.make_named, "OnlyHere-v0"), 1, 3, 2, said.append)
    ) as evaluator:
        (outcome,) = evaluator(lambda o: np.zeros((1, o.shape[1], 1), np.float32), [0], 0)
    assert outcome.lengths.tolist() == [5, 5, 5]
    assert len(said) == 1
    assert "OnlyHere" in said[0]


def test_processes_that_play_leave_with_the_one_that_trains():
    begin = """
import functools, os, signal, sys
from common import environments
from common.evaluation import Evaluator
evaluator = Evaluator(functools.partial(environments.make_named, "pointmaze-umaze"), 1, 2, 2)
def act(observations):
    # What a terminal or a scheduler sends to all processes alike is for this one to answer.
    for group, _ in evaluator.groups:
        group._process.process.send_signal(signal.SIGINT)
        group._process.process.send_signal(signal.SIGTERM)
    return observations[..., :2] * 0
evaluator(act, [0], 0)
print(*[group._process.process.pid for group, _ in evaluator.groups], flush=True)
sys.stdin.read()
"""
    training = subprocess.Popen([sys.executable, "-c", begin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    numbers = training.stdout.readline().split()
    assert len(numbers) == 2
    training.kill()
    training.communicate()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{number}").exists() for number in numbers):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_processes_are_started_where_there_is_much_to_play(monkeypatch):
    monkeypatch.setattr(evaluation, "cores", lambda: 8)
    assert useful_workers(evaluation.MANY_STEPS - 1) == 0
    assert useful_workers(evaluation.MANY_STEPS) == 8
    monkeypatch.setattr(evaluation, "cores", lambda: 1)
    assert useful_workers(evaluation.MANY_STEPS) == 0
    monkeypatch.undo()
    there = machine.cores()
    for said, cores in (("1", 1), ("0", 1), (str(there + 5), there), ("many", there)):
        monkeypatch.setenv("HEADSTART_CORES", said)
        assert machine.cores() == cores


def test_success_is_any_success_and_scores_are_percent():
    class Passing(Counter):
        def step(self, action):
            taken = super().step(action)
            return taken._replace(success=self.steps == 1, terminated=False, truncated=self.steps == 3)

    (outcome,) = Evaluator(Passing, 1, 5)(lambda o: np.zeros((1, o.shape[1], 1)), [0], 0)
    values = outcome.row(TASK)
    assert values["success"] == values["score"] == 100
    assert values["return_mean"] > 1  # the return is not the success rate
    gym = dataclasses.replace(outcome, success=np.array([None] * 5)).row(tasks.find("Hopper-v5"))
    assert np.isnan(gym["success"])
    assert np.isnan(gym["score"])
