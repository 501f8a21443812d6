"""algorithms/rlpd.py against an independent NumPy computation, and each ablation against what the paper says of it."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import ACTION, OBSERVATION, ROWS, q_values, random_batch, shaken, tanh_normal

from algorithms.rlpd import PRESETS, RLPD, Config
from common.commandline import parse
from common.errors import Refused
from common.replay import Batch, Replay


def make_agent(seed: int = 0, **values) -> RLPD:
    config = Config(**({"hidden": (8, 6), "ensemble": 4, "utd": 3, "batch_size": ROWS} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = RLPD.create(config, jax.random.key(seed), example, None)
    # Targets that differ from the online critics, LayerNorm scales and biases that are not 1 and 0.
    names = ("critic", "target_critic", "temperature")
    return agent.replace(**dict(zip(names, shaken(*(getattr(agent, name) for name in names)), strict=True)))


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("backup_entropy", [True, False])
@pytest.mark.parametrize("subset", [1, 2, 4])
def test_critic_loss_equals_numpy(layer_norm, backup_entropy, subset):
    agent = make_agent(layer_norm=layer_norm, backup_entropy=backup_entropy, target_subset=subset)
    batch, key = random_batch(1, ROWS), jax.random.key(5)
    target_key, _ = jax.random.split(key)
    action_key, subset_key, _ = jax.random.split(target_key, 3)
    noise = jax.random.normal(action_key, (ROWS, ACTION))
    members = np.asarray(jax.random.choice(subset_key, 4, (subset,), replace=False))
    assert len(set(members.tolist())) == subset

    action, log_prob = tanh_normal(agent.actor, batch.next_observation, noise)
    value = q_values(agent.target_critic, members, batch.next_observation, action).min(0)
    if backup_entropy:
        value = value - np.exp(np.asarray(agent.temperature.params["params"]["log"])) * log_prob
    target = batch.reward + 0.99 * batch.mask * value
    q = q_values(agent.critic, range(4), batch.observation, batch.action)
    expected = np.mean((q - target) ** 2)

    loss, metrics = agent.critic_loss(agent.critic.params, batch, key)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["q"], q.mean(), rtol=1e-5)


def test_actor_and_temperature_losses_equal_numpy():
    agent = make_agent()
    batch, key = random_batch(2, ROWS), jax.random.key(6)
    action_key, _ = jax.random.split(key)
    action, log_prob = tanh_normal(agent.actor, batch.observation, jax.random.normal(action_key, (ROWS, ACTION)))
    temperature = np.exp(np.asarray(agent.temperature.params["params"]["log"], np.float64))
    q = q_values(agent.critic, range(4), batch.observation, action).mean(0)

    loss, metrics = agent.actor_loss(agent.actor.params, batch, key)
    np.testing.assert_allclose(loss, np.mean(temperature * log_prob - q), rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy"], -log_prob.mean(), rtol=1e-5)

    loss, _ = agent.temperature_loss(agent.temperature.params, metrics["entropy"], ACTION)
    np.testing.assert_allclose(loss, temperature * (-log_prob.mean() + ACTION / 2), rtol=1e-5)


def test_temperature_rises_below_the_target_entropy_and_falls_above():
    agent = make_agent()
    slope = jax.grad(lambda params, entropy: agent.temperature_loss(params, entropy, ACTION)[0])
    assert slope(agent.temperature.params, -ACTION / 2 + 1.0)["params"]["log"] > 0
    assert slope(agent.temperature.params, -ACTION / 2 - 1.0)["params"]["log"] < 0


def test_log_density_is_finite_where_tanh_saturates():
    agent = make_agent()
    params = jax.tree.map(lambda x: x * 100, agent.actor.params)
    action, log_prob = agent.actor(1000 * jnp.ones((2, OBSERVATION)), params=params).sample_and_log_prob(
        jax.random.key(0)
    )
    assert np.abs(action).max() == 1
    assert np.isfinite(log_prob).all()


def test_critic_step_is_adam_and_targets_track():
    agent = make_agent(learning_rate=1e-3, target_rate=0.25)
    batch, key = random_batch(3, ROWS), jax.random.key(7)
    gradient = jax.grad(lambda p: agent.critic_loss(p, batch, key)[0])(agent.critic.params)
    after, _ = agent.update_critic(batch, key)
    for old, slope, new, old_target, new_target in zip(
        *(
            jax.tree.leaves(x)
            for x in (
                agent.critic.params, gradient, after.critic.params,
                agent.target_critic.params, after.target_critic.params,
            )
        ), strict=True
    ):  # fmt: skip
        old, slope, old_target = (np.asarray(x, np.float64) for x in (old, slope, old_target))
        expected = old - 1e-3 * slope / (np.abs(slope) + 1e-8)  # Adam's first step, its bias corrected
        np.testing.assert_allclose(new, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(new_target, 0.75 * old_target + 0.25 * expected, rtol=1e-4, atol=1e-6)


def test_update_is_the_algorithm_box():
    """G critic steps one after another, then one actor and one temperature step on the last minibatch."""
    agent, batches, key = make_agent(), random_batch(4, 3, ROWS), jax.random.key(8)
    updated, metrics = jax.jit(RLPD.update)(agent, batches, key, 1)
    critic_key, actor_key = jax.random.split(key)
    q = []
    for step, step_key in enumerate(jax.random.split(critic_key, 3)):
        agent, step_metrics = agent.update_critic(jax.tree.map(lambda x, s=step: x[s], batches), step_key)
        q.append(step_metrics["q"])
    agent, actor_metrics = agent.update_actor(jax.tree.map(lambda x: x[2], batches), actor_key)
    for one, other in zip(jax.tree.leaves(updated), jax.tree.leaves(agent), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["q"], np.mean(q), rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy"], actor_metrics["entropy"], rtol=1e-4)


def test_a_minibatch_changes_the_actor_only_if_it_is_the_last():
    agent, batches, key = make_agent(learning_rate=0.0), random_batch(4, 3, ROWS), jax.random.key(8)
    entropy = RLPD.update(agent, batches, key, 1)[1]["entropy"]
    first = batches.replace(observation=batches.observation + np.array([1, 0, 0])[:, None, None])
    last = batches.replace(observation=batches.observation + np.array([0, 0, 1])[:, None, None])
    assert RLPD.update(agent, first, key, 1)[1]["entropy"] == entropy
    assert RLPD.update(agent, last, key, 1)[1]["entropy"] != entropy


def test_termination_stops_bootstrapping_and_a_time_limit_does_not():
    agent, key = make_agent(), jax.random.key(1)
    batch = random_batch(5, ROWS)
    terminal = agent.target(batch.replace(mask=np.zeros(ROWS, np.float32)), key)
    np.testing.assert_array_equal(terminal, batch.reward)
    cut = agent.target(batch.replace(mask=np.ones(ROWS, np.float32)), key)
    assert (np.abs(cut - batch.reward) > 1e-3).all()


def test_target_uses_the_policy_at_the_next_state():
    agent, key, batch = make_agent(), jax.random.key(1), random_batch(5, ROWS)
    batch = batch.replace(mask=np.ones(ROWS, np.float32))
    target = agent.target(batch, key)
    np.testing.assert_array_equal(target, agent.target(batch.replace(observation=batch.observation + 1), key))
    assert (target != agent.target(batch.replace(next_observation=batch.next_observation + 1), key)).all()


# ---------------------------------------------------------------- ablations


def names(tree) -> str:
    return " ".join(jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0])


def test_layer_norm_is_in_the_critics_only_and_can_be_left_out():
    assert "LayerNorm" in names(make_agent().critic.params)
    assert "LayerNorm" not in names(make_agent().actor.params)
    assert "LayerNorm" not in names(make_agent(layer_norm=False).critic.params)


def test_layer_norm_bounds_q_far_from_the_data():
    """Section 4.2: |Q| <= |w|, up to LayerNorm's own scale; without it Q grows with the input."""
    far = 1e4 * np.ones((1, OBSERVATION), np.float32), np.ones((1, ACTION), np.float32)
    bounded, unbounded = make_agent(), make_agent(layer_norm=False)
    assert np.abs(bounded.critic(*far)).max() < 10
    assert np.abs(unbounded.critic(*far)).max() > 100


