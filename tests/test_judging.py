"""`--eval-async`: evaluation beside learning, at the same parameters, and what a stop makes of it."""

import functools
import importlib.machinery
import itertools
import json
import os
import signal
import sys
import threading
import time
import types
from pathlib import Path

import jax
import pytest
from served import falling, serving, table

from algorithms import decision_transformer, iql
from common import judging, training
from common.collection import Collector
from common.environments import Environment
from common.errors import EnvironmentFailed, Refused
from common.evaluation import Evaluator
from common.programs import Programs

serve = serving(iql)
FLAGS = (
    "--env InvertedPendulum-v5 --hidden 8 --batch-size 16 --offline-steps 30 --log-every 5 --eval-every 10 "
    "--eval-episodes 2 --eval-workers 0 --online-steps 30 --checkpoint-every 1000 --learning-rate 0.01"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return f"npz:{falling(tmp_path_factory.mktemp('data') / 'data.npz')}"


@pytest.fixture(scope="module")
def flags(data) -> list:
    return [*FLAGS, "--dataset", data, "--num-seeds", 2]


@pytest.fixture(autouse=True)
def small_calls(monkeypatch):
    """Of five updates."""
    monkeypatch.setattr(training, "CALL_SECONDS", 0.0)
    monkeypatch.setattr("common.programs.LARGEST_BLOCKS", {"cpu": 5})


@pytest.fixture
def tracked(monkeypatch) -> list:
    """What Weights & Biases is told: steps and numbers."""
    return tracking(monkeypatch)


def tracking(patch) -> list:
    told = []
    run = types.SimpleNamespace(
        log=lambda values, step: told.append((step, repr(values))), finish=lambda: None
    )  # of nan, no two are equal
    stub = types.ModuleType("wandb")
    vars(stub).update(init=lambda **_: run, __spec__=importlib.machinery.ModuleSpec("wandb", None))
    patch.setitem(sys.modules, "wandb", stub)
    return told


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory) -> tuple[Path, list]:
    """Without the flag, and what trackers were told. One evaluation is not like the next, so that one of other
    parameters would be noticed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CALL_SECONDS", 0.0)
        patch.setattr("common.programs.LARGEST_BLOCKS", {"cpu": 5})
        told = tracking(patch)
        assert serve(*flags, "--wandb", "--out", out)[0] == 0
    returns = [row["return_mean"] for row in table(out / "eval.csv")]
    each = list(zip(returns[::2], returns[1::2], strict=True))
    assert len(each) == 6
    assert all(one != following for one, following in itertools.pairwise(each))
    return out, told


@pytest.fixture(scope="module")
def whole(undisturbed) -> Path:
    return undisturbed[0]


class Beside:
    """Has learning get ahead of evaluations beside it."""

    def __init__(self):
        self.ahead = 4
        """Steps, at least, before one is played."""
        self.never: int | None = None
        """The step, of all phases together, of one that is not played until it is left."""
        self.played: list[tuple[int, int]] = []
        """Their steps, and those that learning had come to by then."""
        self.sessions: list[training.Session] = []

    def late(self, step: int, look) -> None:
        if threading.current_thread() is threading.main_thread():
            return
        progress = self.sessions[-1].progress
        while progress.total_step < step + self.ahead or step == self.never:
            time.sleep(0.001)
            look()
        self.played.append((step, progress.total_step))


@pytest.fixture
def beside(monkeypatch) -> Beside:
    made, play, learn = Beside(), Evaluator.__call__, training.Session.learn

    def late(self, act, seeds, step, heard, look, telling):
        made.late(step, look)
        return play(self, act, seeds, step, heard, look, telling)

    def noted(self, watch):
        made.sessions.append(self)
        return learn(self, watch)

    monkeypatch.setattr(Evaluator, "__call__", late)
    monkeypatch.setattr(training.Session, "learn", noted)
    return made


def same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("metrics.csv", "eval.csv"))


def final(out: Path) -> list:
    return json.loads((out / "summary.json").read_text())["final"]


def at_call(number: int, method, act):
    """The method, with `act()` just before its call of this number."""
    calls = itertools.count(1)

    def called(self, *arguments):
        if next(calls) == number:
            act()
        return method(self, *arguments)

    return called


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_numbers_are_the_same(whole, flags, tmp_path, beside):
    out = tmp_path / "run"
    status, said = serve(*flags, "--eval-async", "--out", out)
    assert status == 0
    # All but the last one of a phase, which is waited for.
    assert [step for step, _ in beside.played] == [10, 20, 40, 50]
    assert all(later >= step + 4 for step, later in beside.played)
    assert same(out, whole)
    assert final(out) == final(whole)
    assert [" ".join(line.split()[:3]) for line in said.splitlines() if "return_mean" in line][:6] == [
        f"{phase} step {step}" for phase in ("offline", "online") for step in (10, 20, 30)
    ]


@pytest.mark.parametrize(
    ("kind", "name", "number", "owed", "after"),
    [(training.Session, "update", 3, 10, "step 15;"), (Collector, "step", 14, 40, "step 14;")],
)
def test_a_stop_meanwhile_loses_neither_steps_nor_the_evaluation(
    undisturbed, flags, tmp_path, beside, tracked, monkeypatch, kind, name, number, owed, after
):
    """And trackers, which take no step that lies behind their last, are told of all in the order of steps."""
    (whole, expected), out, beside.never = undisturbed, tmp_path / "run", owed
    with monkeypatch.context() as patch:
        patch.setattr(kind, name, at_call(number, getattr(kind, name), terminate))
        status, said = serve(*flags, "--eval-async", "--wandb", "--out", out)
    assert status == 128 + signal.SIGTERM
    assert tracked[-1][0] == owed
    assert f"interrupted after {after} continue with --resume {out}" in said
    beside.never, beside.played[:] = None, []
    assert serve("--resume", out)[0] == 0
    assert beside.played[0][0] == owed
    assert same(out, whole)
    assert tracked == expected
    assert final(out) == final(whole)


def test_a_kill_after_a_checkpoint_meanwhile_loses_no_evaluation(whole, flags, tmp_path, beside, monkeypatch):
    """Where the evaluation had been told of after the checkpoint, and is told of again."""
    out = tmp_path / "run"

    def die():
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(training.Session, "update", at_call(5, training.Session.update, die))
        with pytest.raises(RuntimeError, match="killed"):
            serve(*flags, "--eval-async", "--checkpoint-every", 15, "--out", out)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["15"]
    assert {row["step"] for row in table(out / "eval.csv")} == {"10"}
    assert serve("--resume", out)[0] == 0
    assert same(out, whole)


def test_two_evaluations_may_be_owed_at_once(whole, flags, tmp_path, beside, monkeypatch):
    """One beside learning, and the next one, which waits for it."""
    out, beside.never = tmp_path / "run", 10
    with monkeypatch.context() as patch:
        patch.setattr(judging.Judge, "wait", at_call(2, judging.Judge.wait, terminate))
        status, said = serve(*flags, "--eval-async", "--out", out)
    assert status == 128 + signal.SIGTERM
    assert "interrupted after step 20;" in said
    assert not (out / "eval.csv").exists()
    beside.never = None
    assert serve("--resume", out)[0] == 0
    assert same(out, whole)


def test_an_environment_that_fails_ends_in_a_checkpoint_and_a_line(whole, flags, tmp_path, beside, monkeypatch):
    out, owner = tmp_path / "run", []

    def fail():
        owner.append(threading.current_thread())
        raise EnvironmentFailed("InvertedPendulum-v5: it raised")

    with monkeypatch.context() as patch:
        patch.setattr(Environment, "reset", at_call(2 + 3, Environment.reset, fail))
        with pytest.raises(Refused) as refusal:
            serve(*flags, "--eval-async", "--out", out)
    assert str(refusal.value) == f"InvertedPendulum-v5: it raised; continue with --resume {out}"
    assert owner[0] is not threading.main_thread()
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["15"]
    assert serve("--resume", out)[0] == 0
    assert same(out, whole)


def test_an_error_in_the_thread_is_raised(flags, tmp_path, beside, monkeypatch):
    def fail(*_):
        raise ValueError("a mistake")

    monkeypatch.setattr(beside, "late", fail)
    with pytest.raises(ValueError, match="a mistake"):
        serve(*flags, "--eval-async", "--out", tmp_path / "run")


def test_a_policy_with_a_memory_is_played_too(data, tmp_path, beside):
    sequence = serving(decision_transformer)
    asked = (
        "--env InvertedPendulum-v5 --context 3 --layers 1 --embedding 8 --batch-size 4 --warm-up 1 --offline-steps 20 "
        "--learning-rate 0.01 --horizon 30 --target-return 50 --log-every 5 --eval-every 10 --eval-episodes 2 "
        "--eval-workers 0"
    ).split()
    for name, more in (("whole", []), ("run", ["--eval-async"])):
        assert sequence(*asked, "--dataset", data, *more, "--out", tmp_path / name)[0] == 0
    assert beside.played == [(10, 15)]
    assert same(tmp_path / "run", tmp_path / "whole")


def test_an_accelerator_leaves_acting_to_the_host(data, tmp_path, beside, monkeypatch):
    """The second device stands for the host's, which has programs of its own."""

    def on_host(self):
        return Programs(self.agent_class, self.config, self.runs, None, 1, among=jax.devices()[1:])

    acting = functools.cached_property(on_host)
    acting.__set_name__(Programs, "on_host")
    monkeypatch.setattr(Programs, "on_host", acting)
    placed, game = [], judging.Game

    def noted(programs, agents, slots):
        placed.append({leaf.device for leaf in jax.tree.leaves(agents)})
        return game(programs, agents, slots)

    monkeypatch.setattr(judging, "Game", noted)
    asked = *FLAGS, "--dataset", data, "--online-steps", 0
    for name, more in (("whole", []), ("run", ["--eval-async"])):
        assert serve(*asked, *more, "--out", tmp_path / name)[0] == 0
    own, hosts = ({device} for device in jax.devices())
    assert placed == [own] * 3 + [hosts, hosts, own]
    assert same(tmp_path / "run", tmp_path / "whole")


def test_the_hosts_programs_are_those_of_a_processor():
    programs = Programs(iql.IQL, iql.Config(), 3, None, 2)
    assert programs.on_host is programs
    accelerated = Programs(iql.IQL, iql.Config(), 3, 3, 2)
    accelerated.backend = "gpu"
    host = accelerated.on_host
    assert host is accelerated.on_host
    assert (host.backend, host.width, host.rows, host.runs) == ("cpu", 1, 3, 3)
    assert host.mesh.devices.tolist() == jax.devices()[:1]


# ---------------------------------------------------------------- refusals


def test_one_environment_cannot_be_played_beside_itself(flags, tmp_path):
    with pytest.raises(Refused, match=r"--single-environment: .* leave out --eval-async"):
        serve(*flags[:-2], "--single-environment", "--eval-async", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_hosts_processor_must_be_there(flags, tmp_path, monkeypatch):
    devices = jax.devices

    def without(backend=None):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return devices()

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", without)
    with pytest.raises(Refused, match=r"--eval-async: the host's CPU acts in it.* set JAX_PLATFORMS=cuda,cpu"):
        serve(*flags, "--eval-async", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
