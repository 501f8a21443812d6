"""Environments that somebody wrote: what is served, what is refused before anything is written, what ends a run."""

import contextlib
import errno
import functools
import struct
import sys
import types

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from served import serve

from algorithms import mopo
from algorithms.rlpd import PRESETS, Config
from common import command, commandline, environments, memory, rehearsal, tasks
from common.collection import Collector
from common.commandline import Request, Run
from common.dynamics import ModelData
from common.errors import EnvironmentFailed, Refused
from common.evaluation import Evaluator, success_rate

NAME = "Odd-v0"


class Odd(gymnasium.Env):
    """Counts its steps; what is odd about it is a method or a space of a subclass, or of `odd`."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def observed(self):
        return np.full(2, self.count, np.float32)

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return self.observed(), {}

    def step(self, action):
        self.count += 1
        return self.observed(), self.reward(), False, False, self.info()

    def reward(self):
        return float(self.count)

    def info(self):
        return {}


def odd(**changes):
    return type("Changed", (Odd,), changes)


@pytest.fixture
def register():
    """Makes a class the environment NAME: its task."""

    def register(kind, limit=20):
        gymnasium.register(NAME, entry_point=kind, max_episode_steps=limit)
        return tasks.find(NAME)

    yield register
    gymnasium.registry.pop(NAME, None)


def raises(error):
    def method(*_, **__):
        raise error

    return method


def told(task, several=True):
    """The one line with which a rehearsal refuses."""
    with pytest.raises(Refused) as refused:
        rehearsal.rehearse(task, False, several)
    assert "\n" not in str(refused.value)
    assert NAME in str(refused.value)
    return str(refused.value)


# ----------------------------------------------------------------------------- refused before anything is written


class Only:
    """What can exist only once at a time."""

    taken = False

    def claim(self):
        if Only.taken:
            raise OSError(16, "Device or resource busy")
        Only.taken = self.has = True

    def close(self):
        if getattr(self, "has", False):
            Only.taken = self.has = False


class OnlyOne(Only, Odd):
    def __init__(self):
        self.claim()


class OnlyOneAtPlay(Only, Odd):
    def reset(self, *, seed=None, options=None):
        if not getattr(self, "has", False):
            self.claim()
        return super().reset()


REFUSED = {
    "reset returns an observation alone": (odd(reset=lambda self, seed=None, options=None: np.zeros(2, np.float32)),
        ["returned a ndarray where (observation, info)", "at reset", "reset must return observation, info"]),
    "reset takes nothing": (odd(reset=lambda self: (np.zeros(2), {})),
        ["TypeError", "define reset(self, *, seed=None, options=None)"]),
    "reset takes no options": (odd(reset=lambda self, seed=None: (np.zeros(2), {})),
        ["'options'", "define reset(self, *, seed=None, options=None)"]),
    "step returns four values": (odd(step=lambda self, action: (np.zeros(2), 0.0, False, {})),
        ["at step 1", "step must return observation, reward, terminated, truncated, info"]),
    "step returns nothing": (odd(step=lambda self, action: None), ["at step 1", "step must return"]),
    "two rewards": (odd(reward=lambda self: np.zeros(2)), ["a reward of shape (2,) where one number was expected"]),
    "no reward": (odd(reward=lambda self: None), ["a reward that is not finite (nan)"]),
    "a reward in words": (odd(reward=lambda self: "good"), ["ValueError", "good"]),
    "a longer first observation": (odd(observed=lambda self: np.zeros(3)),
        ["an observation of shape (3,) where its space has (2,)", "at reset"]),
    "a longer observation later": (odd(observed=lambda self: np.zeros(2 + self.count)), ["(3,)", "(2,)", "at step 1"]),
    "an observation as a row": (odd(observed=lambda self: np.zeros((1, 2))), ["shape (1, 2)"]),
    "a first observation that is not finite": (odd(observed=lambda self: np.array([0, np.nan])),
        ["an observation that is not finite (nan at index 1)", "at reset"]),
    "an observation beyond single precision": (odd(observed=lambda self: np.array([1e300, 0])), ["(inf at index 0)"]),
    "a part that is missing": (odd(observation_space=Dict(a=Box(0, 1, (2,)), b=Box(0, 1, (1,))),
                                   observed=lambda self: {"a": np.zeros(2)}), ["KeyError", "b", "at reset"]),
    "an end that is no end": (odd(step=lambda self, action: (np.zeros(2), 0.0, np.zeros(2, bool), False, {})),
        ["ValueError", "at step 1"]),
    "info that is a list": (odd(info=lambda self: ["success"]), ["AttributeError"]),
    "an assertion in reset": (odd(reset=raises(AssertionError())), [f"AssertionError ({__file__}:", "at reset"]),
    "an exception in step": (odd(step=raises(ZeroDivisionError("no\nspeed"))),
        ["ZeroDivisionError: no speed", f"{__file__}:", "at step 1"]),
    "a step that ends the program": (odd(step=raises(SystemExit(0))), ["SystemExit: 0", "at step 1"]),
    "an assertion when it is made": (odd(__init__=raises(AssertionError())),
        ["cannot be made: AssertionError (", f"{__file__}:"]),
    "it ends the program when it is made": (odd(__init__=raises(SystemExit("no display"))),
        ["cannot be made: SystemExit: no display"]),
    "no space of actions": (types.new_class("Bare", (Odd,), exec_body=lambda names: names.update(action_space=property(
        raises(AttributeError("has no attribute 'action_space'"))))), ["cannot be made", "action_space"]),
    "whole numbers": (odd(action_space=Box(0, 3, (1,), np.int64)), ["int64", "round them in step()"]),
    "nothing to choose": (odd(action_space=Box(-1, 1, (0,))), ["only bounded vectors of real numbers"]),
    "bounds on one side": (odd(action_space=Box(0, np.inf, (1,))), ["only bounded vectors of real numbers"]),
    "numbered actions": (odd(action_space=Discrete(3)), ["this algorithm has continuous ones"]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("name", REFUSED)
def test_an_environment_that_cannot_be_played_is_refused_in_one_line(register, name):
    kind, words = REFUSED[name]
    line = told(register(kind))
    assert all(word in line for word in words), line


@pytest.mark.parametrize("limit", [None, -1, 0, np.inf, np.nan, sys.maxsize, 2**31 - 1, 20.5, "20"])
def test_a_time_limit_that_is_none_is_refused_however_it_is_spelled(register, limit):
    with pytest.raises(Refused, match=r"has no time limit.*register it with max_episode_steps") as refused:
        register(Odd, limit)
    assert (limit is None) == ("max_episode_steps=" not in str(refused.value))


# ----------------------------------------------------------------------------- served


class Keywords(Odd):
    def reset(self, **keywords):
        return super().reset()


SERVED = {
    "a reward in an array": odd(reward=lambda self: np.full(1, self.count)),
    "a reward in a column": odd(reward=lambda self: np.full((1, 1), self.count, np.float32)),
    "a reward in an array without axes": odd(reward=lambda self: np.array(self.count)),
    "a reward on a device": odd(reward=lambda self: jax.numpy.float32(self.count)),
    "a reward in single precision": odd(reward=lambda self: np.float32(self.count)),
    "a whole reward": odd(reward=lambda self: self.count),
    "a reward in a list": odd(reward=lambda self: [self.count]),
    "lists": odd(observed=lambda self: [self.count] * 2, reset=lambda self, *, seed=None, options=None: [[0, 0], {}]),
    "keywords of any name": Keywords,
    "no info": odd(info=lambda self: None),
    "ends in arrays": odd(step=lambda self, action: (np.ones(2), 1.0, np.array([False]), np.False_, {})),
    "a close that raises": odd(close=raises(RuntimeError("connection is gone"))),
    "double precision": odd(action_space=Box(-3.3, 0.7, (1,), np.float64), observed=lambda self: np.ones(2)),
}


@pytest.mark.parametrize("name", SERVED)
def test_what_is_odd_and_sound_is_played(register, name):
    if "count" not in vars(SERVED[name]):
        SERVED[name].count = 0
    task = register(SERVED[name])
    assert rehearsal.rehearse(task, False, True) == (2, 1, None)
    environment = environments.make(task)
    environment.reset(3)
    step = environment.step(np.ones(1, np.float32))
    assert (type(step.reward), step.reward) == (float, 1.0)
    assert (step.terminated, step.truncated, step.success) == (False, False, None)
    environment.close()


@pytest.mark.parametrize("kind", [OnlyOne, OnlyOneAtPlay])
def test_what_exists_once_is_noticed_where_one_is_not_enough(register, kind):
    task = register(kind)
    assert rehearsal.rehearse(task, False, several=False) == (2, 1, None)
    found = rehearsal.rehearse(task, False, several=True)
    assert "resource busy" in found.alone
    assert not Only.taken


@pytest.mark.parametrize(
    ("steps", "pretrain", "seeds", "episodes", "several"),
    [(10, 0, 1, 1, True), (0, 10, 1, 1, False), (0, 10, 1, 2, True), (0, 10, 2, 1, True)],
)
def test_a_command_knows_whether_it_plays_several_at_a_time(steps, pretrain, seeds, episodes, several):
    config = Config(steps=steps, pretrain_steps=pretrain)
    assert rehearsal.plays_several(Request(Run(num_seeds=seeds, eval_episodes=episodes), config, {})) is several


@pytest.mark.parametrize("limit", [20, 20.0, np.int64(20)])
def test_a_time_limit_may_be_any_whole_number(register, limit):
    task = register(Odd, limit)
    assert (type(task.horizon), task.horizon) == (int, 20)
    environment = environments.make(task)
    environment.reset(0)
    assert [environment.step(np.zeros(1)).truncated for _ in range(20)] == [False] * 19 + [True]


def test_environments_of_the_table_are_only_made(monkeypatch):
    monkeypatch.setattr(environments.Environment, "reset", lambda *_: pytest.fail("played"))
    assert rehearsal.rehearse(tasks.find("hopper-medium"), False, True) == (11, 3, None)


# ----------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**31, 2**31 + 5, 2**32 - 1])
def test_a_simulator_with_seeds_of_31_bits_gets_no_others(register, seed):
    given = []

    def reset(self, *, seed=None, options=None):
        given.append(struct.unpack("i", struct.pack("i", seed))[0])
        return Odd.reset(self)

    environments.make(register(odd(reset=reset))).reset(seed)
    assert given == [seed % 2**31]


def test_the_tables_own_get_all_32_bits():
    environment = environments.make(tasks.find("hopper-medium"))
    bare = gymnasium.make("Hopper-v4")
    np.testing.assert_array_equal(environment.reset(2**31 + 5), bare.reset(seed=2**31 + 5)[0].astype(np.float32))


# ----------------------------------------------------------------------------- success


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (lambda self: {"success": self.count == 2}, [False, True, False]),
        (lambda self: {"is_success": self.count == 2}, [False, True, False]),
        (lambda self: {"is_success": np.float32(self.count == 2)}, [False, True, False]),
        (lambda self: {"success": np.array([self.count == 2])}, [False, True, False]),
        (lambda self: {"success": [True, self.count == 2]}, [False, True, False]),
        (lambda self: {"success": True, "is_success": False}, [True, True, True]),
        (lambda self: {"is_success": True} if self.count == 2 else {}, [None, True, False]),
        (lambda self: {"success": None if self.count < 3 else False}, [None, None, False]),
        (lambda self: {"distance": 0.1}, [None, None, None]),
    ],
)
def test_success_is_what_the_environment_tells(register, info, expected):
    environment = environments.make(register(odd(info=info)))
    for _ in range(2):  # an episode does not depend on the one before
        environment.reset(0)
        assert [environment.step(np.zeros(1)).success for _ in range(3)] == expected


@pytest.mark.parametrize(
    ("episodes", "percent"),
    [([True, False], 50), ([False, False], 0), ([None, True, False, True], 50), ([None, None], np.nan), ([], np.nan)],
)
def test_the_rate_of_success_is_known_where_it_is_told(episodes, percent):
    np.testing.assert_equal(success_rate(np.array(episodes)), percent)


@pytest.mark.parametrize(
    ("info", "percent"), [({"is_success": True}, 100), ({"success": False}, 0), ({"speed": 1.0}, np.nan)]
)
def test_collected_episodes_succeed_as_they_are_told(register, info, percent):
    task = register(odd(info=lambda self: info), limit=3)
    collector = Collector(lambda: environments.make(task), task, [0])
    for _ in range(4):
        collector.step(np.zeros((1, 1), np.float32))
    arrays, progress = collector.state()
    for each in (collector, Collector(lambda: environments.make(task), task, [0])):
        if each is not collector:
            assert each.restore(arrays, progress, pytest.fail) == []
        if info.get("speed"):
            assert each.solved == [None]
    np.testing.assert_equal(collector.report(), [{"episode_return": 6.0, "episode_success": percent}])


# ----------------------------------------------------------------------------- what ends a run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward": lambda self: np.nan if self.count == 3 else 0.0}, "a reward that is not finite (nan)"),
        ({"reward": lambda self: -np.inf if self.count == 3 else 0.0}, "a reward that is not finite (-inf)"),
        ({"observed": lambda self: np.array([0, np.inf if self.count > 2 else 0])}, "not finite (inf at index 1)"),
        ({"reward": lambda self: 1 / (3 - self.count)}, f"raised ZeroDivisionError: division by zero ({__file__}:"),
        ({"reward": lambda self: sys.exit() if self.count == 3 else 0.0}, "raised SystemExit"),
    ],
)  # fmt: skip
def test_what_an_environment_does_is_told_with_its_step_and_seed(register, changes, words):
    environment = environments.make(register(odd(**changes)))
    environment.reset(4)
    for seed in (2**31 + 7, 8):
        environment.reset(seed)
        for _ in range(2):
            environment.step(np.zeros(1))
        with pytest.raises(EnvironmentFailed) as failed:
            environment.step(np.zeros(1))
        line = str(failed.value)
        assert line.startswith(f"{NAME} ")
        assert words in line
        assert line.endswith(f"at step 3 of the episode with seed {seed % 2**31}")


def test_what_an_environment_does_in_a_process_that_plays_is_told_as_it_is_here(tmp_path, monkeypatch):
    (tmp_path / "a_broken_arm.py").write_text(
        "import gymnasium, numpy as np\n"
        "from gymnasium.spaces import Box\n"
        "class Arm(gymnasium.Env):\n"
        "    observation_space, action_space = Box(-9, 9, (2,)), Box(-1, 1, (1,))\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        return np.zeros(2, np.float32), {}\n"
        "    def step(self, action):\n"
        "        raise ConnectionError('robot is gone')\n"
        "gymnasium.register('Arm-v0', entry_point=Arm, max_episode_steps=20)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    make = functools.partial(environments.make_named, "a_broken_arm:Arm-v0")
    told = []
    for workers in (0, 1):
        with contextlib.closing(Evaluator(make, 1, 1, workers, told.append)) as evaluator:
            with pytest.raises(EnvironmentFailed) as failed:
                evaluator(lambda seen: np.zeros((1, 1, 1), np.float32), [0], 5)
            told.append(str(failed.value))
    assert "raised ConnectionError: robot is gone" in told[0]
    assert told[0] == told[1]
    assert len(told) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
def test_what_stops_a_command_is_no_failure_of_the_environment(register, error):
    environment = environments.make(register(odd(reward=raises(error()))))
    environment.reset(0)
    with pytest.raises(error):
        environment.step(np.zeros(1))


@pytest.mark.parametrize("where", ["step", "reset"])
def test_a_failure_leaves_the_collector_as_a_checkpoint_needs_it(register, where):
    """At the end of the first run's first episode, while the second run's goes on: all is as before that step."""
    made = []

    class Failing(Odd):
        def __init__(self):
            made.append(self)
            self.broken = False

        def reset(self, *, seed=None, options=None):
            if where == "reset" and self.broken:
                raise ValueError("lost")
            return super().reset()

        def step(self, action):
            if where == "step" and self.broken:
                raise ValueError("lost")
            return super().step(action)

    task = register(Failing, limit=3)
    actions = np.zeros((2, 1), np.float32)
    collector, whole = (Collector(lambda: environments.make(task), task, [0, 1]) for _ in range(2))
    for _ in range(2):
        collector.step(actions)
        whole.step(actions)
    arrays, progress = collector.state()
    arrays = {name: array.copy() for name, array in arrays.items()}
    made[1].broken = True
    with pytest.raises(EnvironmentFailed, match="lost"):
        collector.step(actions)
    after, told_after = collector.state()
    assert told_after == progress
    assert after.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(after[name], array)
    # What is resumed is what had not failed.
    resumed = Collector(lambda: environments.make(task), task, [0, 1])
    assert resumed.restore(after, told_after, pytest.fail) == []
    for _ in range(5):
        for one, other in zip(
            jax.tree.leaves(resumed.step(actions)), jax.tree.leaves(whole.step(actions)), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_equal(resumed.report(), whole.report())


def test_an_episode_that_fails_while_it_is_repeated_starts_again(register):
    task = register(Odd)
    collector = Collector(lambda: environments.make(task), task, [0])
    collector.step(np.zeros((1, 1), np.float32))
    arrays, progress = collector.state()
    other = Collector(lambda: environments.make(task), task, [0])
    other.environments[0].raw.unwrapped.reward = lambda: np.nan
    said = []
    assert other.restore(arrays, progress, said.append) == [0]
    assert said[0].startswith(f"run 0: {NAME} returned a reward that is not finite (nan) at step 1")
    assert said[0].endswith("; its episode starts again")
    assert other.episode.tolist() == [1]
    assert other.observation.tolist() == [[0, 0]]


# ----------------------------------------------------------------------------- memory


def asked(observation=348, steps=1_000_000, seeds=4, **changes):
    config = Config(steps=steps, offline_ratio=0.0, **changes)
    return Request(Run(num_seeds=seeds), config, {}), 1, observation, 17


@pytest.mark.parametrize(
    ("free", "fits"), [(6 * 10**9, False), (11_500_000_000, False), (12 * 10**9, True), (None, True)]
)
def test_replay_buffers_that_do_not_fit_are_refused_with_the_numbers(monkeypatch, free, fits):
    monkeypatch.setattr(memory, "available_memory", lambda: free)
    monkeypatch.setattr(memory, "_lacks_addresses", lambda *_: False)
    if fits:
        memory.check_memory(*asked())
        return
    with pytest.raises(Refused) as refused:
        memory.check_memory(*asked())
    line = str(refused.value)
    assert "\n" not in line
    for word in ("buffers of 11.4 GB", "4 runs x 1,000,000 steps x 2,860 bytes", f"{free / 1e9:.1f} GB are free"):
        assert word in line


def test_a_run_that_keeps_little_is_not_counted(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    memory.check_memory(*asked(steps=1000))


def test_prior_data_are_kept_once_per_device(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1_500_000_000)
    monkeypatch.setattr(memory, "_lacks_addresses", lambda *_: False)
    prior = {"rows": np.broadcast_to(np.float32(0), (1000, 125_000)), "none": None}  # as many as half a gigabyte
    request = asked(steps=0, pretrain_steps=10)[0]
    memory.check_memory(request, 2, 3, 1, prior)
    with pytest.raises(Refused, match=r"prior data of 2.0 GB, beside .* where 1.5 GB are free"):
        memory.check_memory(request, 4, 3, 1, prior)


def test_addresses_are_needed_twice(monkeypatch):
    def empty(count, _):
        asked_for.append(count)
        if sum(asked_for) > 10**9:
            raise MemoryError

    monkeypatch.setattr(memory, "available_memory", lambda: 2 * 10**9)
    monkeypatch.setattr(memory.np, "empty", empty)
    for steps, fits in ((400_000, True), (700_000, False)):  # 320 and 560 MB
        asked_for = []
        if fits:
            memory.check_memory(*asked(observation=90, steps=steps, seeds=1))
        else:
            with pytest.raises(Refused, match="too little memory"):
                memory.check_memory(*asked(observation=90, steps=steps, seeds=1))
    assert len(asked_for) == 2


def test_what_agents_keep_is_counted_in_the_phase_in_which_it_is_most(monkeypatch):
    """MOPO's imagined rows, of which there are none before its second phase; nothing is allocated."""
    config = mopo.Config(rollout_batch=10_000, rollout_length=1, retained=100)
    rows = np.zeros((50, 11), np.float32), np.zeros((50, 3), np.float32), *[np.zeros(50, np.float32)] * 2
    prior = ModelData(*rows, np.zeros((50, 11), np.float32), termination=tasks.never)
    fields = memory.largest_agent(mopo.MOPO, config, 11, 3, prior)
    assert fields["imagined"] == 1_000_000 * 4 * (2 * 11 + 3 + 2) + 4
    assert fields["actor"] > 3 * 4 * 256 * 256
    monkeypatch.setattr(memory, "available_memory", lambda: 1_500_000_000)
    monkeypatch.setattr(memory, "_lacks_addresses", lambda *_: False)
    asked = Request(Run(num_seeds=4), config, {}), 1, 11, 3, prior
    told = "memory: agents of 1.0 GB (4 runs x twice 0.1 GB, most of it `imagined`), beside about 0.3 GB for programs"
    assert memory.check_memory(*asked, mopo.MOPO) == f"{told}; 1.5 GB are free"
    beside = Request(Run(num_seeds=4, eval_async=True), config, {}), 1, 11, 3, prior
    with pytest.raises(Refused, match=r"agents of 1.\d GB \(4 runs x three times 0.1 GB, most of it `imagined`\)"):
        memory.check_memory(*beside, mopo.MOPO)
    more = Request(Run(num_seeds=8), config, {}), 1, 11, 3, prior
    assert memory.check_memory(*more) is None
    with pytest.raises(Refused, match=r"agents of [12].\d GB \(8 runs x twice 0.1 GB, most of it `imagined`\)"):
        memory.check_memory(*more, mopo.MOPO)
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(memory, "_free_on_device", lambda: 1_500_000_000)
    memory.check_memory(*more, mopo.MOPO)