def test_ensemble_members_differ():
    q = make_agent().critic(*(getattr(random_batch(6, ROWS), n) for n in ("observation", "action")))
    assert q.shape == (4, ROWS)
    assert len({tuple(row) for row in np.asarray(q).tolist()}) == 4


def test_only_the_drawn_subset_of_targets_matters():
    agent, batch = make_agent(target_subset=2), random_batch(7, ROWS).replace(mask=np.ones(ROWS, np.float32))
    seen = set()
    for seed in range(8):
        key = jax.random.key(seed)
        drawn = np.asarray(jax.random.choice(jax.random.split(key, 3)[1], 4, (2,), replace=False))
        seen.add(tuple(sorted(drawn.tolist())))
        others = np.setdiff1d(np.arange(4), drawn)
        spoilt = jax.tree.map(lambda x, o=others: x.at[o].set(jnp.nan), agent.target_critic.params)
        spoilt = agent.replace(target_critic=agent.target_critic.replace(params=spoilt))
        np.testing.assert_array_equal(agent.target(batch, key), spoilt.target(batch, key))
    assert len(seen) > 2


def test_dropout_is_active_and_differs_between_members():
    batch = random_batch(8, ROWS)
    agent = make_agent(dropout=0.5)
    twins = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), agent.critic.params)
    q = agent.critic(batch.observation, batch.action, params=twins, dropout_key=jax.random.key(0))
    assert not np.allclose(q[0], q[1])
    same = agent.critic(batch.observation, batch.action, params=twins)
    np.testing.assert_array_equal(same[0], same[1])


