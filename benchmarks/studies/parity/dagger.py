"""dagger.py against HumanCompatibleAI/imitation: `BC.train`, k minibatches; and the rounds of `SimpleDAggerTrainer`.

Rounds are played in an environment whose states depend on what is done, with the same draws of who acts and the same
two policies on both sides: which states and labels come together, in which rounds, with how many gradient steps each.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.studies.parity import harness as h  # isort: skip  # it sets the precision before JAX is used

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box, Discrete

from algorithms.dagger import Config, DAgger
from common.replay import Advised, Episode, Replay, blank

SIZE = 64
LENGTHS = (7, 5, 9, 4, 6, 8)
"""Of the episodes, over and over."""
ROUNDS = {"round_episodes": 2, "round_steps": 10, "epochs": 3, "batch_size": 4, "linear_rounds": 3}

torch = h.pytorch()
if h.BITS == 64:
    torch.Tensor.float = torch.Tensor.double  # to which their policies bring what they see
h.stub("datasets", "jsonpickle", "huggingface_sb3", "seals", "sacred")
bc, dagger, base = h.theirs(
    "imitation/src", "imitation.algorithms.bc", "imitation.algorithms.dagger", "imitation.policies.base"
)


def policy_of(observations: int, actions: Any) -> Any:
    """Their policy for so many numbers seen and a space of actions, moved a little."""
    seen = Box(-np.inf, np.inf, (observations,), h.REAL)
    made = base.FeedForward32Policy(seen, actions, lambda _: 1e-3)
    h.jitter_torch([made], 0.1)
    return made


def tree(policy: Any) -> h.Tree:
    """Its parameters, but for the value's, as ours."""
    hidden = [layer for layer in policy.mlp_extractor.policy_net if hasattr(layer, "weight")]
    layers = {f"Dense_{k}": h.linear(layer) for k, layer in enumerate([*hidden, policy.action_net])}
    deviation = getattr(policy, "log_std", None)
    return {"params": layers if deviation is None else layers | {"log_std": jnp.asarray(deviation.detach().numpy())}}


def cloning(case: str, discrete: bool, **values: float) -> None:
    """Losses and parameters after one and five updates, of a Gaussian or of logits."""
    table = h.Table(f"dagger/{case}")
    policy = policy_of(h.OBSERVATION, Discrete(h.ACTION) if discrete else Box(-1, 1, (h.ACTION,), h.REAL))
    config = Config(discrete_actions=discrete, batch_size=SIZE, **values)
    trainer = bc.BC(
        observation_space=policy.observation_space, action_space=policy.action_space, rng=np.random.default_rng(0),
        policy=policy, batch_size=SIZE, ent_weight=float(config.entropy_weight), l2_weight=float(config.weight_decay),
    )  # fmt: skip
    data = h.batches(5, SIZE)
    if discrete:
        data = [d | {"action": np.eye(h.ACTION, dtype=h.REAL)[d["action"].argmax(-1)]} for d in data]
    start, reached, logs, loss = tree(policy), [], [], trainer.loss_calculator

    def told(*inputs: Any) -> Any:
        logs.append(loss(*inputs))
        return logs[-1]

    trainer.loss_calculator = told
    shown = [{"obs": d["observation"], "acts": d["action"].argmax(-1) if discrete else d["action"]} for d in data]
    trainer.set_demonstrations(shown)
    trainer.train(n_epochs=1, progress_bar=False, on_batch_end=lambda: reached.append(tree(policy)))

    ours = DAgger.create(config, jax.random.key(0), h.example(), None)
    ours = ours.replace(policy=h.fresh(ours.policy, start))
    params, infos = h.followed(ours, [minibatch(d) for d in data], ["policy"])
    table.scalar("log likelihood (1st)", infos[0]["log_prob"], -logs[0].neglogp.detach())
    table.scalar("entropy (1st)", infos[0]["entropy"], logs[0].entropy.detach())
    table.changes(params, [{"policy": x} for x in reached], {"policy": start}, at=(1, 5))


def minibatch(columns: dict[str, np.ndarray]) -> Any:
    """One minibatch as `Agent.update` takes it."""
    return blank(h.OBSERVATION, h.ACTION).replace(**h.stacked([columns]))


class Drift(gymnasium.Env):
    """A state that what is done moves; episodes of LENGTHS, which end by time."""

    observation_space, action_space = Box(-np.inf, np.inf, (2,), h.REAL), Box(-1, 1, (1,), h.REAL)

    def __init__(self) -> None:
        self.episode, self.has_begun = -1, True

    def reset(self, **_: Any) -> tuple[np.ndarray, dict]:
        """The first state of the next episode; of the same, if nothing was done in it: theirs begins one too many at
        the end of each round."""
        self.episode, self.has_begun = self.episode + self.has_begun, False
        self.state, self.left = np.array([1.0 + self.episode, 0.0], h.REAL), LENGTHS[self.episode % len(LENGTHS)]
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """The state after an action [1]."""
        self.has_begun = True
        self.state, self.left = self.state * 0.9 + np.array([0.1, action[0]], h.REAL), self.left - 1
        return self.state, 0.0, False, self.left == 0, {}


def expert(state: np.ndarray) -> np.ndarray:
    """What the expert does at states [n, 2], [n, 1]."""
    return np.cos(3 * state[:, :1] + state[:, 1:])