@pytest.mark.parametrize(("used", "fits"), [(0, True), (10**10, False)])
def test_an_accelerators_own_memory_is_what_counts(monkeypatch, used, fits):
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 16 * 10**9, "bytes_in_use": used})
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(memory.jax, "devices", lambda: [device])
    monkeypatch.setattr(memory, "available_memory", lambda: pytest.fail("the host's"))
    if fits:
        assert "; 16.0 GB are free" in memory.check_memory(*asked())
    else:
        with pytest.raises(Refused, match=r"6.0 GB are free"):
            memory.check_memory(*asked())
    device.memory_stats = lambda: None  # not every one tells
    told = memory.check_memory(*asked())
    assert told.startswith("memory of each device: replay buffers of ")
    assert told.endswith(" for programs")


# ----------------------------------------------------------------------------- the command


SMALL = "--offline-ratio 0 --hidden 8 --ensemble 2 --utd 1 --batch-size 8 --start-training 5 --steps 10".split()


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        (odd(step=lambda self, action: (np.zeros(2), 0.0, False, {})), (), "step must return"),
        (OnlyOne, ("--num-seeds", 2), "can exist only once.*resource busy.*2 runs cannot share one environment"),
        (Odd, ("--steps", 2**31 - 1, "--num-seeds", 500), "too little memory: replay buffers of 30,064.8 GB"),
    ],
)
def test_nothing_is_written_for_what_cannot_be_played(register, tmp_path, kind, more, words):
    register(kind)
    with pytest.raises(Refused, match=words):
        serve("--env", NAME, *SMALL, *more, "--out", tmp_path / "run")
    assert not list(tmp_path.iterdir())