def test_dropout_acts_in_the_target_the_critics_and_under_the_actor():
    """Each against the same parameters without dropout, and the same numbers from the same key."""
    dropping, whole, key = make_agent(dropout=0.5), make_agent(), jax.random.key(3)
    chex.assert_trees_all_equal(dropping.critic.params, whole.critic.params)
    going, ended = (random_batch(8, ROWS).replace(mask=np.full(ROWS, mask, np.float32)) for mask in (1, 0))
    for value in (
        lambda agent: agent.target(going, key),
        lambda agent: agent.critic_loss(agent.critic.params, ended, key)[0],  # whose target asks no critic
        lambda agent: agent.actor_loss(agent.actor.params, going, key)[0],
    ):
        assert (value(dropping) != value(whole)).all()
        np.testing.assert_array_equal(value(dropping), value(dropping))


def test_weight_decay_shrinks_the_critics_kernels_at_every_step():
    """What AdamW takes off beside Adam's step: rate x decay x kernel, of no bias and no LayerNorm."""
    plain, decayed = (make_agent(learning_rate=0.1, weight_decay=decay) for decay in (0.0, 0.5))
    batch, key = random_batch(3, ROWS), jax.random.key(7)
    one, other = plain.update_critic(batch, key)[0], decayed.update_critic(batch, key)[0]
    before = jax.tree_util.tree_flatten_with_path(plain.critic.params)[0]
    for (path, old), without, new in zip(
        before, *(jax.tree.leaves(agent.critic.params) for agent in (one, other)), strict=True
    ):
        taken = 0.05 * old * (path[-1].key == "kernel")
        np.testing.assert_allclose(without - new, taken, rtol=1e-3, atol=1e-6)
    assert {path[-1].key for path, _ in before} == {"kernel", "bias", "scale"}
    one, other = plain.update_actor(batch, key)[0], decayed.update_actor(batch, key)[0]
    chex.assert_trees_all_equal(one.actor.params, other.actor.params)
    chex.assert_trees_all_equal(one.temperature.params, other.temperature.params)


def test_weight_decay_shrinks_kernels_only():
    agent = make_agent(weight_decay=0.5, learning_rate=0.1)
    still = jax.tree.map(jnp.zeros_like, agent.critic.params)
    after = agent.critic.descend(still, 0.1, 0.5).params
    for (path, old), new in zip(
        jax.tree_util.tree_flatten_with_path(agent.critic.params)[0], jax.tree.leaves(after), strict=True
    ):
        np.testing.assert_allclose(new, old * (0.95 if path[-1].key == "kernel" else 1.0), rtol=1e-6)


def test_utd_counts_critic_steps_and_the_actor_steps_once():
    for utd in (1, 5):
        agent, _ = RLPD.update(make_agent(utd=utd), random_batch(9, utd, ROWS), jax.random.key(0), 1)
        assert int(agent.critic.opt_state.count) == utd
        assert int(agent.actor.opt_state.count) == 1
        assert int(agent.temperature.opt_state.count) == 1


