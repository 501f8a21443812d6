"""Fisher-BRC against google-research/google-research, folder fisher_brc: cloning and its schedule, and the agent."""

from unittest import mock

import jax.numpy as jnp
import numpy as np

from benchmarks.studies.parity import _tensorflow_peers as peers
from benchmarks.studies.parity import harness as h

tf = peers.tf
h.stub("tf_agents.specs.tensor_spec")
peers.in_double("google-research/fisher_brc")
from fisher_brc import behavioral_cloning, fisher_brc  # noqa: E402

from algorithms import fisher_brc as ours  # noqa: E402
from common.distributions import TanhMixture  # noqa: E402
from common.replay import Batch  # noqa: E402

OBS, SIZE, COMPONENTS = 11, 64, 5
NAMES = "observation", "action", "reward", "mask", "next_observation"


def sample_of(draws: h.Draws) -> object:
    """Our mixture's sample with their draws: noise for every component, of which one is taken."""

    def sample(self: TanhMixture, key: object) -> object:
        index = peers.component(draws, self.logits.shape[:-1], COMPONENTS)
        noise = jnp.asarray(draws.normal(self.mean.shape))
        values = jnp.tanh(self.mean + jnp.exp(self.log_std) * noise)
        return jnp.take_along_axis(values, index[..., None], axis=-1).squeeze(-1)

    return sample


def agent_of(row: Batch, trees: dict, phase: str, **values: object) -> ours.FisherBRC:
    """Ours with these parameters."""
    agent = ours.FisherBRC.create(ours.Config(**values), h.jax.random.key(0), h.jax.tree.map(lambda x: x[0], row), row)
    return agent.replace(phase=phase, **{k: h.fresh(getattr(agent, k), x) for k, x in trees.items()})


def compare(table: h.Table, agent: ours.FisherBRC, rows: list[Batch], draws: h.Draws, snapshots: list[dict]) -> None:
    """All parameters after one and five updates."""
    with h.fixed(draws), mock.patch.object(TanhMixture, "sample", sample_of(draws)):
        for number, row in enumerate(rows, 1):
            agent, _ = agent.update_once(row, h.jax.random.key(0), jnp.int32(number))
            if number in (1, 5):
                for k, start in snapshots[0].items():
                    table.change(f"{k} after {number}", getattr(agent, k).params, snapshots[number][k], start)


def cloning(data: list[dict], rows: list[Batch]) -> None:
    """The schedule, the loss, and five updates."""
    table, draws = h.Table("fisher_brc/cloning"), h.Draws()
    model = behavioral_cloning.BehavioralCloning(peers.spec(OBS), peers.spec(h.ACTION), mixture=True)
    schedule = model.optimizer._learning_rate
    peers.jitter([*model.policy.trainable_variables, model.log_alpha], 5)
    model.optimizer, model.alpha_optimizer = peers.Adam(1e-3), peers.Adam(1e-3)

    def trees() -> dict:
        return {
            "behaviour": peers.tree(model.policy.trainable_variables, 3),
            "cloning_temperature": {"params": {"log": np.array(model.log_alpha.numpy())}},
        }

    snapshots = [trees()]
    agent = agent_of(rows[0], snapshots[0], "cloning")
    numbers = [1, 2, 800_000, 800_001, 800_002, 900_000, 900_001, 900_002, 1_000_000]
    rates = [[float(agent.cloning_rate(jnp.int32(n))), float(schedule(n - 1))] for n in numbers]
    table.row("step sizes, relative", max(abs(a / b - 1) for a, b in rates))
    with h.fixed(draws), mock.patch.object(TanhMixture, "sample", sample_of(draws)):
        loss = agent.cloning_loss(agent.behaviour.params, rows[0], h.jax.random.key(0))[0]
    with peers.drawn(draws):
        results = []
        for x in data:
            results.append(model.update_step(iter([tuple(tf.constant(x[k]) for k in NAMES)])))
            snapshots.append(trees())
    table.scalar("loss", loss, results[0]["bc_actor_loss"])
    compare(table, agent, rows, draws, snapshots)


def training(data: list[dict], rows: list[Batch]) -> None:
    """Losses, and five updates."""
    table, draws = h.Table("fisher_brc/training"), h.Draws()
    model = fisher_brc.FBRC(peers.spec(OBS), peers.spec(h.ACTION), target_entropy=-h.ACTION, f_reg=0.1)
    nets = [model.actor, model.bc.policy, model.critic, model.critic_target]
    peers.jitter([*(x for net in nets for x in net.trainable_variables), model.log_alpha], 5, 0.03)
    model.actor_optimizer, model.critic_optimizer, model.alpha_optimizer = (peers.Adam(3e-4) for _ in range(3))

    def trees() -> dict:
        def critics(pair: object) -> dict:
            return h.stack_trees(*(peers.tree(net.trainable_variables) for net in (pair.critic1, pair.critic2)))

        return {
            "actor": peers.tree(model.actor.trainable_variables, 2),
            "critic": critics(model.critic),
            "target_critic": critics(model.critic_target),
            "temperature": {"params": {"log": np.array(model.log_alpha.numpy())}},
        }

    snapshots = [trees()]
    behaviour = peers.tree(model.bc.policy.trainable_variables, 3)
    agent = agent_of(rows[0], snapshots[0] | {"behaviour": behaviour}, "offline")
    with h.fixed(draws):
        key = h.jax.random.key(0)
        critic_loss = agent.critic_loss(agent.critic.params, rows[0], key)[0]
    with h.fixed(draws):
        metrics = agent.update_once(rows[0], key, jnp.int32(1))[1]
    # Theirs draws from the mixture at every density, and does nothing with it.
    silent = mock.patch.object(type(model.bc.policy), "log_probs", density)
    with peers.drawn(draws), silent:
        results = []
        for x in data:
            results.append(model.update_step(iter([tuple(tf.constant(x[k]) for k in NAMES)])))
            snapshots.append(trees())
    table.scalar("critic loss", critic_loss, results[0]["critic_loss"])
    table.scalar("actor loss", metrics["actor_loss"], results[0]["actor_loss"])
    compare(table, agent, rows, draws, snapshots)


def density(policy: object, states: object, actions: object) -> object:
    """Their log density without its draw."""
    bound = policy.action_spec.maximum - policy.eps
    return policy._get_dist_and_mode(states).log_prob(tf.clip_by_value(actions, -bound, bound))


if __name__ == "__main__":
    data = h.batches(5, SIZE, OBS, h.ACTION)
    for x in data:
        x["action"][:9] = np.sign(x["action"][:9])
    rows = [Batch(*(jnp.asarray(x[k]) for k in NAMES)) for x in data]
    cloning(data, rows)
    training(data, rows)
