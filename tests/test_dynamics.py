"""common/dynamics.py against NumPy, how tasks' episodes terminate against their environments, and the buffer's rows."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import ACTION, adam_first_step, dense, random_batch

from common import datasets, environments, recipes, tasks
from common.dynamics import Dynamics, ModelData
from common.replay import Batch, Replay

KEY, ROWS, MEMBERS, DECAY = jax.random.key(3), 60, 4, (0.3, 0.2, 0.1)


def data(rows: int = ROWS, termination=tasks.never) -> ModelData:
    return jax.tree.map(jnp.asarray, ModelData(**vars(random_batch(1, rows)), termination=termination))


def moved(tree, seed: int = 0):
    """Every parameter a little elsewhere, the bounds within reach of the log variances."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(x + 0.2 * rng.normal(size=x.shape), jnp.float32), tree)


def model(seed: int = 0, **values) -> Dynamics:
    found = Dynamics.create(jax.random.key(7), data(), **({"hidden": (8, 6), "members": MEMBERS, "elites": 2} | values))
    own = moved(found.network.params, seed)
    own["params"] |= {"max_log_var": own["params"]["max_log_var"], "min_log_var": own["params"]["min_log_var"] + 4}
    return found.replace(network=found.network.replace(params=own))


def softplus(x):
    return np.log1p(np.exp(x))


def numpy_prediction(dynamics, member, observation, action):
    """Mean and log variance of one member, in double precision."""
    own = jax.tree.map(lambda x: np.asarray(x, np.float64), dynamics.network.params["params"])
    x = (np.concatenate([observation, action], -1) - np.asarray(dynamics.mean)) / np.asarray(dynamics.std)
    for number in range(3):
        if number:
            x = x / (1 + np.exp(-x))
        layer = own[f"Dense_{number}"]
        x = dense(x, {"kernel": layer["kernel"][member], "bias": layer["bias"][member]})
    mean, log_var = np.split(x, 2, axis=-1)
    log_var = own["max_log_var"] - softplus(own["max_log_var"] - log_var)
    return mean, own["min_log_var"] + softplus(log_var - own["min_log_var"])


def targets(batch):
    change = np.asarray(batch.next_observation, np.float64) - batch.observation
    return np.concatenate([change, np.asarray(batch.reward)[..., None]], -1)


def test_the_loss_is_that_of_gaussians_with_bounded_variances_and_decayed_weights():
    dynamics, batch = model(), random_batch(2, MEMBERS, 7)
    own = jax.tree.map(lambda x: np.asarray(x, np.float64), dynamics.network.params["params"])
    fits = []
    for member in range(MEMBERS):
        rows = jax.tree.map(lambda x, member=member: x[member], batch)
        mean, log_var = numpy_prediction(dynamics, member, rows.observation, rows.action)
        assert ((log_var > own["min_log_var"]) & (log_var < own["max_log_var"] + 0.01)).all()  # softly
        fits.append(((mean - targets(rows)) ** 2 / np.exp(log_var) + log_var).mean())
    decay = sum(w / 2 * np.square(own[f"Dense_{k}"]["kernel"]).sum() for k, w in enumerate(DECAY))
    expected = sum(fits) + decay + 0.01 * (own["max_log_var"].sum() - own["min_log_var"].sum())
    loss, metrics = dynamics.loss(dynamics.network.params, batch, DECAY)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["model_loss"], np.mean(fits), rtol=1e-5)
    after, _ = dynamics.update(batch, 1e-2, DECAY, 5)
    slope = jax.grad(lambda p: dynamics.loss(p, batch, DECAY)[0])(dynamics.network.params)
    chex.assert_trees_all_close(
        after.network.params, adam_first_step(dynamics.network.params, slope, 1e-2), rtol=2e-3, atol=2e-5
    )
    assert all(np.abs(slope["params"][name]).max() > 0 for name in ("max_log_var", "min_log_var"))


