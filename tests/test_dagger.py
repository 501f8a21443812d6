"""DAgger: its losses, its rounds, who acts and what is kept of it; the expert beside the learner, and who calls it."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exporting import agent_for, content_of, faces
from reference import ACTION, OBSERVATION, random_batch
from served import serving, table, without

from algorithms import bc, dagger
from algorithms.dagger import Config, DAgger
from common import datasets, environments, experts, keyboard, policyfiles, stops, tasks, training
from common.agent import MISSING
from common.errors import Refused
from common.networks import Normaliser
from common.replay import Advised, Episode, Replay, blank

serve = serving(dagger)
CAPACITY = 60


def fresh(prior=None, **values) -> DAgger:
    config = Config(**{"hidden": (8, 8), "batch_size": 6, "steps": CAPACITY} | values)
    size = 4 if config.discrete_actions else ACTION
    return DAgger.create(config, jax.random.key(0), blank(OBSERVATION, size, advised=True), prior)


def steps(count: int, labelled=True, seed: int = 0, capacity: int = CAPACITY) -> Replay:
    """A buffer with so many random steps, of which all or those at `labelled` have a label."""
    batch, advice = random_batch(seed, count), random_batch(seed + 1, count).action
    flags = np.broadcast_to(labelled, count)
    rows = Advised(**vars(batch), advice=advice, labelled=flags)
    return Replay.create(blank(OBSERVATION, ACTION, advised=True), capacity).extend(rows, jnp.ones(count, bool))


def at(over: bool) -> Episode:
    return Episode(jnp.bool_(over), jnp.float32(0), jnp.int32(1))


# ---------------------------------------------------------------- losses


def forward(agent: DAgger, observation: np.ndarray) -> np.ndarray:
    own, x = jax.tree.map(np.asarray, agent.policy.params["params"]), observation
    for name in ("Dense_0", "Dense_1"):
        x = np.tanh(x @ own[name]["kernel"] + own[name]["bias"])
    return x @ own["Dense_2"]["kernel"] + own["Dense_2"]["bias"]


def squared(agent: DAgger) -> float:
    return sum(float(np.square(x).sum()) for x in jax.tree.leaves(agent.policy.params))


def jittered(agent: DAgger) -> DAgger:
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), agent.policy.params)
    return agent.replace(policy=agent.policy.replace(params=params))


def test_the_loss_is_the_papers_with_entropy_and_squares():
    agent, batch = jittered(fresh(entropy_weight=0.2, weight_decay=0.3)), random_batch(5, 7)
    mean, log_std = forward(agent, batch.observation), np.asarray(agent.policy.params["params"]["log_std"])
    log_prob = (
        -0.5 * np.square((batch.action - mean) / np.exp(log_std)) - log_std - 0.5 * np.log(2 * np.pi)
    ).sum(1).mean()  # fmt: skip
    entropy = (log_std + 0.5 * np.log(2 * np.pi * np.e)).sum()
    loss, told = agent.loss(agent.policy.params, batch)
    np.testing.assert_allclose(loss, -log_prob - 0.2 * entropy + 0.5 * 0.3 * squared(agent), rtol=1e-5)
    np.testing.assert_allclose([told["log_prob"], told["entropy"]], [log_prob, entropy], rtol=1e-5)


def test_the_loss_of_discrete_actions_is_the_cross_entropy():
    agent = jittered(fresh(discrete_actions=True, entropy_weight=0.2, weight_decay=0.3))
    chosen = np.array([0, 3, 1, 1, 2])
    batch = random_batch(5, 5).replace(action=np.eye(4, dtype=np.float32)[chosen])
    logits = forward(agent, batch.observation)
    log_all = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    entropy = -(np.exp(log_all) * log_all).sum(1).mean()
    loss, _ = agent.loss(agent.policy.params, batch)
    expected = -log_all[np.arange(5), chosen].mean() - 0.2 * entropy + 0.5 * 0.3 * squared(agent)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(agent.act(batch.observation), np.eye(4)[logits.argmax(1)])


def test_actions_are_drawn_while_collecting_unless_they_are_not():
    seen = random_batch(1, 1).observation[0]
    drawn, plain = (fresh(stochastic=s) for s in (True, False))
    keys = jax.random.split(jax.random.key(0), 400)
    actions = np.asarray(jax.vmap(lambda key: drawn.explore(seen, key))(keys))
    assert np.abs(actions).max() == 1  # a deviation of 1, clipped
    assert 0.5 < actions.std() < 0.9
    np.testing.assert_array_equal(plain.explore(seen, keys[0]), plain.act(seen))
    logits = fresh(discrete_actions=True)
    found = np.asarray(jax.vmap(lambda key: logits.explore(seen, key))(keys)).mean(0)
    np.testing.assert_allclose(found, np.asarray(jax.nn.softmax(forward(logits, seen))), atol=0.08)


# ---------------------------------------------------------------- who acts, and what is kept


@pytest.mark.parametrize(
    ("values", "expected"),
    [({}, [1, 14 / 15, 13 / 15]), ({"linear_rounds": 2}, [1, 0.5, 0]), ({"beta": "exponential"}, [1, 0.7, 0.49])],
)
def test_the_chance_that_the_expert_acts_falls_by_round(values, expected):
    agent = fresh(**values)
    found = [float(agent.replace(round=jnp.int32(k)).chance()) for k in (*range(3), 40)]
    np.testing.assert_allclose(found[:3], expected, rtol=1e-6)
    assert found[3] < 1e-6


def test_by_chance_the_expert_acts_and_its_advice_is_always_a_label():
    agent, (own, advice) = fresh(linear_rounds=4), np.eye(2, ACTION, dtype=np.float32)
    keys = jax.random.split(jax.random.key(1), 2000)
    for round_, share in ((0, 1.0), (1, 0.75), (4, 0.0)):
        agent = agent.replace(round=jnp.int32(round_))
        acts, labelled = jax.vmap(lambda key, agent=agent: agent.defers(own, advice, jnp.bool_(False), key))(keys)
        assert float(acts.mean()) == pytest.approx(share, abs=0.03)
        assert labelled.all()


def test_the_rule_takes_over_at_one_distance_and_gives_back_at_a_smaller():
    """Distances by hand: over 0.5 it takes over, keeps the control above 0.2, and loses it where an episode ends."""
    agent = fresh(gate="rule", threshold=0.5, release=0.4)
    experience = Replay.create(blank(OBSERVATION, ACTION, advised=True), CAPACITY)
    distances = [0.4, 0.6, 0.4, 0.25, 0.15, 0.4, 0.51, 0.3, 0.3]
    over = [False] * 7 + [True, False]
    expected = [False, True, True, True, False, False, True, True, False]
    found = []
    for distance, ends in zip(distances, over, strict=True):
        own = np.zeros(ACTION, np.float32)
        advice = own + np.float32(distance) * np.eye(ACTION, dtype=np.float32)[0]
        acts, labelled = agent.defers(own, advice, jnp.bool_(True), jax.random.key(0))
        assert bool(acts) == bool(labelled)
        found.append(bool(acts))
        row = blank(OBSERVATION, ACTION, advised=True).replace(advice=advice, labelled=labelled)
        experience = experience.insert(row)
        agent = agent.after_episode(at(ends), experience)
    assert found == expected
    assert int(agent.labels) == sum(expected)


def test_a_person_is_the_gate():
    agent, zeros = fresh(gate="person"), np.zeros(ACTION, np.float32)
    for called in (True, False):
        acts, labelled = agent.defers(zeros, zeros + 1, jnp.bool_(called), jax.random.key(0))
        assert (bool(acts), bool(labelled)) == (called, called)
    assert Config(gate="person", steps_per_second=4.0).attended == 4
    assert Config(gate="rule").attended == Config().attended == 0


def test_a_round_ends_with_an_episode_once_it_has_enough_of_both():
    agent = fresh(round_episodes=2, round_steps=5, epochs=3, batch_size=4)
    experience = Replay.create(blank(OBSERVATION, ACTION, advised=True), 12)
    owed = []
    for step in range(1, 13):
        experience = experience.insert(blank(OBSERVATION, ACTION, advised=True).replace(labelled=np.bool_(True)))
        agent = agent.after_episode(at(step in (2, 3, 9, 10)), experience)
        owed.append(int(agent.owed))
        while agent.owed:
            agent, _ = agent.study(experience, None, jax.random.key(0), jnp.int32(100), 100)
    # Two episodes are over at step 3, but no five steps; at 9 both are there. The last step ends the last round.
    assert owed == [0] * 8 + [3 * (9 // 4), 0, 0, 3 * (12 // 4)]
    assert (int(agent.round), int(agent.begun), int(agent.episodes)) == (2, 12, 0)


def test_few_labels_leave_the_round_open():
    agent = fresh(gate="rule", batch_size=4, round_episodes=1, round_steps=1)
    experience = Replay.create(blank(OBSERVATION, ACTION, advised=True), 20)
    for step in range(1, 12):
        row = blank(OBSERVATION, ACTION, advised=True).replace(labelled=np.bool_(step % 3 == 0))
        experience = experience.insert(row)
        agent = agent.after_episode(at(True), experience)
        assert int(agent.owed) == 0  # 3 labels are no minibatch
    experience = experience.insert(row.replace(labelled=np.bool_(True)))
    assert int(agent.after_episode(at(True), experience).owed) == 4


# ---------------------------------------------------------------- rounds


def test_an_epoch_sees_every_label_once_in_a_new_order_and_nothing_else(monkeypatch):
    """Labels only, each at most once an epoch; what fills no minibatch is left out."""
    flags = np.arange(40) % 2 == 0
    experience = steps(40, flags)
    agent = fresh(gate="rule", epochs=3, batch_size=6).replace(owed=jnp.int32(9), labels=jnp.int32(20))
    seen = []

    def noted(self, batch, key, number):
        seen.append(batch)
        return self, {name: jnp.float32(0) for name in ("loss", "log_prob", "entropy")}

    monkeypatch.setattr(DAgger, "update_once", noted)
    with jax.disable_jit():
        while agent.owed:
            agent, _ = agent.study(experience, None, jax.random.key(2), jnp.int32(100), 100)
    assert len(seen) == 9
    advice = np.asarray(experience.rows.advice)[:40]
    epochs = []
    for epoch in range(3):
        actions = np.concatenate([np.asarray(batch.action) for batch in seen[3 * epoch : 3 * epoch + 3]])
        index = [int(np.flatnonzero((advice == action).all(1))[0]) for action in actions]
        assert len(set(index)) == 18
        assert flags[index].all()
        observations = np.concatenate([np.asarray(b.observation) for b in seen[3 * epoch : 3 * epoch + 3]])
        np.testing.assert_array_equal(observations, np.asarray(experience.rows.observation)[index])
        epochs.append(index)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [sorted(e) for e in epochs] != [list(range(0, 36, 2))] * 3  # nor is it always the same that is left out


@pytest.mark.parametrize("with_prior", [False, True])
def test_where_a_call_ends_changes_no_number(with_prior):
    experience, prior = steps(40), random_batch(9, 11) if with_prior else None
    agent = fresh(prior, epochs=2, normalise=True)
    agent = agent.replace(owed=jnp.int32(2 * ((40 + 11 * with_prior) // 6)))
    study = jax.jit(lambda agent, most: agent.study(experience, prior, jax.random.key(2), most, 50))
    ways = []
    for most in (1, 4, 100):
        mine, losses = agent, []
        while mine.owed:
            mine, metrics = study(mine, most)
            losses.append(metrics["loss"][metrics["loss"] != MISSING])
        ways.append((mine, np.concatenate(losses)))
    for other, losses in ways[1:]:
        jax.tree.map(np.testing.assert_array_equal, ways[0][0], other)
        np.testing.assert_array_equal(ways[0][1], losses)
    assert len(ways[0][1]) == agent.owed
    assert int(ways[0][0].policy.opt_state.count) == agent.owed
    rows = experience.rows.observation[:40]
    expected = Normaliser.of(rows if prior is None else jnp.concatenate([prior.observation, rows]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), ways[0][0].normal, expected)
    idle, metrics = study(ways[0][0], 5)
    jax.tree.map(np.testing.assert_array_equal, idle, ways[0][0])
    assert all((x == MISSING).all() for x in metrics.values())


def test_more_labels_per_step_than_there_can_be_are_refused():
    assert Config(batch_size=100, steps=99).problem() == ("--batch-size 100 is more labels than --steps 99 can have")


# ---------------------------------------------------------------- whole runs

PENDULUM = (
    "--env InvertedPendulum-v5 --hidden 8 --round-steps 30 --round-episodes 2 --batch-size 8 --epochs 2 "
    "--linear-rounds 3 --steps 200 --eval-every 100 --eval-episodes 2 --log-every 50"
).split()


@pytest.fixture(scope="module")
def expert(tmp_path_factory):
    """The policy file of an expert that falls soon, so that rounds are short."""
    path = tmp_path_factory.mktemp("expert") / "0.npz"
    policyfiles.save(path, *content_of(agent_for(("rlpd", {}), sizes=(4, 1)), faces(4, 1)))
    return path


@pytest.fixture(scope="module")
def whole(expert, tmp_path_factory):
    """Two runs side by side."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    status, said = serve(*PENDULUM, "--expert", expert, "--num-seeds", 2, "--devices", 1, "--out", out)
    assert status == 0
    assert f"labels in {out}/labels: others learn from them with --dataset {out}/labels/0.npz" in said
    return out


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_the_rounds_of_a_run_and_its_labels(whole, expert):
    rows = table(whole / "metrics.csv", run=0)
    assert [row["step"] for row in rows] == ["50", "100", "150", "200"]
    assert [float(row["beta"]) for row in rows] == sorted((float(row["beta"]) for row in rows), reverse=True)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert json.loads((whole / "summary.json").read_text())["labels"] == ["labels/0.npz", "labels/1.npz"]
    told = json.loads((whole / "config.json").read_text())["expert"]
    assert told["name"].startswith("rlpd on Line-v0, seed 0")
    assert len(told["sha256"]) == 64
    for run in (0, 1):
        own = arrays(whole / "labels" / f"{run}.npz")
        assert len(own["rewards"]) == 200
        # The expert's answer at every state, whoever acted; who did changes from only the expert to only the learner.
        policy = experts.find(str(expert), tasks.find("InvertedPendulum-v5"), environment := made()).make()
        asked = np.stack([policy(environment, seen) for seen in own["observations"]])
        np.testing.assert_allclose(own["actions"], environment.scaled(asked), rtol=1e-5)
        same = (own["executed"] == own["actions"]).all(axis=1)
        assert same[:30].all()
        assert not same[-30:].any()
        environment.close()