def assert_told_with_the_way_on(out):
    with pytest.raises(Refused) as refused:
        serve("--env", NAME, *SMALL, "--out", out)
    assert "raised ConnectionError: robot is gone" in str(refused.value)
    assert str(refused.value).endswith(f"; continue with --resume {out}")


def test_an_environment_that_fails_before_the_first_step_is_told_with_the_way_on(register, tmp_path):
    """Three are made before the collector's: to ask for the data's form, and in the rehearsal."""
    made = []

    class Later(Odd):
        def __init__(self):
            made.append(self)

        def reset(self, *, seed=None, options=None):
            if len(made) > 3:
                raise ConnectionError("robot is gone")
            return super().reset()

    register(Later)
    assert_told_with_the_way_on(tmp_path / "run")


def test_an_environment_that_fails_while_it_is_played_is_told_with_the_way_on(register, tmp_path):
    """One step is the rehearsal's."""
    taken = []

    class Later(Odd):
        def step(self, action):
            taken.append(action)
            if len(taken) > 4:
                raise ConnectionError("robot is gone")
            return super().step(action)

    register(Later)
    assert_told_with_the_way_on(tmp_path / "run")


def test_a_module_is_not_imported_before_the_devices_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_learnt_model.py").write_text("raise TypeError('imported')")
    request = commandline.parse(["--env", "my_learnt_model:Arm-v0", *SMALL], "rlpd", "", Config, PRESETS)
    assert request.run.env == "my_learnt_model:Arm-v0"
    taken = []
    monkeypatch.setattr(command, "prepare_devices", taken.append)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(Refused, match="TypeError: imported"):
        serve("--env", "my_learnt_model:Arm-v0", *SMALL)
    assert len(taken) == 1