def novice(state: np.ndarray) -> np.ndarray:
    """What the learner does."""
    return np.sin(state[:, :1] - state[:, 1:])


class Draws:
    """Who acts: the same numbers for both sides, in their order."""

    def __init__(self) -> None:
        self.rng, self.names = np.random.default_rng(3), np.random.default_rng(4)

    def uniform(self, *_: Any, **__: Any) -> np.ndarray:
        """Of [0, 1), [1]."""
        return self.rng.uniform(size=1)

    def bytes(self, count: int) -> bytes:
        """For the names of files."""
        return self.names.bytes(count)

    def shuffle(self, episodes: list) -> None:
        """Of those of a round, for what is told of them."""


def rounds_of_theirs(total: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Gradient steps of each round, and the states [n, 2] and labels [n, 1] of all, in their order."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    policy, asked = (policy_of(2, Drift.action_space) for _ in range(2))
    for who, acts in ((policy, novice), (asked, expert)):
        who.predict = lambda seen, *_, acts=acts, **__: (acts(seen), None)
    trainer = bc.BC(
        observation_space=Drift.observation_space, action_space=Drift.action_space, rng=np.random.default_rng(0),
        policy=policy, batch_size=ROUNDS["batch_size"],
    )  # fmt: skip
    kept: dict[str, Any] = {}  # what they write by Hugging Face's datasets

    def save(path: Path, episodes: list) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        kept[path.name] = episodes

    dagger.serialize.save, dagger.serialize.load = save, lambda path: kept[path.name]
    updates, step = [0], trainer.optimizer.step
    trainer.optimizer.step = lambda: (step(), updates.append(updates.pop() + 1))[0]
    with tempfile.TemporaryDirectory() as folder:
        whole = dagger.SimpleDAggerTrainer(
            venv=DummyVecEnv([Drift]), scratch_dir=folder, expert_policy=asked, rng=Draws(), bc_trainer=trainer,
            beta_schedule=dagger.LinearBetaSchedule(ROUNDS["linear_rounds"]),
        )  # fmt: skip
        extend = whole.extend_and_update

        def extended(arguments: Any) -> Any:
            found = extend(arguments)
            updates.append(0)
            return found

        whole.extend_and_update = extended
        told = {"n_epochs": ROUNDS["epochs"], "progress_bar": False, "log_rollouts_venv": None}
        whole.train(
            total, rollout_round_min_episodes=ROUNDS["round_episodes"], bc_train_kwargs=told,
            rollout_round_min_timesteps=ROUNDS["round_steps"],
        )  # fmt: skip
    # Their files have random names, and so the episodes of a round an order of their own.
    episodes = sorted(whole._all_demos, key=lambda episode: episode.obs[0, 0])
    states = np.concatenate([episode.obs[:-1] for episode in episodes])
    return updates[:-1], states, np.concatenate([episode.acts for episode in episodes])


def rounds_of_ours(total: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The same."""
    example = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(h.REAL), blank(2, 1, advised=True))
    config = Config(steps=total, **ROUNDS)
    agent, experience = DAgger.create(config, jax.random.key(0), example, None), Replay.create(example, total)
    agent = agent.replace(policy=h.fresh(agent.policy, agent.policy.params))
    study = jax.jit(lambda agent, rows, key: agent.study(rows, None, key, jnp.int32(1000), 1000))
    draws, environment, updates = Draws(), Drift(), []
    state, _ = environment.reset()
    for _ in range(total):
        own, advice = (who(state[None])[0] for who in (novice, expert))
        with h.mock.patch.object(jax.random, "uniform", lambda *_, **__: draws.uniform()[0]):
            acts, labelled = agent.defers(own, advice, jnp.bool_(False), jax.random.key(0))
        done = advice if acts else own
        after, _, _, over, _ = environment.step(done)
        rows = (np.asarray(x, h.REAL) for x in (state, done, 0.0, 1.0, after))
        experience = experience.insert(Advised(*rows, advice=advice, labelled=labelled))
        agent = agent.after_episode(Episode(jnp.bool_(over), jnp.float32(0), jnp.int32(0)), experience)
        if agent.owed:
            updates.append(int(agent.owed))
            while agent.owed:
                agent, _ = study(agent, experience, jax.random.key(1))
        state = environment.reset()[0] if over else after
    rows, labelled = agent.aggregated(experience, None)
    assert labelled.all()
    return updates, np.asarray(rows.observation), np.asarray(rows.action)


def rounds() -> None:
    """Both, until the last of theirs is over."""
    table = h.Table("dagger/rounds")
    total = sum(LENGTHS) * 3
    theirs = rounds_of_theirs(total)
    ours = rounds_of_ours(len(theirs[1]))
    differ = sum(one != other for one, other in itertools.zip_longest(ours[0], theirs[0]))
    table.row("rounds with other numbers of gradient steps", differ, f"of {len(theirs[0])}")
    for name, own, other in zip(("states", "labels"), ours[1:], theirs[1:], strict=True):
        table.row(f"aggregated {name}", float(np.abs(own - other).max() / np.abs(other).max()), f"{len(other)} rows")


if __name__ == "__main__":
    bc.BCLogger.log_batch = lambda *_, **__: None  # tables on the terminal
    rounds()
    cloning("imitation, Gaussian", False)
    cloning("imitation, discrete", True)
    cloning("seals", False, weight_decay=1e-4)
