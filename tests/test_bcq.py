"""algorithms/bcq.py against an independent NumPy computation, and its semantics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import (
    ACTION,
    OBSERVATION,
    ROWS,
    adam_first_step,
    assert_only_terminations_stop,
    head,
    latents,
    parameters,
    q_values,
    random_batch,
    shaken,
    vae_decode,
    vae_loss,
)

from algorithms.bcq import BCQ, PRESETS, Config
from common.commandline import parse
from common.networks import VAE, Network

KEY = jax.random.key(3)


def make_agent(**values) -> BCQ:
    config = Config(**({"hidden": (8, 6), "vae_hidden": (7, 9), "batch_size": ROWS} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = BCQ.create(config, jax.random.key(0), example, random_batch(1, 20))
    names = "vae", "actor", "target_actor", "critic", "target_critic"
    return agent.replace(**dict(zip(names, shaken(*(getattr(agent, name) for name in names)), strict=True)))


def repeated(rows, count):
    return np.repeat(np.asarray(rows, np.float64)[:, None], count, axis=1)


def proposed(agent, actor, observation, key):
    """What the VAE draws with `key`, perturbed by `actor`."""
    drawn = np.tanh(vae_decode(agent.vae, observation, latents(observation.shape[:-1], key)))
    change = np.tanh(head(parameters(actor), np.concatenate([observation, drawn], -1)))
    return (drawn + agent.config.perturbation * change).clip(-1, 1)


def numpy_target(agent, batch, key):
    c, states = agent.config, repeated(batch.next_observation, agent.config.target_candidates)
    q = q_values(agent.target_critic, range(2), states, proposed(agent, agent.target_actor, states, key))
    lam = c.pessimism
    best = [max(lam * min(pair) + (1 - lam) * max(pair) for pair in row) for row in q.transpose(1, 2, 0)]
    return batch.reward + c.discount * batch.mask * np.array(best)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_vae_loss_equals_numpy(weight):
    agent, batch = make_agent(kl_weight=weight), random_batch(2, ROWS)
    loss, metrics = agent.vae_loss(agent.vae.params, batch, KEY)
    expected, error = vae_loss(agent.vae, batch, KEY, weight)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["reconstruction"], error, rtol=1e-5)


def test_the_vae_bounds_its_deviation_and_clips_latents_only_when_it_samples():
    vae = Network.create(VAE(ACTION, (7,)), KEY, jnp.zeros(OBSERVATION), jnp.zeros(ACTION), KEY)
    batch = random_batch(2, 400)
    for extreme, bound in ((-30.0, -4.0), (40.0, 15.0)):
        params = jax.tree.map(lambda x: x, vae.params)
        params["params"]["log_std"]["bias"] = jnp.full(2 * ACTION, extreme)
        _, divergence = vae(batch.observation, batch.action, KEY, params=params)
        least = 0.5 * (np.exp(2 * bound) - 1) - bound  # of a mean of 0
        np.testing.assert_allclose(np.asarray(divergence).min(), least, rtol=0.3)
    # With a decoder that shows the first latents as they are.
    module = VAE(ACTION, (4 * ACTION,))
    params = module.init(KEY, jnp.zeros(OBSERVATION), jnp.zeros(ACTION), KEY)
    own = jax.tree.map(jnp.zeros_like, params)["params"]
    for i in range(ACTION):  # relu(z) - relu(-z)
        own["decoder"]["Dense_0"]["kernel"] = (
            own["decoder"]["Dense_0"]["kernel"].at[OBSERVATION + i, [i, ACTION + i]].set(jnp.array([1.0, -1.0]))
        )
        own["action"]["kernel"] = own["action"]["kernel"].at[[i, ACTION + i], i].set(jnp.array([1.0, -1.0]))
    shown = np.asarray(module.apply({"params": own}, batch.observation, KEY, method="sample"))
    np.testing.assert_allclose(shown, latents((400,), KEY)[:, :ACTION], atol=1e-6)
    assert np.abs(shown).max() == 0.5
    assert 0.5 < (np.abs(shown) == 0.5).mean() < 0.75  # of a normal draw, 62 % lie beyond
    z = np.full((400, 2 * ACTION), 3.0, np.float32)
    np.testing.assert_allclose(module.apply({"params": own}, batch.observation, z, method="decode"), 3.0, rtol=1e-6)


@pytest.mark.parametrize(("pessimism", "candidates"), [(0.75, 10), (1.0, 10), (0.0, 3), (0.75, 1)])
def test_critic_loss_equals_numpy(pessimism, candidates):
    agent, batch = make_agent(pessimism=pessimism, target_candidates=candidates), random_batch(2, ROWS)
    target = numpy_target(agent, batch, KEY)
    np.testing.assert_allclose(agent.target(batch, KEY), target, rtol=1e-4, atol=1e-5)
    q = q_values(agent.critic, range(2), batch.observation, batch.action)
    loss, metrics = agent.critic_loss(agent.critic.params, batch, KEY)
    np.testing.assert_allclose(loss, ((q - target) ** 2).mean(-1).sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics["q"], q.mean(), rtol=1e-5)


def test_the_default_target_takes_the_best_of_ten():
    assert (Config().target_candidates, Config().candidates) == (10, 100)
    seen = []
    agent, batch = make_agent(), random_batch(2, ROWS)
    watched = agent.replace(target_critic=Spy(agent.target_critic, seen))
    BCQ.target(watched, batch, KEY)
    assert seen == [(ROWS, 10, ACTION)]


class Spy:
    """A critic that notes the shape of the actions it is asked about."""

    def __init__(self, critic, seen):
        self.critic, self.seen = critic, seen

    def __call__(self, observation, action):
        self.seen.append(action.shape)
        return self.critic(observation, action)


@pytest.mark.parametrize("phi", [0.05, 0.5])
def test_actor_loss_equals_numpy(phi):
    agent, batch = make_agent(perturbation=phi), random_batch(4, ROWS)
    q = q_values(agent.critic, [0], batch.observation, proposed(agent, agent.actor, batch.observation, KEY))[0]
    loss, _ = agent.actor_loss(agent.actor.params, batch, KEY)
    np.testing.assert_allclose(loss, -q.mean(), rtol=1e-4, atol=1e-6)


def test_a_perturbation_is_at_most_phi_and_the_action_at_most_one():
    agent, batch = make_agent(perturbation=0.3), random_batch(4, 300)
    loud = jax.tree.map(lambda x: 50 * x, agent.actor.params)
    changed = np.asarray(agent.propose(agent.actor, batch.observation, KEY, loud))
    plain = np.asarray(agent.replace(config=Config(perturbation=0.0)).propose(agent.actor, batch.observation, KEY))
    np.testing.assert_allclose(np.abs(changed - plain).max(), 0.3, rtol=1e-5)
    # Of a VAE that proposes all but 1, what lies beyond is cut off.
    params = jax.tree.map(lambda x: x, agent.vae.params)
    params["params"]["action"]["bias"] = jnp.full(ACTION, 9.0)
    edge = agent.replace(vae=agent.vae.replace(params=params))
    assert float(edge.propose(agent.actor, batch.observation, KEY, loud).max()) == 1.0


def test_the_target_has_no_gradient_and_the_actor_climbs_the_first_critic():
    agent, batch = make_agent(perturbation=0.5), random_batch(4, ROWS)
    y = numpy_target(agent, batch, KEY).astype(np.float32)

    def regression(params):
        return jnp.square(agent.critic(batch.observation, batch.action, params=params) - y).mean(-1).sum()

    got = jax.grad(lambda p: agent.critic_loss(p, batch, KEY)[0])(agent.critic.params)
    chex.assert_trees_all_close(got, jax.grad(regression)(agent.critic.params), rtol=1e-3, atol=1e-5)
    slope = jax.grad(lambda p: agent.actor_loss(p, batch, KEY)[0])(agent.actor.params)
    lower = jax.tree.map(lambda x, g: x - 0.01 * g, agent.actor.params, slope)

    def value(actor):
        return q_values(agent.critic, [0], batch.observation, proposed(agent, actor, batch.observation, KEY)).mean()

    assert value(agent.actor.replace(params=lower)) > value(agent.actor) + 1e-6


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    assert_only_terminations_stop(make_agent())


def test_each_step_sees_what_the_ones_before_have_become():
    agent, batch = make_agent(learning_rate=1e-2, target_rate=0.25), random_batch(6, ROWS)
    after, metrics = jax.jit(BCQ.update_once)(agent, batch, KEY, jnp.int32(1))
    keys = jax.random.split(KEY, 3)
    now = agent
    for name, loss, key in zip(
        ("vae", "critic", "actor"), ("vae_loss", "critic_loss", "actor_loss"), keys, strict=True
    ):
        before = getattr(now, name)
        slope, _ = jax.grad(getattr(now, loss), has_aux=True)(before.params, batch, key)
        chex.assert_trees_all_close(
            getattr(after, name).params, adam_first_step(before.params, slope, 1e-2), rtol=2e-3, atol=2e-5
        )
        now = now.replace(**{name: getattr(after, name)})
    for name in ("actor", "critic"):
        old, new = (getattr(x, f"target_{name}").params for x in (agent, after))
        moved = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, old, getattr(after, name).params)
        chex.assert_trees_all_close(new, moved, rtol=1e-5, atol=1e-6)
    assert metrics.keys() == {"vae_loss", "reconstruction", "critic_loss", "q", "actor_loss"}


def test_an_evaluation_takes_the_best_of_its_candidates_by_the_first_critic():
    agent = make_agent(candidates=40, perturbation=0.5)
    observation = random_batch(3, 2, 4).observation
    action = np.asarray(jax.jit(BCQ.act)(agent, observation))
    assert action.shape == (2, 4, ACTION)
    assert np.abs(action).max() <= 1
    for place in np.ndindex(2, 4):
        key = jax.random.fold_in(jax.random.key(0), observation[place].view(np.uint32).sum(dtype=np.uint32))
        states = np.tile(observation[place], (40, 1))
        actions = proposed(agent, agent.actor, states, key)
        best = q_values(agent.critic, [0], states, actions)[0].argmax()
        assert best != q_values(agent.critic, [1], states, actions)[0].argmax() or place != (0, 0)
        np.testing.assert_allclose(action[place], actions[best], rtol=1e-4, atol=1e-5)
    # The same whatever stands beside it, and other draws for another observation.
    np.testing.assert_allclose(agent.act(observation[1:, :2]), action[1:, :2], atol=1e-6)
    near = np.tile(np.float32(0.3), (30, OBSERVATION)) + 1e-6 * np.arange(30, dtype=np.float32)[:, None]
    assert (np.asarray(make_agent(candidates=1).act(near)).std(axis=0) > 1e-3).all()


@pytest.mark.parametrize("name", ["vae", "actor", "critic"])
def test_a_network_that_has_diverged_gives_no_action(name):
    agent = make_agent(candidates=3)
    broken = getattr(agent, name).replace(params=jax.tree.map(lambda x: x * jnp.nan, getattr(agent, name).params))
    assert not np.isfinite(agent.replace(**{name: broken}).act(np.ones((2, OBSERVATION), np.float32))).any()


def test_presets_and_defaults_are_the_papers():
    def config(env, *flags):
        return parse(["--env", env, *flags], "bcq", "", Config, PRESETS).config

    c = config("hopper-medium")
    assert (c.hidden, c.vae_hidden, c.batch_size, c.offline_steps) == ((400, 300), (750, 750), 100, 1_000_000)
    assert (c.learning_rate, c.discount, c.target_rate) == (1e-3, 0.99, 0.005)
    assert (c.pessimism, c.perturbation, c.kl_weight) == (0.75, 0.05, 0.5)
    assert [phase for phase, steps in c.phases if steps] == ["offline"]
    assert config("pointmaze-umaze").vae_hidden == (128, 128)