def test_inputs_are_scaled_by_the_datas_mean_and_deviation():
    prior = data().replace(action=jnp.full((ROWS, ACTION), 0.5))
    dynamics = Dynamics.create(KEY, prior, (4,), 2, 1)
    np.testing.assert_allclose(dynamics.mean, [*np.mean(prior.observation, axis=0), *[0.5] * ACTION], atol=1e-6)
    np.testing.assert_allclose(dynamics.std, [*np.std(prior.observation, axis=0), *[1.0] * ACTION], rtol=1e-5)


def test_a_fifth_is_held_out_and_the_members_learn_from_bootstraps_of_the_rest():
    dynamics, rows = model(), []
    held_out = np.asarray(dynamics.held_out)
    assert len(set(held_out.tolist())) == ROWS // 5
    draw = jax.jit(Dynamics.draw, static_argnums=(2, 3))
    for number in range(4):
        rows.append(np.asarray(draw(dynamics, jax.random.key(number), ROWS, 5000)))
    seen = np.concatenate(rows, axis=1)
    others = set(range(ROWS)) - set(held_out.tolist())
    kept = [set(own.tolist()) for own in seen]
    assert set.union(*kept) == others
    # Of as many draws with replacement, a bootstrap leaves out about a third, always the same; no two are equal.
    assert all(0.5 < len(own) / len(others) < 0.78 for own in kept)
    assert len(set(map(frozenset, kept))) == MEMBERS
    again = np.concatenate([np.asarray(draw(dynamics, jax.random.key(9 + k), ROWS, 5000)) for k in range(4)], axis=1)
    assert [set(own.tolist()) for own in again] == kept
    # A row is drawn as often as it is in the bootstrap.
    counts = np.unique(seen[0], return_counts=True)[1] / seen.shape[1] * len(others)
    np.testing.assert_allclose(counts, counts.round(), atol=0.35)
    assert counts.round().sum() == len(others)
    assert Dynamics.create(KEY, data(6000), (4,), 2, 1).held_out.shape == (1000,)


def bias(parameters):
    return np.asarray(parameters["Dense_2"]["bias"][:, 0]).tolist()


def biased(dynamics, *numbers):
    """The model whose members can be told by a bias."""
    own = jax.tree.map(lambda x: x, dynamics.network.params)
    last = own["params"]["Dense_2"]
    own["params"]["Dense_2"] = last | {"bias": last["bias"].at[:, 0].set(jnp.asarray(numbers, jnp.float32))}
    return dynamics.replace(network=dynamics.network.replace(params=own))


def test_of_every_member_the_best_layers_are_restored_and_the_best_members_imagine():
    prior = data()
    begun = model()
    rows = jax.tree.map(lambda x: np.asarray(x)[np.asarray(begun.held_out)], prior.transitions())

    def error(dynamics, member):
        return ((numpy_prediction(dynamics, member, rows.observation, rows.action)[0] - targets(rows)) ** 2).mean()

    near, far = (0.0, 0.1, 0.2, 0.3), (9.0, 9.1, 9.2, 9.3)
    first = biased(begun, far[0], near[1], near[2], far[3]).validate(prior, 3)
    np.testing.assert_allclose(
        first.best_error, [error(biased(begun, far[0], near[1], near[2], far[3]), m) for m in range(MEMBERS)], rtol=1e-5
    )
    second = biased(first, near[0], far[1], far[2], far[3]).validate(prior, 3)
    np.testing.assert_allclose(bias(second.best), (near[0], near[1], near[2], far[3]), rtol=1e-6)
    assert int(second.strikes) == 0
    # The best are values of their own: what is learnt afterwards does not touch them.
    later, _ = second.update(random_batch(2, MEMBERS, 7), 1e-2, DECAY, 3)
    assert bias(later.network.params["params"]) != bias(second.network.params["params"])
    chex.assert_trees_all_equal(later.best, second.best)
    restored = later.restored()
    np.testing.assert_allclose(bias(restored.network.params["params"]), (near[0], near[1], near[2], far[3]), rtol=1e-6)
    np.testing.assert_allclose(restored.error(prior), restored.best_error, rtol=1e-5)
    errors = [error(restored, member) for member in range(MEMBERS)]
    assert restored.elites.tolist() == np.argsort(errors)[:2].tolist()
    assert 3 not in restored.elites


