"""`--single-environment`: collection and evaluation in one instance, as of a robot."""

import json
import os
import signal
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from served import serving

from algorithms import iql
from common import training
from common.collection import Collector
from common.errors import Refused

serve = serving(iql)
FLAGS = (
    "--env headstart-tests/Once-v0 --hidden 8 --batch-size 16 --offline-steps 20 --log-every 10 --eval-every 10 "
    "--eval-episodes 2 --online-steps 20 --checkpoint-every 1000 --single-environment"
).split()


class Once(gymnasium.Env):
    """Can be open but once; an episode has seven steps, and an observation tells how many there were before it."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    is_open = False
    events: ClassVar[list[tuple[str, float]]] = []
    """What was asked of it, and the observation that followed."""

    def __init__(self):
        if Once.is_open:
            raise OSError("the robot is taken")
        Once.is_open = True

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.told("reset"), {}

    def step(self, action):
        self.steps += 1
        return self.told("step"), 1.0, False, self.steps == 7, {}

    def told(self, what):
        number = float(len(Once.events))
        Once.events.append((what, number))
        return np.array([number, self.steps], np.float32)

    def close(self):
        Once.is_open = False


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(
        path,
        observations=rng.normal(0, 1, (70, 2)).astype(np.float32),
        actions=rng.uniform(-1, 1, (70, 1)).astype(np.float32),
        rewards=np.ones(70, np.float32),
        terminals=np.zeros(70, bool),
        timeouts=np.arange(70) % 7 == 6,
    )
    return f"npz:{path}"


@pytest.fixture(autouse=True)
def once():
    gymnasium.register("headstart-tests/Once-v0", Once, max_episode_steps=7)
    Once.is_open, Once.events = False, []
    yield
    del gymnasium.registry["headstart-tests/Once-v0"]


@pytest.fixture
def watched(monkeypatch):
    """The transitions collected, and what actions were chosen for outside the jitted loop."""
    transitions, chosen = [], []
    step, choose = Collector.step, training.Session.next_action

    def stepped(self, actions):
        returned = step(self, actions)
        transitions.append(returned[0])
        return returned

    def chose(self):
        chosen.append(self.collector.observation.copy())
        return choose(self)

    monkeypatch.setattr(Collector, "step", stepped)
    monkeypatch.setattr(training.Session, "next_action", chose)
    return transitions, chosen


def follow(transitions) -> None:
    """Each was made by one step from the state that it names."""
    for transition in transitions:
        assert transition.next_observation[0, 0] == transition.observation[0, 0] + 1
        assert Once.events[int(transition.next_observation[0, 0])][0] == "step"


def test_it_is_not_needed_where_there_can_be_no_other(data, tmp_path):
    flags = [flag for flag in FLAGS if flag != "--single-environment"]
    status, said = serve(*flags, "--dataset", data, "--out", tmp_path / "run")
    assert status == 0
    assert "can exist only once at a time: collection and evaluation share it (--single-environment)" in said
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["single_environment"]


def test_collection_and_evaluation_share_one_instance(data, tmp_path, watched):
    transitions, chosen = watched
    assert serve(*FLAGS, "--dataset", data, "--out", tmp_path / "run")[0] == 0
    assert not Once.is_open
    assert len(transitions) == 20
    follow(transitions)
    # After both evaluations offline, and the first of those online, an episode of collection begins; its first action
    # is chosen for its first observation.
    starts = [int(observation[0, 0]) for observation in chosen]
    assert [Once.events[start][0] for start in starts] == ["reset"] * 2
    assert [transitions[k].observation[0, 0] for k in (0, 10)] == starts
    # Every evaluation is two whole episodes.
    rows = (tmp_path / "run" / "eval.csv").read_text().splitlines()
    assert len(rows) == 1 + 4


def test_a_run_that_goes_on_repeats_no_action(data, tmp_path, watched):
    transitions, chosen = watched
    out, step = tmp_path / "run", Collector.step

    def stopping(self, actions):
        if len(transitions) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, actions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collector, "step", stopping)
        assert serve(*FLAGS, "--dataset", data, "--out", out)[0] == 128 + signal.SIGTERM
    assert len(transitions) == 5
    events, chosen[:] = len(Once.events), []
    assert serve("--resume", out)[0] == 0
    assert len(transitions) == 20
    follow(transitions)
    assert Once.events[int(transitions[5].observation[0, 0])][0] == "reset"
    assert chosen[0][0, 0] == transitions[5].observation[0, 0]
    # The rehearsal's step; then no more than is collected, and four evaluations' share that is left.
    assert sum(what == "step" for what, _ in Once.events[events:]) == 1 + 15 + 2 * 2 * 7


def test_an_offline_run_has_one_instance_too(data, tmp_path):
    flags = [*FLAGS, "--online-steps", "0", "--eval-episodes", "3"]
    assert serve(*flags, "--dataset", data, "--out", tmp_path / "run")[0] == 0
    assert not Once.is_open


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--num-seeds", 2], "2 runs cannot share one environment"),
        (["--grid.discount", 0.9, 0.99], "2 runs cannot share one environment"),
        (["--eval-workers", 1], "plays in this process: leave out --eval-workers"),
    ],
)
def test_what_it_cannot_serve_is_refused(data, tmp_path, more, why):
    with pytest.raises(Refused, match=why):
        serve(*FLAGS, "--dataset", data, "--out", tmp_path / "run", *more)
    assert not (tmp_path / "run").exists()
