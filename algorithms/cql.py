"""CQL: an actor-critic whose critics give low values to actions that are not in the data; and Cal-QL, calibrated CQL.

Kumar, Zhou, Tucker & Levine, "Conservative Q-Learning for Offline Reinforcement Learning", NeurIPS 2020
(arXiv:2006.04779), in its form CQL(H). Per gradient step, all from the parameters before it,

    L_pi = mean_b [ alpha log pi(a~|s) - min_i Q_i(s, a~) ],  a~ ~ pi(.|s)                   CQL.actor_loss
    min_alpha  log(alpha) (mean_b H - H_target),  H = -log pi(a~|s),  H_target = -|A|        CQL.temperature_loss
    y    = r + gamma m min_i Q'_i(s', a'),  a' ~ pi(.|s')                                    CQL.target
    C_i  = mean_b max(log sum_k exp(Q_i(s, a_k) - log p(a_k)) - Q_i(s, a), least)            CQL.difference
    L_Q  = sum_i [ mean_b (Q_i(s, a) - y)^2 + w C_i ]                                        CQL.critic_loss

and one step of the targets. m is the mask, 0 where an episode terminated. The a_k are `--actions` actions of each of
three sources: uniform, pi(.|s) and pi(.|s'); all are evaluated at s, and p is the density that they were drawn with.
`--lagrange` multiplies w by a number beta that keeps C near `--gap`, tau in the paper:

    max_beta  beta w (mean_i C_i - tau)                                                      CQL.multiplier_loss

`--max-target` takes the greatest of `--actions` actions a' in y. For the first `--cloning-steps` the actor clones: its
loss has log pi(a|s) for min_i Q_i(s, a~).

`--calibrated`, `--preset calql`, is Nakamoto et al., "Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online
Fine-Tuning", NeurIPS 2023 (arXiv:2303.05479): in C_i, the values of the policy's actions, from pi(.|s) and pi(.|s'),
are at least R, the discounted return from (s, a) on; where R is greater, nothing pushes the value down. The last reward
of an episode that did not terminate goes on for ever: one that only fails has R = r / (1 - gamma) throughout.
`--online-steps N` goes on in the environment; `--offline-ratio` of each minibatch is data. R is known once an episode
is over: with `--calibrated` the present episode is not drawn yet, and in the first one minibatches are all data.

Settings are CORL's in locomotion, and Cal-QL's in AntMaze and binary Adroit, where its code has them for CQL, too.
`--preset authors-code` has those of CQL's code. None that is published works on dense Adroit (CORL: pen-expert -1).

Differences. This is JaxCQL's, CORL's and Cal-QL's form of L_Q, y and beta; in CQL's own code beta begins at 1 instead
of e, losses see the temperatures just updated, and the greatest value is taken per critic before the minimum. Hidden
layers begin Xavier-uniform, the last ones within 0.01 of 0; theirs orthogonal. In AntMaze, CORL's critics have five
layers and its C_i ends at -200; it rescales the rewards of hopper-medium alone. Cal-QL ends R where an episode is cut,
unless it only fails, cuts binary Adroit's data where they are solved, and terminates there; here episodes go on.

Published, on D4RL's -v2 data (CORL's README, final scores): hopper-medium 59, halfcheetah-medium 47, walker2d-medium
81, AntMaze, mean of six, 51; AntMaze before and after a million steps online, CQL 48 and 96, Cal-QL 53 and 97. Measured
on recipes, in small (benchmarks/results/lecture.md): pointmaze-medium 3, hopper-medium-replay 18.

    python algorithms/cql.py --env hopper-medium
    python algorithms/cql.py --env antmaze-medium-play --preset calql
"""

from __future__ import annotations

from typing import Any, Self

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from common import command, presets, replay, tasks
from common.agent import Agent, Hyperparameters, Metrics, static, traced
from common.datasets import Dataset, transforms
from common.networks import Critic, Ensemble, Network, Normaliser, Parameters, Scalar, TanhNormalActor
from common.replay import Batch, Episode, Replay
from common.tasks import Task


