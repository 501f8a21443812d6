"""The offline phase and the two phases one after the other, with the algorithms that have them."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from interruption import stopped_at
from rich.console import Console
from served import agent_of
from test_agent import MODULES, some

from common import command, play, recipes, reporting, tasks, training
from common.errors import Refused
from common.library import load
from common.recipes import locomotion
from common.spreading import Program

COMMON = (
    "--env hopper-medium --hidden 8 --batch-size 16 --offline-steps 20 --log-every 5 --eval-every 10 "
    "--eval-episodes 2 --checkpoint-every 5"
).split()
HORIZON = 25
"""Of hopper's episodes here, which keeps evaluations short; online, one is over before the last step."""
TO_ONLINE = [
    name for name, module in MODULES.items() if {"offline_steps", "online_steps"} <= vars(module.Config()).keys()
]
"""Those with an offline and an online phase."""


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("data")))
        patch.setitem(recipes.SIZES, "hopper-medium", 500)
        patch.setitem(tasks._TASKS, "hopper-medium", replace(tasks.find("hopper-medium"), horizon=HORIZON))
        patch.setitem(recipes.SIZES, "cartpole-mixed", 500)
        locomotion._environment_of.cache_clear()  # has the horizon of when it was made
        yield
    locomotion._environment_of.cache_clear()


def serve(name: str, *arguments: str | int | Path, into: io.StringIO | None = None) -> str:
    module = MODULES[name]
    console = Console(file=into or io.StringIO(), width=200)
    asked = [str(a) for a in arguments]
    if module.Config.discrete_actions:
        asked = ["cartpole-mixed" if a == "hopper-medium" else a for a in asked]
    assert command.serve(agent_of(module), module.Config, module.PRESETS, asked, console) == 0
    return console.file.getvalue()


def interrupted(monkeypatch, out: Path, stops: tuple[int, ...], name: str, *arguments: str | int | Path) -> str:
    """A command that is stopped at the checkpoint of each of these steps, and resumed: all that it says."""
    said, request = io.StringIO(), (*arguments, "--out", out)
    for step in stops:
        with stopped_at(step, monkeypatch):
            serve(name, *request, into=said)
        request = "--resume", out
    serve(name, *request, into=said)
    return said.getvalue()


def table(path: Path, *leave_out: str) -> list[dict[str, str]]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if k not in leave_out} for row in csv.DictReader(file)]