@pytest.mark.parametrize(
    ("variables", "error", "words"),
    [
        ({"JAX_PLATFORMS": "cuda"}, AssertionError(), "JAX_PLATFORMS=cuda: no such device here; there is cpu: unset"),
        ({"JAX_PLATFORMS": "cdua"}, RuntimeError("Unknown\nbackend"), "no such device here (Unknown backend); there"),
        ({"JAX_PLATFORM_NAME": "gpu"}, RuntimeError("none"), "JAX_PLATFORM_NAME=gpu: no such device here (none)"),
        ({}, RuntimeError("out of memory"), "JAX cannot start: no such device here (out of memory)"),
    ],
)
def test_a_platform_that_is_not_there_is_told_in_one_line(monkeypatch, variables, error, words):
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command, "platforms", lambda: "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(command.jax, "devices", raises(error))
        with pytest.raises(Refused) as refused:
            command.prepare_devices(asked()[0])
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.fixture
def updates(monkeypatch) -> dict[str, object]:
    """What is asked of JAX's configuration, in which there is no cache."""
    asked_for = {}
    monkeypatch.setattr(command.jax, "config", types.SimpleNamespace(
        update=asked_for.__setitem__, jax_compilation_cache_dir=None))  # fmt: skip
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return asked_for


@pytest.mark.parametrize(("cache", "expected"), [("", "home/.cache"), ("there", "there")])
def test_the_cache_of_programs_is_the_users(tmp_path, monkeypatch, updates, cache, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", cache and str(tmp_path / cache))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    command.prepare_devices(asked()[0])
    assert updates["jax_compilation_cache_dir"] == str(tmp_path / expected / "headstart" / "jax")


def test_a_user_without_a_home_has_no_cache(monkeypatch, updates):
    monkeypatch.setattr(command.Path, "home", raises(RuntimeError("Could not determine home directory.")))
    command.prepare_devices(asked()[0])
    assert updates.keys() == {"jax_num_cpu_devices"}


@pytest.mark.parametrize("name", ["mkdir", "access"])
def test_a_home_that_cannot_be_written_in_has_no_cache(tmp_path, monkeypatch, updates, name):
    """Neither where the folder would have to be made, nor where it is somebody else's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    if name == "mkdir":
        monkeypatch.setattr(command.Path, "mkdir", raises(OSError(errno.EROFS, "Read-only file system")))
    else:
        monkeypatch.setattr(command.os, "access", lambda path, mode: False)
    command.prepare_devices(asked()[0])
    assert updates.keys() == {"jax_num_cpu_devices"}