def test_it_stops_when_patience_is_at_its_end_and_later_steps_change_nothing():
    prior, batch = data(), random_batch(2, MEMBERS, 7)
    dynamics = model().validate(prior, 2)
    # A hair better is not better.
    dynamics = dynamics.replace(best_error=dynamics.best_error * 1.005).validate(prior, 2)
    assert int(dynamics.strikes) == 1
    moving, metrics = dynamics.update(batch, 1e-2, DECAY, 2)
    assert (float(metrics["stopped"]), bias(moving.network.params["params"]) != bias(dynamics.best)) == (0.0, True)
    stopped = dynamics.validate(prior, 2)
    after, metrics = jax.jit(Dynamics.update, static_argnums=(3, 4))(stopped, batch, 1e-2, DECAY, 2)
    chex.assert_trees_all_equal(after, stopped)
    chex.assert_trees_all_equal(after.validate(prior, 2), stopped)
    assert float(metrics["stopped"]) == 1
    np.testing.assert_allclose(metrics["held_out_error"], np.sort(stopped.best_error)[:2].mean(), rtol=1e-6)


def test_a_step_is_a_draw_of_one_elites_gaussian():
    dynamics = model(elites=2).replace(elites=jnp.array([1, 3]))
    rows = random_batch(4, 400)
    found = dynamics.step(rows.observation, rows.action, KEY)
    expected = [numpy_prediction(dynamics, member, rows.observation, rows.action) for member in range(MEMBERS)]
    means = np.stack([np.concatenate([m[:, :-1] + rows.observation, m[:, -1:]], -1) for m, _ in expected])
    deviations = np.stack([np.exp(log_var / 2) for _, log_var in expected])
    np.testing.assert_allclose(found.mean, means, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.deviation, deviations, rtol=1e-4)
    drawn = np.concatenate([found.next_observation, np.asarray(found.reward)[:, None]], -1)
    noise = np.asarray(jax.random.normal(jax.random.split(KEY)[1], drawn.shape))
    by_member = np.abs(drawn - (means + noise * deviations)).max(-1)
    chosen = by_member.argmin(0)
    assert by_member.min(0).max() < 1e-4
    assert set(chosen.tolist()) == {1, 3}
    assert 100 < (chosen == 1).sum() < 300


# ----------------------------------------------------------------------------- the buffer


def numbered(*numbers) -> Batch:
    return jax.vmap(lambda x: Batch(jnp.full(2, x), jnp.full(1, x), x, jnp.float32(1), jnp.full(2, x)))(
        jnp.asarray(numbers, jnp.float32)
    )


def test_many_rows_are_inserted_in_a_ring_and_those_left_out_are_not():
    buffer = Replay.create(jax.tree.map(lambda x: x[0], numbered(0)), 5)
    extend = jax.jit(Replay.extend)
    buffer = extend(buffer, numbered(1, 2, 3, 4), jnp.array([True, False, True, True]))
    assert (buffer.rows.reward.tolist(), int(buffer.size)) == ([1, 3, 4, 0, 0], 3)
    buffer = extend(buffer, numbered(5, 6, 7, 8), jnp.array([True, True, True, False]))  # beyond the end
    assert (buffer.rows.reward.tolist(), int(buffer.size), int(buffer.inserted)) == ([7, 3, 4, 5, 6], 5, 6)
    chex.assert_trees_all_equal(extend(buffer, numbered(9, 9), jnp.zeros(2, bool)), buffer)
    one_by_one = buffer
    for number in (10, 11, 12, 13, 14):
        one_by_one = one_by_one.insert(jax.tree.map(lambda x: x[0], numbered(number)))
    chex.assert_trees_all_equal(extend(buffer, numbered(10, 11, 12, 13, 14), jnp.ones(5, bool)), one_by_one)


# ----------------------------------------------------------------------------- terminations