def made(name="InvertedPendulum-v5"):
    return environments.make(tasks.find(name))


def test_what_was_labelled_is_data_that_others_read(whole, tmp_path):
    path = whole / "labels" / "1.npz"
    data = datasets.load(tasks.find("InvertedPendulum-v5"), str(path))
    own = arrays(path)
    np.testing.assert_allclose(data.action, own["actions"] / 3, rtol=1e-5)
    np.testing.assert_array_equal(data.observation, own["observations"])
    np.testing.assert_array_equal(data.next_observation, own["next_observations"])
    np.testing.assert_array_equal(data.terminated, own["terminals"])
    assert data.truncated.tolist() == [False] * 199 + [not own["terminals"][-1]]
    flags = "--env InvertedPendulum-v5 --hidden 8 --batch-size 8 --offline-steps 5 --eval-every 5 --eval-episodes 1"
    assert serving(bc)(*flags.split(), "--dataset", path, "--out", tmp_path / "bc")[0] == 0
    # And as demonstrations to begin from.
    more = ["--expert", whole / "policies" / "0.npz", "--dataset", path, "--offline-steps", 5]
    assert serve(*PENDULUM, *more, "--out", tmp_path / "both")[0] == 0
    rows = table(tmp_path / "both" / "metrics.csv")
    assert float(rows[-1]["labels"]) > 200 + 100


