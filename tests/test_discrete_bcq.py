"""algorithms/discrete_bcq.py against an independent NumPy computation, and its semantics."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import ROWS, adam_first_step, head, parameters, random_batch, shaken

from algorithms.discrete_bcq import PRESETS, Config, DiscreteBCQ
from common.commandline import parse
from common.distributions import one_hot_argmax

KEY = jax.random.key(3)
ACTIONS = 3


def discrete_batch(seed: int, *leading: int):
    batch = random_batch(seed, *leading)
    return batch.replace(action=np.eye(ACTIONS, dtype=np.float32)[batch.action.argmax(-1)])


def make_agent(**values) -> DiscreteBCQ:
    config = Config(**({"hidden": (8, 6), "batch_size": ROWS} | values))
    example = jax.tree.map(lambda x: x[0], discrete_batch(0, 1))
    agent = DiscreteBCQ.create(config, jax.random.key(0), example, None)
    # Another network as target, so that it would choose otherwise; a behaviour policy with preferences.
    other = DiscreteBCQ.create(config, jax.random.key(1), example, None).critic.target()
    critic, target_critic, behaviour = shaken(agent.critic, other, agent.behaviour)
    behaviour = behaviour.replace(params=jax.tree.map(lambda x: 1.5 * x, behaviour.params))
    return agent.replace(critic=critic, target_critic=target_critic, behaviour=behaviour)


def probabilities(agent, observation):
    exponential = np.exp(head(parameters(agent.behaviour), observation))
    return exponential / exponential.sum(-1, keepdims=True)


def numpy_choice(agent, observation, chooser):
    """The index of the allowed action of the largest value, by loops."""
    chosen = []
    for q, g in zip(head(parameters(chooser), observation), probabilities(agent, observation), strict=True):
        allowed = [a for a in range(ACTIONS) if g[a] / g.max() > agent.config.threshold]
        chosen.append(max(allowed, key=lambda a: q[a]))
    return np.array(chosen)


def numpy_target(agent, batch):
    c = agent.config
    chosen = numpy_choice(agent, batch.next_observation, agent.critic if c.double_q else agent.target_critic)
    next_q = head(parameters(agent.target_critic), batch.next_observation)[np.arange(len(chosen)), chosen]
    return batch.reward + c.discount * batch.mask * next_q


def numpy_critic_loss(agent, batch):
    q = head(parameters(agent.critic), batch.observation)[np.arange(len(batch.reward)), batch.action.argmax(-1)]
    error = np.abs(q - numpy_target(agent, batch))
    return np.where(error < 1, 0.5 * error**2, error - 0.5).mean(), q, error


@pytest.mark.parametrize("values", [{}, {"threshold": 0.9}, {"threshold": 0.0, "double_q": False}, {"double_q": False}])
def test_critic_loss_equals_numpy(values):
    agent, batch = make_agent(**values), discrete_batch(2, 60)
    expected, q, error = numpy_critic_loss(agent, batch)
    assert (error < 1).any()
    assert (error > 1).any()
    loss, metrics = agent.critic_loss(agent.critic.params, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["q"], q.mean(), rtol=1e-5)


def test_the_variants_of_the_target_differ():
    """What the test above compares is not the same number four times."""
    batch = discrete_batch(2, 200)
    kinds = ({"threshold": 0.0}, {}, {"threshold": 0.9}, {"threshold": 0.0, "double_q": False})
    targets = [np.asarray(make_agent(**values).target(batch)) for values in kinds]
    for number, one in enumerate(targets):
        assert all((one != other).any() for other in targets[:number])


def test_behaviour_loss_equals_numpy():
    agent, batch = make_agent(logit_penalty=0.5), discrete_batch(4, ROWS)
    logits, g = head(parameters(agent.behaviour), batch.observation), probabilities(agent, batch.observation)
    taken = g[np.arange(ROWS), batch.action.argmax(-1)]
    loss, metrics = agent.behaviour_loss(agent.behaviour.params, batch)
    np.testing.assert_allclose(loss, -np.log(taken).mean() + 0.5 * (logits**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["allowed"], (g / g.max(-1, keepdims=True) > 0.3).mean(), rtol=1e-6)


def test_what_is_allowed_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.4, 0.1], [0.9, 0.05, 0.05]]))
    for threshold, expected in (
        (0.0, [[1, 1, 1], [1, 1, 1]]), (0.1, [[1, 1, 1], [1, 0, 0]]), (0.3, [[1, 1, 0], [1, 0, 0]]),
        (0.81, [[1, 0, 0], [1, 0, 0]]),
    ):  # fmt: skip
        assert make_agent(threshold=threshold).allowed(logits).astype(int).tolist() == expected
    # The threshold is strict, as the authors': two actions as likely as each other at a share of 1/2 of the best.
    assert make_agent(threshold=0.5).allowed(jnp.log(jnp.array([0.5, 0.25, 0.25]))).tolist() == [True, False, False]


def test_at_threshold_0_nothing_is_forbidden_however_unlikely():
    """Probabilities of 0, to which far logits round, are allowed: it is DQN exactly."""
    assert make_agent(threshold=0.0).allowed(jnp.array([0.0, -200.0, -1e30])).all()
    agent = make_agent(threshold=0.0)
    observation = discrete_batch(1, 50).observation
    values = head(parameters(agent.critic), observation)
    np.testing.assert_array_equal(agent.act(observation).argmax(-1), values.argmax(-1))


def test_dqn_is_the_target_networks_largest_value():
    agent, batch = make_agent(**PRESETS["dqn"]), discrete_batch(5, ROWS)
    largest = head(parameters(agent.target_critic), batch.next_observation).max(-1)
    np.testing.assert_allclose(agent.target(batch), batch.reward + 0.99 * batch.mask * largest, rtol=1e-5, atol=1e-6)


def test_near_1_the_policy_imitates():
    agent = make_agent(threshold=0.999)
    observation = discrete_batch(1, 200).observation
    likeliest, best = probabilities(agent, observation).argmax(-1), agent.critic(observation).argmax(-1)
    np.testing.assert_array_equal(agent.act(observation).argmax(-1), likeliest)
    assert (likeliest != np.asarray(best)).any()


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    agent, batch = make_agent(), discrete_batch(5, 2)
    for mask, moves in ((1.0, True), (0.0, False)):
        rows = batch.replace(mask=np.full(2, mask, np.float32))
        elsewhere = rows.replace(next_observation=rows.next_observation + 1)
        assert (agent.target(rows) != agent.target(elsewhere)).any() == moves
        # The next action is one of the next state.
        np.testing.assert_array_equal(agent.target(rows), agent.target(rows.replace(observation=rows.observation + 1)))


def test_the_target_has_no_gradient_and_the_networks_none_in_common():
    """Double Q would be a way for one: the online network chooses."""
    agent, batch = make_agent(), discrete_batch(6, ROWS)
    target, index = agent.target(batch), batch.action.argmax(-1)[:, None]

    def plain(params):
        q = jnp.take_along_axis(agent.critic(batch.observation, params=params), index, 1)[:, 0]
        error = jnp.abs(q - target)
        return jnp.where(error < 1, 0.5 * error**2, error - 0.5).mean()

    got = jax.grad(lambda p: agent.critic_loss(p, batch)[0])(agent.critic.params)
    chex.assert_trees_all_close(got, jax.grad(plain)(agent.critic.params), rtol=1e-4, atol=1e-6)
    for name in ("target_critic", "behaviour"):
        slope = jax.grad(
            lambda p, name=name: agent.replace(**{name: getattr(agent, name).replace(params=p)}).critic_loss(
                agent.critic.params, batch
            )[0]
        )(getattr(agent, name).params)
        moves = any((np.asarray(x) != 0).any() for x in jax.tree.leaves(slope))
        assert moves == (name == "target_critic")  # which is not learnt; what is allowed has no slope


def test_both_networks_move_at_once_and_the_target_after_them():
    agent, batch = make_agent(learning_rate=1e-2, target_rate=0.25), discrete_batch(6, ROWS)
    after, metrics = jax.jit(DiscreteBCQ.update_once)(agent, batch, KEY, jnp.int32(1))
    assert set(metrics) == {"critic_loss", "q", "behaviour_loss", "allowed"}
    for name, loss in (("critic", agent.critic_loss), ("behaviour", agent.behaviour_loss)):
        params = getattr(agent, name).params
        slope = jax.grad(lambda p, loss=loss: loss(p, batch)[0])(params)
        expected = adam_first_step(params, slope, 1e-2)
        chex.assert_trees_all_close(getattr(after, name).params, expected, rtol=2e-3, atol=2e-5)
    moved = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, agent.target_critic.params, after.critic.params)
    chex.assert_trees_all_close(after.target_critic.params, moved, rtol=1e-5)


def test_the_penalty_pulls_logits_towards_zero_and_by_twice_their_share():
    agent, batch = make_agent(logit_penalty=0.7), discrete_batch(6, ROWS)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, ACTIONS)), jnp.float32)

    class Constant:
        def __call__(self, observation, params=None):
            return params

    slopes = [
        jax.grad(
            lambda x, c=c: DiscreteBCQ.behaviour_loss(
                agent.replace(config=agent.config.replace(logit_penalty=c), behaviour=Constant()), x, batch
            )[0]
        )(logits)
        for c in (0.7, 0.0)
    ]
    np.testing.assert_allclose(slopes[0] - slopes[1], 0.7 * 2 * logits / logits.size, rtol=1e-4, atol=1e-6)
    assert (np.asarray(slopes[1])[batch.action == 1] < 0).all()  # the data's actions become likelier
    assert (np.asarray(slopes[1])[batch.action == 0] > 0).all()


def test_exploration_is_uniform_with_its_probability():
    observation = discrete_batch(1, 1).observation
    for epsilon in (0.0, 0.3, 1.0):
        agent = make_agent(exploration=epsilon)
        best = int(agent.act(observation).argmax())
        explored = jax.vmap(lambda key, agent=agent: agent.explore(observation[0], key))(jax.random.split(KEY, 4000))
        assert set(np.unique(explored).tolist()) == {0.0, 1.0}
        np.testing.assert_array_equal(explored.sum(-1), 1)
        expected = np.full(ACTIONS, epsilon / ACTIONS) + (1 - epsilon) * np.eye(ACTIONS)[best]
        np.testing.assert_allclose(explored.mean(0), expected, atol=0.03)


def test_the_largest_entry_is_one_hot_and_a_run_that_diverges_shows():
    values = jnp.array([[1.0, 3.0, 2.0], [-jnp.inf, -5.0, -jnp.inf], [1.0, jnp.nan, 2.0]])
    expected = [[0, 1, 0], [0, 1, 0], [np.nan] * 3]
    np.testing.assert_array_equal(one_hot_argmax(values), expected)
    agent = make_agent()
    broken = jax.tree.map(lambda x: x * np.nan, agent.critic.params)
    assert np.isnan(agent.replace(critic=agent.critic.replace(params=broken)).act(jnp.zeros(5))).all()


def test_presets_and_defaults_are_those_of_the_authors_code():
    def config(*arguments):
        return parse([*arguments], "discrete_bcq", "", Config, PRESETS)

    assert config().run.env == "cartpole-mixed"
    c = config("--env", "CartPole-v1").config
    assert c == Config()
    assert (c.threshold, c.logit_penalty, c.learning_rate, c.batch_size) == (0.3, 0.01, 3e-4, 64)
    assert (c.discount, c.target_rate, c.hidden, c.offline_steps, c.double_q) == (0.99, 0.005, (256, 256), 10**6, True)
    dqn = config("--env", "CartPole-v1", "--preset", "dqn").config
    assert dqn == dataclasses.replace(Config(), threshold=0.0, double_q=False)
    online = config("--env", "CartPole-v1", "--preset", "dqn-online").config
    assert (online.start_training, online.random_steps, online.exploration, online.utd) == (1000, 1000, 0.1, 1)
    assert (online.uses_prior_data, dqn.uses_prior_data) == (False, True)
    assert Config(online_steps=100, start_training=10).random_steps == 0  # what has learnt offline acts at once
    assert "--online-steps 10" in Config(online_steps=10, start_training=10).problem()
    for preset in PRESETS.values():
        assert Config(**preset).problem() is None
    assert "--threshold must lie in [0, 1)" in Config(threshold=1.0).problem()