def marked(reward: float, rows: int) -> Batch:
    return random_batch(0, rows).replace(reward=np.full(rows, reward, np.float32))


def filled_replay(rows: int) -> Replay:
    experience = Replay.create(jax.tree.map(lambda x: x[0], marked(0.0, 1)), 50)
    for row in range(rows):
        experience = experience.insert(jax.tree.map(lambda x, r=row: x[r], marked(1.0, rows)))
    return experience


@pytest.mark.parametrize(("ratio", "rows"), [(0, 0), (0.25, 4), (0.5, 8), (0.75, 12), (1.0, 16)])
def test_every_minibatch_has_the_exact_number_of_prior_rows(ratio, rows):
    agent = make_agent(offline_ratio=ratio, batch_size=16)
    drawn = agent.sample(jax.random.key(0), filled_replay(5), jax.tree.map(jnp.asarray, marked(-1.0, 40)))
    assert drawn.reward.shape == (3, 16)
    np.testing.assert_array_equal((np.asarray(drawn.reward) == -1).sum(axis=1), rows)
    np.testing.assert_array_equal((np.asarray(drawn.reward) == 1).sum(axis=1), 16 - rows)


def test_seeded_buffer_draws_in_proportion():
    agent = make_agent(**PRESETS["sacfd"] | {"batch_size": 4000, "utd": 1})
    drawn = agent.sample(jax.random.key(0), filled_replay(10), jax.tree.map(jnp.asarray, marked(-1.0, 30)))
    share = float((np.asarray(drawn.reward) == -1).mean())
    assert abs(share - 0.75) < 0.03
    assert ((np.asarray(drawn.reward) == 1) | (np.asarray(drawn.reward) == -1)).all()


def test_pretraining_sees_prior_data_alone():
    drawn = make_agent(offline_ratio=0.25).sample(jax.random.key(0), None, jax.tree.map(jnp.asarray, marked(-1.0, 30)))
    assert drawn.reward.shape == (3, ROWS)
    assert (np.asarray(drawn.reward) == -1).all()


def test_consecutive_minibatches_differ():
    drawn = make_agent().sample(jax.random.key(0), filled_replay(9), jax.tree.map(jnp.asarray, random_batch(1, 40)))
    assert len({tuple(row) for row in np.asarray(drawn.reward).round(5).tolist()}) == 3


def test_presets_are_the_paper_tables():
    paper = Config()
    assert (paper.discount, paper.target_rate, paper.learning_rate, paper.ensemble, paper.utd) == (
        0.99,
        0.005,
        3e-4,
        10,
        20,
    )
    assert (paper.batch_size, paper.offline_ratio, paper.initial_temperature) == (256, 0.5, 1.0)
    rows = {}
    for family in ("locomotion", "antmaze", "adroit-binary"):
        fields = {k: v for k, v in PRESETS[family].items() if hasattr(paper, k)}
        config = Config(**fields)
        rows[family] = (config.target_subset, config.backup_entropy, len(config.hidden), set(config.hidden))
    assert rows == {
        "locomotion": (2, True, 2, {256}),
        "antmaze": (1, False, 3, {256}),
        "adroit-binary": (2, False, 3, {256}),
    }


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"target_subset": 11}, "--target-subset"),
        ({"seeded_buffer": True}, "--seeded-buffer"),
        ({"steps": 5000}, "--start-training 5000"),
    ],
)
def test_values_that_do_not_go_together_are_named(values, flag):
    assert flag in Config(**values).problem()
    assert Config().problem() is None


def test_a_run_that_would_never_learn_is_refused():
    """The first update is at the step after `start_training`; with pretraining, something is learnt before."""
    assert Config(steps=5001).problem() is None
    assert Config(steps=1, start_training=0).problem() is None
    assert Config(steps=10, pretrain_steps=1).problem() is None
    with pytest.raises(Refused, match=r"--start-training 500 .* must be below --steps 500$"):
        parse(["--env", "pointmaze-large", "--steps", "500"], "rlpd", "", Config, PRESETS)
    for name, preset in PRESETS.items():
        fields = {k: v for k, v in preset.items() if hasattr(Config(), k)}
        assert Config(**fields).problem() is None, name


def test_import_has_no_side_effect():
    program = (
        "import algorithms.rlpd, jax; from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", program, "--env", "nonsense"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