@pytest.fixture(scope="module", params=some("redq_adaptive_bc", of=TO_ONLINE))
def both(request, tmp_path_factory) -> tuple[str, Path]:
    """20 updates, then 30 environment steps, of two seeds."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    serve(request.param, *COMMON, "--online-steps", 30, "--num-seeds", 2, "--out", out)
    return request.param, out


@pytest.mark.parametrize("name", some("iql", of=TO_ONLINE))
def test_an_offline_run_has_one_phase(name, tmp_path, monkeypatch):
    sessions, train = [], training.Session.train
    monkeypatch.setattr(training.Session, "train", lambda self: (sessions.append(self), train(self))[1])
    serve(name, *COMMON, "--online-steps", 0, "--out", tmp_path / "run")
    metrics, evaluations = (table(tmp_path / "run" / f) for f in ("metrics.csv", "eval.csv"))
    assert [(r["phase"], r["step"]) for r in metrics] == [("offline", str(s)) for s in (5, 10, 15, 20)]
    assert [(r["phase"], r["step"]) for r in evaluations] == [("offline", "10"), ("offline", "20")]
    assert all(np.isfinite(float(v)) for r in metrics for k, v in r.items() if k != "phase")
    assert "episode_return" not in metrics[0]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["final"][0]["score"] == float(evaluations[-1]["score"])
    assert "drop" not in summary["final"][0]
    assert summary["steps_per_second"] > 0
    assert sessions[0].learner.experience is None
    assert int(sessions[0].learner.agent.critic.opt_state.count[0]) == 20
    programs = sessions[0].programs
    sizes = {name: p.jitted._cache_size() for name, p in vars(programs).items() if isinstance(p, Program)}
    never = dict.fromkeys(("choose", "collect", "learn", "proceed", "defer", "study"), 0)
    assert sizes == {"create": 1, "offline": 1, "act": 1, "enter": 1} | never


def test_both_phases_are_marked_and_the_switch_is_measured(both):
    _, out = both
    metrics = [(r["phase"], r["step"]) for r in table(out / "metrics.csv") if r["run"] == "1"]
    assert metrics == [("offline", str(s)) for s in (5, 10, 15, 20)] + [
        ("online", str(s)) for s in (5, 10, 15, 20, 25, 30)
    ]
    evaluations = table(out / "eval.csv")
    marks = [("offline", "10"), ("offline", "20"), ("online", "10"), ("online", "20"), ("online", "30")]
    assert [(r["phase"], r["step"]) for r in evaluations if r["run"] == "0"] == marks
    final = json.loads((out / "summary.json").read_text())["final"]
    assert {"offline", "drop", "online_mean"} <= final[0].keys()


def test_drop_and_online_mean_by_hand():
    def rows(offline, online, every):
        return [{"phase": "offline", "step": str(k), "score": str(v)} for k, v in enumerate(offline)] + [
            {"phase": "online", "step": str((k + 1) * every), "score": str(v)} for k, v in enumerate(online)
        ]

    # Ten online evaluations: the first alone lies in the first tenth.
    one = reporting.online_progress(rows([10, 60], [40, 30, 50, 60, 70, 80, 90, 90, 90, 100], 100), "score")
    assert one == {"offline": 60, "drop": 20, "online_mean": 70}
    # Thirty: the worst of the first three.
    many = reporting.online_progress(rows([50], [60, 20, 30] + [10] * 27, 10), "score")
    assert many["drop"] == 30
    # Three: the first comes later than that.
    few = reporting.online_progress(rows([50], [60, 0, 90], 10), "score")
    assert few == {"offline": 50, "drop": -10, "online_mean": 50}


def test_a_run_resumed_in_either_phase_gives_the_same_numbers(both, tmp_path, monkeypatch):
    """Stopped before, at and after the switch, in the middle of an episode; and after the last step.

    The loop is the same for all, and the switch the algorithm's own.
    """
    name, whole = both
    stops = (10, 20, 35, 50) if name == "redq_adaptive_bc" else (20,)
    arguments = (*COMMON, "--online-steps", 30, "--num-seeds", 2)
    said = interrupted(monkeypatch, tmp_path / "run", stops, name, *arguments)
    for at in stops:
        phase, step = ("online", at - 20) if at > 20 else ("offline", at)
        assert f"resuming in the {phase} phase after step {step}" in said
    for file in ("metrics.csv", "eval.csv"):
        assert table(tmp_path / "run" / file) == table(whole / file)
    finals = [json.loads((out / "summary.json").read_text())["final"] for out in (tmp_path / "run", whole)]
    assert finals[0] == finals[1]
    assert len(finals[0][0]["episode_scores"]) > 0
    np.testing.assert_allclose([np.mean(f["episode_scores"]) for f in finals[0]], [f["score"] for f in finals[0]])


def test_imitation_is_a_phase_of_exactly_its_steps(tmp_path, monkeypatch):
    sessions, train = [], training.Session.train
    monkeypatch.setattr(training.Session, "train", lambda self: (sessions.append(self), train(self))[1])
    arguments = (*COMMON, "--pretrain-steps", 10, "--online-steps", 10, "--online-cloning", 0.25)
    serve("td3_bc", *arguments, "--out", tmp_path / "run")
    marks = [(r["phase"], r["step"]) for r in table(tmp_path / "run" / "eval.csv")]
    assert marks == [("imitation", "10"), ("offline", "10"), ("offline", "20"), ("online", "10")]
    agent = sessions[0].learner.agent
    # Imitation moves the actor at every step, what follows at every second one.
    assert int(agent.critic.opt_state.count[0]) == 10 + 20 + 10
    assert int(agent.actor.opt_state.count[0]) == 10 + 10 + 5
    assert agent.phase == "online"
    assert float(agent.cloning[0]) == 0.25
    rows = table(tmp_path / "run" / "metrics.csv")
    assert [r["phase"] for r in rows] == ["imitation"] * 2 + ["offline"] * 4 + ["online"] * 2
    # Resumed in the middle of imitation, it is the same.
    with stopped_at(5, monkeypatch):
        serve("td3_bc", *arguments, "--out", tmp_path / "other")
    assert "resuming in the imitation phase after step 5" in serve("td3_bc", "--resume", tmp_path / "other")
    assert table(tmp_path / "other" / "metrics.csv") == rows


@pytest.mark.parametrize("policy", some("flow", of=["gmm", "flow"]))
def test_cloning_resumes(tmp_path, monkeypatch, policy):
    arguments = (*COMMON, "--policy", policy, "--num-seeds", 2)
    serve("bc", *arguments, "--out", tmp_path / "whole")
    with stopped_at(10, monkeypatch):
        serve("bc", *arguments, "--out", tmp_path / "run")
    assert "resuming in the offline phase after step 10" in serve("bc", "--resume", tmp_path / "run")
    for file in ("metrics.csv", "eval.csv"):
        assert table(tmp_path / "run" / file) == table(tmp_path / "whole" / file)
    assert [r["step"] for r in table(tmp_path / "run" / "metrics.csv") if r["run"] == "1"] == ["5", "10", "15", "20"]


MODEL = (
    "--model-steps 10 --model-hidden 8 --model-weight-decay 0 0 --members 2 --elites 1 --patience 1 "
    "--model-batch-size 200 --rollout-every 4 --rollout-batch 10 --rollout-length 2 --retained 2"
).split()
"""Small models, validated at every second step, that may stop learning; rollouts also after a stop."""


@pytest.mark.parametrize(
    ("name", "flags", "at", "phases"),
    [
        ("awr", ("--value-steps", 3, "--actor-steps", 4), (10,), ["offline"] * 4),
        pytest.param(
            "awr", ("--preset", "marwil", "--value-steps", 3, "--actor-steps", 4), (5,), ["offline"] * 4,
            marks=pytest.mark.every,
        ),
        pytest.param(
            "bail", ("--envelope-steps", 10, "--validate-every", 3), (5, 10, 20), ["envelope"] * 2 + ["offline"] * 4,
            marks=pytest.mark.every,
        ),
        pytest.param(
            "bail", ("--envelope-steps", 0, "--validate-every", 3), (10,), ["offline"] * 4, marks=pytest.mark.every
        ),
        ("mopo", MODEL, (5, 15), ["model"] * 2 + ["offline"] * 4),
        pytest.param(
            "combo", (*MODEL, "--actions", 2), (10, 20), ["model"] * 2 + ["offline"] * 4, marks=pytest.mark.every
        ),
    ],
)  # fmt: skip
def test_what_was_learnt_of_all_data_survives_a_stop(tmp_path, monkeypatch, name, flags, at, phases):
    """Within an iteration and between validations, at the switch, and after it."""
    arguments = (*COMMON, *flags, "--num-seeds", 2)
    serve(name, *arguments, "--out", tmp_path / "whole")
    rows = table(tmp_path / "whole" / "metrics.csv")
    assert [r["phase"] for r in rows if r["run"] == "1"] == phases
    interrupted(monkeypatch, tmp_path / "run", at, name, *arguments)
    assert table(tmp_path / "run" / "metrics.csv") == rows
    assert table(tmp_path / "run" / "eval.csv") == table(tmp_path / "whole" / "eval.csv")


@pytest.mark.parametrize(
    ("name", "flags", "stops"),
    [
        pytest.param("bcq", (), {10: "the offline phase after step 10"}, marks=pytest.mark.every),
        (
            "bear", ("--matching-steps", 10, "--policy-target-rate", 0.5),
            {5: "the matching phase after step 5", 15: "the offline phase after step 5"},
        ),
    ],
)  # fmt: skip
def test_what_learns_from_proposed_actions_resumes(tmp_path, monkeypatch, name, flags, stops):
    """In the middle of each phase; evaluations draw their candidates anew, and the same."""
    arguments = (*COMMON, "--vae-hidden", 8, *flags)
    serve(name, *arguments, "--out", tmp_path / "whole")
    said = interrupted(monkeypatch, tmp_path / "run", tuple(stops), name, *arguments)
    assert all(f"resuming in {where}" in said for where in stops.values())
    for file in ("metrics.csv", "eval.csv"):
        assert table(tmp_path / "run" / file) == table(tmp_path / "whole" / file)
    phases = ["matching"] * 2 * (name == "bear") + ["offline"] * 4
    assert [row["phase"] for row in table(tmp_path / "run" / "metrics.csv")] == phases


@pytest.mark.parametrize("name", some("brac", of=["brac", "fisher_brc"]))
def test_a_clone_is_learned_first_and_both_phases_resume(tmp_path, monkeypatch, name):
    """Stopped in the middle of either phase; the clone stands still in the second, and the rest in the first."""
    sessions, train = [], training.Session.train
    monkeypatch.setattr(training.Session, "train", lambda self: (sessions.append(self), train(self))[1])
    layers = {"brac": "--actor-hidden", "fisher_brc": "--cloning-hidden"}[name]
    arguments = (*COMMON, layers, 8, "--cloning-steps", 10)
    serve(name, *arguments, "--out", tmp_path / "whole")
    rows, evaluations = (table(tmp_path / "whole" / file) for file in ("metrics.csv", "eval.csv"))
    assert [r["phase"] for r in rows] == ["cloning"] * 2 + ["offline"] * 4
    assert [(r["phase"], r["step"]) for r in evaluations] == [("cloning", "10"), ("offline", "10"), ("offline", "20")]
    agent = sessions[0].learner.agent
    clone = agent.clone if name == "brac" else agent.behaviour
    assert (int(clone.opt_state.count[0]), int(agent.critic.opt_state.count[0])) == (10, 20)
    said = interrupted(monkeypatch, tmp_path / "run", (5, 20), name, *arguments)
    for phase, step in (("cloning", 5), ("offline", 10)):
        assert f"resuming in the {phase} phase after step {step}" in said
    for file, expected in (("metrics.csv", rows), ("eval.csv", evaluations)):
        assert table(tmp_path / "run" / file) == expected


@pytest.mark.parametrize("env", some("hopper-medium", of=["hopper-medium", "cartpole-mixed"]))
def test_a_policy_that_remembers_resumes_and_its_file_plays_what_was_evaluated(env, tmp_path, monkeypatch):
    """The evaluations of two runs side by side, and one episode after another in the file of the second."""
    arguments = f"--env {env} --embedding 8 --layers 1 --context 3 --batch-size 16 --offline-steps 20".split()
    arguments += (
        "--warm-up 5 --log-every 5 --eval-every 10 --eval-episodes 2 --checkpoint-every 5 --num-seeds 2".split()
    )
    serve("decision_transformer", *arguments, "--out", tmp_path / "whole")
    said = interrupted(monkeypatch, tmp_path / "run", (5, 10), "decision_transformer", *arguments)
    assert "resuming in the offline phase after step 10" in said
    for file in ("metrics.csv", "eval.csv"):
        assert table(tmp_path / "run" / file) == table(tmp_path / "whole" / file)
    (*_, last) = table(tmp_path / "whole" / "eval.csv")
    assert last["run"] == "1"
    policy = load(tmp_path / "whole", 1)
    assert policy.remembers
    returns = play.play(policy, episodes=2).returns
    np.testing.assert_allclose(returns.mean(), float(last["return_mean"]), rtol=1e-3)


def test_returns_of_episodes_survive_a_stop(tmp_path, monkeypatch):
    """Cal-QL: stopped while its actor clones, and online, where the first episode is over and the second is not."""
    arguments = (*COMMON, "--preset", "calql", "--cloning-steps", 10, "--actor-hidden", 8, "--actions", 2)
    arguments += ("--eval-every", 200, "--online-steps", HORIZON + 10)
    serve("cql", *arguments, "--out", tmp_path / "whole")
    said = interrupted(monkeypatch, tmp_path / "run", (5, 60), "cql", *arguments)
    for place in ("cloning phase after step 5", "online phase after step 30"):
        assert f"resuming in the {place}" in said
    rows = table(tmp_path / "run" / "metrics.csv")
    assert rows == table(tmp_path / "whole" / "metrics.csv")
    assert [r["phase"] for r in rows] == ["cloning"] * 2 + ["offline"] * 4 + ["online"] * 7


@pytest.mark.every
@pytest.mark.optimised
def test_a_seed_is_bitwise_the_same_alone_and_in_a_group(tmp_path):
    """At real widths, where the compiler has a choice; updates alone, and of all algorithms: test_compiled.py."""
    command = ["td3_bc", *COMMON, "--hidden", 256, 256, "--batch-size", 256, "--eval-episodes", 12]
    serve(*command, "--num-seeds", 3, "--devices", 1, "--out", tmp_path / "group")
    serve(*command, "--seed", 1, "--out", tmp_path / "alone")
    for file in ("metrics.csv", "eval.csv"):
        group = [r for r in table(tmp_path / "group" / file) if r["seed"] == "1"]
        alone = table(tmp_path / "alone" / file)
        assert [{**r, "run": ""} for r in group] == [{**r, "run": ""} for r in alone]


def test_minibatches_of_consecutive_steps_differ(tmp_path, monkeypatch):
    """With a learning rate that moves no parameter nothing but the minibatch changes a loss."""
    serve("iql", *COMMON, "--learning-rate", 1e-30, "--log-every", 1, "--eval-every", 20, "--out", tmp_path / "run")
    losses = [r["critic_loss"] for r in table(tmp_path / "run" / "metrics.csv")]
    assert len(set(losses)) == 20


def test_every_number_stands_in_its_own_column_whatever_the_phase(tmp_path, monkeypatch):
    """EDAC's phases have different metrics. Stopped in the middle of the phase that learns soft returns, which were
    computed when it began, and after the next has begun, it leaves the same table."""
    command = [*COMMON, "--pretrain-steps", 20, "--ensemble", 3, "--layer-norm"]
    serve("edac", *command, "--out", tmp_path / "whole")
    rows = table(tmp_path / "whole" / "metrics.csv")
    names = {
        "imitation": {"actor_loss", "entropy", "temperature"},
        "returns": {"agreement", "critic_loss", "q"},
        "offline": {"actor_loss", "agreement", "critic_loss", "entropy", "q", "temperature"},
    }
    for phase, expected in names.items():
        mine = [row for row in rows if row["phase"] == phase]
        assert len(mine) >= 2
        for row in mine:
            assert {name for name in set.union(*names.values()) if row[name]} == expected
            assert None not in row
    assert all(float(row["critic_loss"]) >= 0 for row in rows if row["phase"] != "imitation")
    said = interrupted(monkeypatch, tmp_path / "stopped", (15, 35), "edac", *command)
    assert "resuming in the returns phase after step 5" in said
    for name in ("metrics.csv", "eval.csv"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_that_diverges_offline_is_named(tmp_path):
    said = serve("td3_bc", *COMMON, "--grid.learning-rate", 1e30, 3e-4, "--out", tmp_path / "run")
    assert "run 0 (seed 0) has diverged at offline step 10" in said
    assert said.count("loss is not finite at offline step") == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["diverged_at_step"] == {"0": {"phase": "offline", "step": 10}}
    assert np.isfinite(summary["final"][0]["score"])


def test_costs_are_those_of_all_phases(both):
    _, out = both
    summary = json.loads((out / "summary.json").read_text())
    parts = [summary[f"{name}_seconds"] for name in ("learning", "evaluation", "compile")]
    assert summary["whole_seconds"] >= sum(parts) > max(parts) > 0


def test_random_steps_choose_all_discrete_actions_alike_and_a_stop_among_them_changes_nothing(tmp_path, monkeypatch):
    """DQN without data: one-hot actions from the first step on, in the replay buffer as in a resumed episode."""
    sessions, train = [], training.Session.train
    monkeypatch.setattr(training.Session, "train", lambda self: (sessions.append(self), train(self))[1])
    asked = ["--env", "acrobot-mixed", "--preset", "dqn-online", "--hidden", 8, "--batch-size", 16, "--log-every", 20]
    asked += ["--online-steps", 120, "--start-training", 90, "--eval-every", 60, "--eval-episodes", 1]
    asked += ["--checkpoint-every", 30, "--num-seeds", 2]
    serve("discrete_bcq", *asked, "--out", tmp_path / "whole")
    actions = np.asarray(sessions[0].learner.experience.rows.action)
    assert actions.shape == (2, 120, 3)
    np.testing.assert_array_equal(np.sort(actions, axis=-1), np.broadcast_to([0.0, 0.0, 1.0], actions.shape))
    share = actions[:, :90].mean(axis=(0, 1))
    np.testing.assert_allclose(share, 1 / 3, atol=0.1)
    assert (actions[0] != actions[1]).any()
    for at in (30, 90):
        with stopped_at(at, monkeypatch):
            serve("discrete_bcq", *asked, "--out", tmp_path / f"at{at}")
        assert f"resuming in the online phase after step {at}" in serve(
            "discrete_bcq", "--resume", tmp_path / f"at{at}"
        )
        for file in ("metrics.csv", "eval.csv"):
            assert table(tmp_path / f"at{at}" / file) == table(tmp_path / "whole" / file)


@pytest.mark.parametrize(("name", "env"), [("iql", "cartpole-mixed"), ("discrete_bcq", "walker2d-medium")])
def test_other_actions_than_the_tasks_are_refused_before_anything_is_written(name, env, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    with pytest.raises(Refused, match=f"{env} has actions .* choose another task, or an algorithm with") as refused:
        serve(name, "--env", env, "--out", tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