@pytest.mark.parametrize("name", ["hopper-medium", "walker2d-medium", "halfcheetah-medium", "InvertedPendulum-v5"])
def test_bodies_terminate_where_their_environments_say_so(name):
    """A step from each of 10,000 random states, most of them about the edges."""
    task, rng = tasks.find(name), np.random.default_rng(0)
    environment = environments.make(task)
    body, reached = environment.raw.unwrapped, []
    environment.reset(0)
    at = 1 if name.startswith("Inverted") else 2  # of the angle
    for _ in range(10_000):
        position = body.init_qpos.copy()
        position[at] = rng.normal(0, {"hopper-medium": 0.15}.get(name, 0.5))
        if at == 2:
            position[1], position[3:] = rng.uniform(0.5, 2.2), rng.normal(0, 0.5, len(position) - 3)
        body.set_state(position, rng.normal(0, 1, body.model.nv))
        reached.append(environment.step(rng.uniform(-1, 1, environment.action_size).astype(np.float32)))
    environment.close()
    rows, reward = (
        np.array([getattr(x, what) for x in reached], np.float32) for what in ("next_observation", "reward")
    )
    ended = np.array([x.terminated for x in reached])
    for own in (np.asarray, jnp.asarray):
        np.testing.assert_array_equal(np.asarray(task.termination(own(rows), own(reward))), ended)
    assert ended.mean() == 0 if "cheetah" in name else 0.1 < ended.mean() < 0.9


@pytest.mark.parametrize(("name", "size"), [("pointmaze-umaze", 4), ("pointmaze-umaze", 6), ("antmaze-umaze", 29)])
def test_mazes_terminate_where_the_goal_is_reached(name, size):
    """The reward says where that is, in training's units; a goal may not be observed."""
    task = tasks.find(name)
    with contextlib.closing(environments.make(task, size)) as environment:
        environment.reset(0)
        action = np.zeros(environment.action_size, np.float32)
        away = environment.step(action)
        environment._success = lambda *_: True
        there = environment.step(action)
    assert [(x.reward, x.terminated) for x in (away, there)] == [(0.0, False), (1.0, True)]
    reward = task.reward_scale * np.array([away.reward, there.reward, 0.45, 0.55]) + task.reward_shift
    expected = [False, True, False, True]
    for own in (np.asarray, jnp.asarray):
        assert np.asarray(task.termination(own(np.zeros((4, size))), own(reward))).tolist() == expected


@pytest.mark.parametrize("name", ["Pendulum-v1", "HalfCheetah-v5", "Swimmer-v5", "Reacher-v5", "Pusher-v5"])
def test_what_never_terminates_does_not(name):
    task, rng = tasks.find(name), np.random.default_rng(0)
    with contextlib.closing(environments.make(task)) as environment:
        environment.reset(0)
        steps = [environment.step(rng.uniform(-1, 1, environment.action_size)) for _ in range(100)]
    rows, reward = np.array([x.next_observation for x in steps]), np.array([x.reward for x in steps])
    assert task.termination is tasks.never
    assert not any(x.terminated for x in steps)
    assert not np.asarray(task.termination(rows, reward)).any()
    assert not np.asarray(task.termination(jnp.full((2, 3), jnp.nan), jnp.full(2, jnp.nan))).any()


def test_terminations_are_those_of_recipes_data(tmp_path, monkeypatch):
    """They are known for all tasks but Adroit's pen, OGBench's, and other people's."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    for name in ("hopper-random", "walker2d-random", "pointmaze-umaze"):
        monkeypatch.setitem(recipes.SIZES, name, 3000)
        task = tasks.find(name)
        rows = (found := datasets.load(task, f"recipe:{name}")).batch(task)
        np.testing.assert_array_equal(task.termination(rows.next_observation, rows.reward), found.terminated)
        assert found.terminated.any()
    unknown = {name for name in tasks.names() if tasks.find(name).termination is None}
    assert unknown == {"pen-human", "pen-cloned", "pen-expert", "cartpole-mixed", "acrobot-mixed"}
    known = {"Hopper-v5": tasks.hopper_falls, "Walker2d-v4": tasks.walker2d_falls, "Humanoid-v5": None}
    assert {name: tasks.find(name).termination for name in known} == known