class Config(Hyperparameters):
    """Those of both papers and their code."""

    learning_rate: float = 3e-4  # Adam's step size, for critics and multiplier
    actor_learning_rate: float = 1e-4  # Adam's step size, for actor and temperature
    discount: float = 0.99  # discount factor (gamma); R of the data has this value, also where a grid varies it
    target_rate: float = 0.005  # step of the target critics towards the online ones
    weight: float = traced(5.0, "[0, inf)")  # of the conservative term (w; the paper's alpha)
    gap: float = 0.8  # what the multiplier keeps the conservative term near (tau)
    least_difference: float = -1e9  # where the conservative term of a transition is cut off (least)
    target_entropy_per_action: float = -1.0  # target entropy divided by the number of action dimensions
    reward_scale: float = static(1.0, "(0, inf)")  # rewards are multiplied by it,
    reward_shift: float = static(0.0)  # and this is added
    hidden: tuple[int, ...] = (256, 256, 256)  # width of each hidden layer of the critics
    actor_hidden: tuple[int, ...] = (256, 256, 256)  # width of each hidden layer of the actor
    actions: int = 10  # per source in the conservative term, and in the target with --max-target
    lagrange: bool = False  # learn a multiplier of the conservative term's weight
    max_target: bool = False  # the greatest value of several actions in the target
    calibrated: bool = False  # Cal-QL: values of the policy's actions are at least the data's returns
    normalise: bool = False  # normalise observations with the data's mean and standard deviation
    offline_ratio: float = static(0.5, "[0, 1]")  # share of each minibatch online that is data
    batch_size: int = 256  # transitions per gradient step
    utd: int = 1  # gradient steps per environment step
    cloning_steps: int = 0  # gradient steps on the data in which the actor clones
    offline_steps: int = 1_000_000  # gradient steps on the data after those
    online_steps: int = 0  # environment steps afterwards

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Their names and steps."""
        return ("cloning", self.cloning_steps), *super().phases

    def conflict(self) -> str | None:
        """Which values do not go together, in one line."""
        if self.calibrated and not self.discount < 1:
            return "--calibrated needs returns of episodes that go on for ever, and those a --discount below 1"
        return None

    def scaled(self, reward: Any) -> Any:
        """Rewards as they are learnt."""
        return self.reward_scale * reward + self.reward_shift


# Of -1 and 0, the rewards of tasks that are solved or not, -5 and 5.
GOAL = {"max_target": True, "reward_scale": 10.0, "reward_shift": 5.0, "eval_episodes": 100}

PRESETS: dict[str, dict[str, Any]] = {
    # By task family.
    "locomotion": {"weight": 10.0, "actor_learning_rate": 3e-5, "normalise": True},
    "antmaze": GOAL | {"lagrange": True, "hidden": (256,) * 4, "actor_hidden": (256, 256), "eval_every": 50_000},
    "adroit-binary": GOAL | {"weight": 1.0, "hidden": (512,) * 3, "actor_hidden": (512, 512), "offline_steps": 20_000},
    # Ours: small networks for a small maze, with RLPD's discount there.
    "pointmaze": GOAL | {"lagrange": True, "discount": 0.995, "hidden": (128, 128), "actor_hidden": (128, 128)}
    | {"offline_steps": 50_000, "eval_every": 5000},
    # By algorithm, with --preset: laid over the family's.
    "calql": {"calibrated": True},
    "authors-code": {
        "weight": 5.0, "actor_learning_rate": 1e-4, "normalise": False, "max_target": False, "hidden": (256,) * 3,
        "actor_hidden": (256,) * 3, "cloning_steps": 40_000, "offline_steps": 2_960_000,
    },
    # By algorithm and task: laid over the algorithm's.
    **presets.each("calql", ("antmaze",), tasks.ANT_VARIANTS, online_steps=1_000_000),
    **presets.each("calql", ("door", "relocate"), ("binary",), online_steps=1_000_000),
    "calql/pen-binary": {"online_steps": 200_000},
    # Their threshold 5 is of the weighted term.
    **presets.each("authors-code", ("antmaze",), tasks.ANT_VARIANTS, gap=1.0, reward_scale=4.0, reward_shift=2.0),
}  # fmt: skip


class Rows(Batch):
    """Transitions with what became of them."""

    return_to_go: jax.Array
    """[...]: R, in rewards as they are learnt."""


class CQL(Agent):
    """Actor, two critics and their targets, temperature, and the multiplier."""

    config: Config
    normal: Normaliser
    actor: Network
    critic: Ensemble
    target_critic: Ensemble
    temperature: Network
    multiplier: Network | None
    """None without --lagrange."""
    returns: jax.Array | None
    """[online_steps]: R of the experience, as far as it is known; None without --calibrated."""
    finished: jax.Array | None
    """int32 []: rows of the experience whose episodes are over; None without --calibrated."""

    @staticmethod
    def prepare(config: Config, data: Dataset, task: Task) -> Batch:
        """The data, with their returns if values are calibrated."""
        rows = data.batch(task)
        if not config.calibrated:
            return rows
        reward, discount = config.scaled(rows.reward), float(config.discount)
        return Rows(**vars(rows), return_to_go=transforms.returns_to_go(data, reward, discount, continued=True))

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Batch) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        c = config
        actor_key, critic_key, temperature_key, multiplier_key = jax.random.split(key, 4)
        policy = TanhNormalActor(c.actor_hidden, example.action.shape[-1], last_bound=1e-2, first_log_std=-1.0)
        module = Critic(c.hidden, last_bound=1e-2)
        critic = Ensemble.create(module, critic_key, example.observation, example.action, members=2)
        return cls(
            c, Normaliser.of(prior.observation, c.normalise), Network.create(policy, actor_key, example.observation),
            critic, critic.target(), Network.create(Scalar(), temperature_key),
            Network.create(Scalar(), multiplier_key, jnp.e) if c.lagrange else None,
            jnp.zeros(c.online_steps) if c.calibrated else None, jnp.int32(0) if c.calibrated else None,
        )  # fmt: skip

    def act(self, observation: jax.Array) -> jax.Array:
        """The mode of pi(. | s)."""
        return self.actor(self.normal(observation)).mode()

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """A sample of pi(. | s)."""
        return self.actor(self.normal(observation)).sample(key)

    def sample(self, key: jax.Array, experience: Replay | None, prior: Batch) -> Batch:
        """Uniform minibatches, normalised, with rewards to scale; online, a fixed share of data."""
        c = self.config
        data = replay.sample(key, prior, prior.reward.shape[0], (1 if experience is None else c.utd, c.batch_size))
        if experience is not None:
            if c.calibrated:
                experience = Replay(Rows(**vars(experience.rows), return_to_go=self.returns), self.finished)
            mixed = replay.sample_mixed(key, experience, prior, c.utd, c.batch_size, c.offline_ratio)
            known = experience.size > 0
            data = jax.tree.map(lambda x, y: jnp.where(known, x, y), mixed, data) if c.calibrated else mixed
        return data.replace(reward=c.scaled(data.reward)).normalised(self.normal)

    def after_episode(self, episode: Episode, experience: Replay) -> Self:
        """The newest reward is added to R of the episode's rows so far, and those of an episode that is over count."""
        c = self.config
        if not c.calibrated:
            return self
        newest = experience.inserted - 1
        reward, mask = c.scaled(experience.rows.reward[newest]), experience.rows.mask[newest]
        reward = jnp.where(episode.over & (mask > 0), reward / (1 - c.discount), reward)
        age = newest - jnp.arange(self.returns.shape[0])
        share = jnp.where((age >= 0) & (age < episode.length), c.discount ** jnp.maximum(age, 0), 0.0)
        finished = jnp.where(episode.over, experience.inserted, self.finished)
        return self.replace(returns=self.returns + share * reward, finished=finished)

    def draw(self, observation: jax.Array, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """`count` actions of pi for observations [batch, o]: [count, batch, a], and log densities [count, batch]."""
        policy = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), self.actor(observation))
        return policy.sample_and_log_prob(key)

    def target(self, batch: Batch, key: jax.Array) -> jax.Array:
        """The regression target y, [batch]."""
        c = self.config
        next_action, _ = self.draw(batch.next_observation, key, c.actions if c.max_target else 1)
        repeated = jnp.broadcast_to(batch.next_observation, (*next_action.shape[:-1], batch.observation.shape[-1]))
        next_q = self.target_critic(repeated, next_action).min(axis=0).max(axis=0)
        chex.assert_equal_shape((batch.reward, batch.mask, next_q))
        return batch.reward + c.discount * batch.mask * next_q

    def candidates(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The actions a_k [3 actions, batch, a], uniform ones first, and the logarithms of p [3 actions, batch]."""
        uniform_key, present_key, next_key = jax.random.split(key, 3)
        shape = self.config.actions, *batch.action.shape
        uniform = jax.random.uniform(uniform_key, shape, minval=-1.0, maxval=1.0)
        present, of_present = self.draw(batch.observation, present_key, self.config.actions)
        later, of_later = self.draw(batch.next_observation, next_key, self.config.actions)
        of_uniform = jnp.full_like(of_present, -shape[-1] * jnp.log(2.0))
        return jnp.concatenate([uniform, present, later]), jnp.concatenate([of_uniform, of_present, of_later])

    def difference(self, params: Parameters, batch: Batch, q: jax.Array, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """C of each critic, [2], for their values `q` [2, batch] of the data's actions."""
        c = self.config
        actions, log_density = self.candidates(batch, key)
        repeated = jnp.broadcast_to(batch.observation, (*actions.shape[:-1], batch.observation.shape[-1]))
        values, metrics = self.critic(repeated, actions, params=params), {}
        chex.assert_shape((values, log_density), ((2, 3 * c.actions, *batch.reward.shape), values.shape[1:]))
        if c.calibrated:
            chex.assert_equal_shape((batch.reward, batch.return_to_go))
            own = values[:, c.actions :]
            metrics["bounded"] = (own < batch.return_to_go).mean()
            values = jnp.concatenate([values[:, : c.actions], jnp.maximum(own, batch.return_to_go)], axis=1)
        difference = jnp.maximum(logsumexp(values - log_density, axis=1) - q, c.least_difference).mean(axis=-1)
        return difference, metrics | {"difference": difference.mean()}

    def critic_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Squared error to one common target and the conservative term, summed over both critics."""
        target_key, action_key = jax.random.split(key)
        q = self.critic(batch.observation, batch.action, params=params)
        chex.assert_shape(q, (2, *batch.reward.shape))
        td = jnp.square(q - self.target(batch, target_key)).mean(axis=-1).sum()
        difference, metrics = self.difference(params, batch, q, action_key)
        weight = self.config.weight
        if self.config.lagrange:
            weight *= jnp.minimum(self.multiplier(), 1e6)
        return td + weight * difference.sum(), metrics | {"critic_loss": td, "q": q.mean()}

    def multiplier_loss(self, params: Parameters, difference: jax.Array) -> tuple[jax.Array, Metrics]:
        """Rises with the multiplier while the conservative term is below its gap, and falls above it."""
        multiplier = jnp.minimum(self.multiplier(params=params), 1e6)
        return multiplier * self.config.weight * (self.config.gap - difference), {"multiplier": multiplier}

    def actor_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The entropy, and the value of the policy's own actions or, where it clones, the likelihood of the data's."""
        policy = self.actor(batch.observation, params=params)
        action, log_prob = policy.sample_and_log_prob(key)
        q = self.critic(batch.observation, action).min(axis=0)
        aim = policy.log_prob(batch.action) if self.phase == "cloning" else q
        chex.assert_equal_shape((batch.reward, aim, log_prob))
        loss = (self.temperature() * log_prob - aim).mean()
        return loss, {"actor_loss": loss, "entropy": -log_prob.mean()}

    def temperature_loss(self, params: Parameters, entropy: jax.Array, action_dim: int) -> tuple[jax.Array, Metrics]:
        """Falls with the temperature while the policy's entropy is above its target, and rises below it."""
        temperature = self.temperature(params=params)
        target = self.config.target_entropy_per_action * action_dim
        return jnp.log(temperature) * (entropy - target), {"temperature": temperature}

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """Every network from the same parameters; then the target critics."""
        c, fast, slow = self.config, self.config.learning_rate, self.config.actor_learning_rate
        actor_key, critic_key = jax.random.split(key)
        actor, metrics = self.actor.minimise(self.actor_loss, batch, actor_key, learning_rate=slow)
        entropy, size = metrics["entropy"], batch.action.shape[-1]
        temperature, more = self.temperature.minimise(self.temperature_loss, entropy, size, learning_rate=slow)
        critic, of_critic = self.critic.minimise(self.critic_loss, batch, critic_key, learning_rate=fast)
        metrics |= more | of_critic
        agent = self.replace(actor=actor, temperature=temperature, critic=critic)
        if c.lagrange:
            multiplier, more = self.multiplier.minimise(self.multiplier_loss, metrics["difference"], learning_rate=fast)
            agent, metrics = agent.replace(multiplier=multiplier), metrics | more
        return agent.replace(target_critic=self.target_critic.track(critic, c.target_rate)), metrics


if __name__ == "__main__":
    command.main(CQL, Config, PRESETS)