def test_a_seed_is_bitwise_the_same_alone_and_in_a_group(whole, expert, tmp_path):
    serve(*PENDULUM, "--expert", expert, "--seed", 1, "--out", tmp_path / "alone")
    for name in ("metrics.csv", "eval.csv"):
        assert without(table(tmp_path / "alone" / name), "run") == without(table(whole / name, run=1), "run")


@pytest.mark.parametrize("calls", [pytest.param(3, marks=pytest.mark.every), 12, 40])
def test_a_run_goes_on_from_the_midst_of_a_rounds_updates(calls, whole, expert, tmp_path, monkeypatch):
    """A signal between two calls of updates, of which each is one; rows, labels and policies are those of the whole."""
    count, owed = [0], training.Session.owed

    def signalled(self):
        found = owed(self)
        count[0] += bool(found.any())
        if count[0] == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    out = tmp_path / "run"
    monkeypatch.setattr(training, "CALL_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(training.Session, "owed", signalled)
        status, said = serve(*PENDULUM, "--expert", expert, "--num-seeds", 2, "--devices", 1, "--out", out)
    assert status == 128 + signal.SIGTERM
    assert "continue with" in said
    assert serve("--resume", out)[0] == 0
    for name in ("metrics.csv", "eval.csv"):
        assert table(out / name) == table(whole / name)
    for run in (0, 1):
        jax.tree.map(
            np.testing.assert_array_equal, *(arrays(folder / "labels" / f"{run}.npz") for folder in (out, whole))
        )


def test_an_expert_that_has_changed_is_noticed(expert, tmp_path, monkeypatch):
    own = tmp_path / "0.npz"
    own.write_bytes(expert.read_bytes())
    save = training.Session.save
    monkeypatch.setattr(training.Session, "save", lambda self: (save(self), os.kill(os.getpid(), signal.SIGTERM)))
    assert serve(*PENDULUM, "--expert", own, "--out", tmp_path / "run")[0] == 128 + signal.SIGTERM
    monkeypatch.undo()
    policyfiles.save(own, *content_of(agent_for(("td3_bc", {}), sizes=(4, 1)), faces(4, 1)))
    with pytest.raises(Refused, match="its expert has changed since it began"):
        serve("--resume", tmp_path / "run")


def test_the_rule_labels_only_what_its_expert_does(expert, tmp_path):
    flags = [
        "--checkpoint-every",
        0,
        "--gate",
        "rule",
        "--threshold",
        0.8,
        "--release",
        0.5,
        "--expert",
        expert,
        "--out",
        tmp_path / "run",
    ]
    assert serve(*PENDULUM, *flags)[0] == 0
    own = arrays(tmp_path / "run" / "labels" / "0.npz")
    assert 10 < len(own["rewards"]) < 200
    np.testing.assert_array_equal(own["executed"], own["actions"])
    data = datasets.load(tasks.find("InvertedPendulum-v5"), str(tmp_path / "run" / "labels" / "0.npz"))
    ends = data.terminated | data.truncated
    joined = (data.next_observation[:-1] == data.observation[1:]).all(axis=1)
    np.testing.assert_array_equal(joined, ~ends[:-1])
    assert float(table(tmp_path / "run" / "metrics.csv")[-1]["labels"]) <= len(own["rewards"])


# ---------------------------------------------------------------- experts


@pytest.mark.parametrize("name", ["pointmaze-umaze", "pointmaze-large", "hopper-medium", "cartpole-mixed"])
def test_a_tasks_own_expert_is_one_and_asks_nothing_of_the_past(name):
    environment = made(name)
    ask, again = (experts.find("", tasks.find(name), environment).make() for _ in range(2))
    observation, over, solved, return_ = environment.reset(1), False, False, 0.0
    while not over:
        action = ask(environment, observation)
        assert action.dtype == np.float32
        assert np.abs(action).max() <= 1
        if np.random.default_rng(environment._steps).random() < 0.05:
            np.testing.assert_array_equal(again(environment, observation), action)
        step = environment.step(action)
        observation, over = step.next_observation, step.terminated or step.truncated
        solved, return_ = solved or step.success, return_ + step.reward
    environment.close()
    assert environment.task.score(return_, bool(solved)) > 80


def test_the_planner_goes_where_the_goal_is_seen():
    environment = environments.make(tasks.find("pointmaze-umaze"), 6)
    ask = experts.find("", environment.task, environment).make()
    for seed in range(3):
        observation, over = environment.reset(seed), False
        while not over:
            step = environment.step(ask(environment, observation))
            observation, over = step.next_observation, step.terminated or step.truncated
        assert step.success
    environment.close()


def test_the_ants_expert_knows_the_goal_of_each_episode():
    environment = made("antmaze-umaze")
    ask = experts.find("", environment.task, environment).make()
    seen = environment.reset(0)
    for seed in range(4):
        environment.reset(seed)
        ask(environment, seen)
        np.testing.assert_array_equal(ask.waypoints[1].goal, environment.goal)
    with_goal = environments.make(environment.task, 31)
    with pytest.raises(Refused, match="has no expert of its own"):
        experts.find("", with_goal.task, with_goal)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--env Pendulum-v1", r"--env Pendulum-v1 has no expert of its own: name one with --expert"),
        ("--env Pendulum-v1 --expert {expert}", r"it sees 4 numbers and 1 per action, Pendulum-v1 has 3 numbers and 1"),
        ("--env hopper-medium --expert nowhere", r"nowhere: neither a run directory"),
        ("--env hopper-medium --dataset npz:some.npz", r"nothing is learnt from data with --offline-steps 0"),
        ("--env hopper-medium --gate person", r"standard input is none"),
        ("--env hopper-medium --gate person --num-seeds 2", r"one person can decide for one run, not for 2"),
        ("--env cartpole-mixed --no-discrete-actions", r"has actions Discrete"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(flags, said, expert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115 - closed with the process
    with pytest.raises(Refused, match=said) as refusal:
        serve(*flags.format(expert=expert).split(), "--hidden", 8, "--out", tmp_path / "run")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- somebody at the terminal

ATTENDED = (
    "--env cartpole-mixed --hidden 8 --gate person --steps-per-second 200 --round-steps 20 --round-episodes 1 "
    "--batch-size 4 --eval-every 100000 --eval-episodes 1 --log-every 50"
).split()


class Terminal:
    """A pseudo-terminal with dagger.py at it."""

    def __init__(self, *flags):
        self.ours, self.its = pty.openpty()
        self.before = termios.tcgetattr(self.its)
        command = [sys.executable, dagger.__file__, *ATTENDED, *map(str, flags)]
        alone = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")}
        self.process = subprocess.Popen(
            command, stdin=self.its, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=alone, text=True
        )

    def wait_for(self, true, seconds=90):
        end = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < end
            time.sleep(0.02)

    @property
    def is_listening(self):
        return not termios.tcgetattr(self.its)[3] & termios.ICANON

    def is_as_it_was(self):
        return termios.tcgetattr(self.its) == self.before

    def press(self, keys):
        os.write(self.ours, keys)

    def end(self):
        said = self.process.communicate(timeout=90)[0]
        back = self.is_as_it_was()
        os.close(self.ours)
        os.close(self.its)
        return self.process.returncode, said, back


def test_somebody_takes_over_and_gives_back_and_gets_the_terminal_back(tmp_path):
    def rows():
        path = tmp_path / "run" / "metrics.csv"
        return len(table(path)) if path.exists() else 0

    terminal = Terminal("--steps", 600, "--out", tmp_path / "run")
    terminal.wait_for(lambda: rows() >= 1)
    assert terminal.is_listening
    terminal.press(b"x ")  # another key says nothing
    terminal.wait_for(lambda: rows() >= 4)
    terminal.press(b" ")
    status, said, back = terminal.end()
    assert (status, back) == (0, True), said
    own = arrays(tmp_path / "run" / "labels" / "0.npz")
    assert 50 < len(own["rewards"]) <= 550
    np.testing.assert_array_equal(own["executed"], own["actions"])


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_the_terminal_is_put_back_at_a_signal(numbers, tmp_path):
    """At the first, which writes a checkpoint, and at a second, which ends the process there and then."""
    terminal = Terminal("--steps", 100_000, "--out", tmp_path / "run")
    terminal.wait_for(lambda: terminal.is_listening)
    for number in numbers:
        terminal.process.send_signal(number)
    status, said, back = terminal.end()
    assert (status, back) == (128 + numbers[-1], True), said


def test_a_terminal_that_goes_away_is_no_other_error(monkeypatch):
    ours, its = pty.openpty()
    with os.fdopen(its) as file:
        monkeypatch.setattr(sys, "stdin", file)
        keys = keyboard.Keys(1000.0)
        with keys.listening():
            os.close(ours)
            assert keys.pressed() == ""
        assert stops._undoings == []


def test_the_terminal_is_put_back_at_an_error(monkeypatch):
    ours, its = pty.openpty()
    before = termios.tcgetattr(its)
    with os.fdopen(its) as file:
        monkeypatch.setattr(sys, "stdin", file)

        def listen():
            keys = keyboard.Keys(1000.0)
            with keys.listening():
                assert not termios.tcgetattr(its)[3] & termios.ICANON
                os.write(ours, b" a")
                time.sleep(0.01)
                assert [keys.pressed(), keys.pressed()] == [" a", ""]
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            listen()
        assert termios.tcgetattr(its) == before
        assert stops._undoings == []
    os.close(ours)
