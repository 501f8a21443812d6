"""algorithms/decision_transformer.py against an independent NumPy computation, and its semantics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exporting import content_of
from reference import ACTION, OBSERVATION, dense, parameters, random_batch, shaken
from test_agent import MODULES, fresh

from algorithms.decision_transformer import PRESETS, Config, DecisionTransformer, Memory, Prior, Windows
from common import helptext, tasks
from common.commandline import parse
from common.datasets import Dataset
from common.evaluation import Evaluator, episode_seed
from common.exported import Exported, Unusable
from common.policies import Policy
from common.programs import Programs

KEY, CONTEXT = jax.random.key(3), 4
LENGTHS = 3, 9, 1, 7
SMALL = {"context": CONTEXT, "layers": 2, "heads": 2, "embedding": 8, "batch_size": 5, "horizon": 12}


def data(lengths=LENGTHS) -> Dataset:
    count = sum(lengths)
    batch, end = random_batch(1, count), np.zeros(count, bool)
    end[np.cumsum(lengths) - 1] = True
    terminated = end & (np.cumsum(end) % 2 == 0)
    return Dataset(
        batch.observation, batch.action, batch.reward, terminated, end & ~terminated, batch.next_observation,
        np.zeros(count, bool), "npz:test",
    )  # fmt: skip


def prior_of(config=None, lengths=LENGTHS) -> Prior:
    made = DecisionTransformer.prepare(config or Config(), data(lengths), tasks.find("hopper-medium"))
    return jax.tree.map(jnp.asarray, made)


def make_agent(**values) -> DecisionTransformer:
    config = Config(**SMALL | values)
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = DecisionTransformer.create(config, jax.random.key(0), example, prior_of(config))
    (policy,) = shaken(agent.policy)
    return agent.replace(policy=policy, phase="offline")


def windows(seed: int, *leading: int, real=None) -> Windows:
    rng, steps = np.random.default_rng(seed), (*leading, CONTEXT)
    real = np.ones(steps, bool) if real is None else np.broadcast_to(real, steps)
    time = np.broadcast_to(np.arange(CONTEXT), steps).astype(np.int32)
    return Windows(
        **vars(random_batch(seed, *steps)), to_go=rng.normal(size=steps).astype(np.float32), time=time, real=real
    )


def inputs(batch: Windows) -> tuple:
    return batch.to_go, batch.observation, batch.action, batch.time, batch.real


def norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["bias"]


def numpy_forward(agent, to_go, observation, action, time, real):
    """The output at every state of one window: its tokens in a list, without those that pad, one head at a time."""
    own, c = parameters(agent.policy), agent.config
    tokens = []
    for k in np.flatnonzero(real):
        moment = own["moments"]["embedding"][min(int(time[k]), c.horizon - 1)]
        for name, value in (("to_go", np.atleast_1d(to_go[k])), ("observation", observation[k]), ("action", action[k])):
            tokens.append(dense(np.asarray(value, np.float64), own[name]) + moment)
    x = norm(np.stack(tokens), own["LayerNorm_0"])
    for layer in range(c.layers):
        block, size = own[f"Block_{layer}"], c.embedding // c.heads
        qkv = dense(norm(x, block["LayerNorm_0"]), block["Linear_0"])
        query, key, value = np.split(qkv, 3, axis=-1)
        mixed = np.zeros_like(x)
        for head in range(c.heads):
            part = slice(head * size, (head + 1) * size)
            for at in range(len(x)):
                score = np.array([query[at, part] @ key[k, part] for k in range(at + 1)]) / np.sqrt(size)
                weight = np.exp(score) / np.exp(score).sum()
                mixed[at, part] = weight @ value[: at + 1, part]
        x = x + dense(mixed, block["Linear_1"])
        x = x + dense(np.maximum(dense(norm(x, block["LayerNorm_1"]), block["Linear_2"]), 0), block["Linear_3"])
    out = dense(norm(x[1::3], own["LayerNorm_1"]), own["head"])
    return out if c.discrete_actions else np.tanh(out)


REAL = np.array([[True] * 4, [False, True, True, True], [False, False, False, True]])


def test_the_forward_pass_equals_numpy():
    agent, batch = make_agent(), windows(2, 3, real=REAL)
    batch = batch.replace(time=np.array([[9, 10, 11, 12], [0, 0, 1, 2], [0, 0, 0, 7]], np.int32))  # 12 is the last's
    found = np.asarray(agent.policy(*inputs(batch)))
    assert found.shape == (3, CONTEXT, ACTION)
    for row in range(3):
        expected = numpy_forward(agent, *(np.asarray(x)[row] for x in inputs(batch)))
        np.testing.assert_allclose(found[row][REAL[row]], expected, rtol=1e-4, atol=1e-5)


def hot(batch: Windows) -> Windows:
    return batch.replace(action=np.eye(ACTION, dtype=np.float32)[np.asarray(batch.action).argmax(-1)])


@pytest.mark.parametrize("discrete", [False, True])
def test_the_loss_equals_numpy_over_real_steps(discrete):
    agent, batch = make_agent(dropout=0.0, discrete_actions=discrete), windows(2, 3, real=REAL)
    batch = hot(batch) if discrete else batch
    errors = []
    for row in range(3):
        out = numpy_forward(agent, *(np.asarray(x)[row] for x in inputs(batch)))
        action = np.asarray(batch.action, np.float64)[row][REAL[row]]
        if discrete:
            errors += [np.log(np.exp(o).sum()) - o @ a for o, a in zip(out, action, strict=True)]
        else:
            errors += [((o - a) ** 2).mean() for o, a in zip(out, action, strict=True)]
    assert len(errors) == REAL.sum()
    loss, metrics = agent.actor_loss(agent.policy.params, batch, KEY)
    np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-5)
    assert metrics["actor_loss"] == loss


@pytest.mark.parametrize("name", ["to_go", "observation", "action"])
def test_nothing_of_the_future_is_seen(name):
    """An action is seen one step later than the return and the state beside it."""
    agent, batch = make_agent(), windows(2)
    before = np.asarray(agent.policy(*inputs(batch)))
    for step in range(CONTEXT):
        value = np.array(getattr(batch, name))
        value[step] += 1
        moved = np.abs(np.asarray(agent.policy(*inputs(batch.replace(**{name: value})))) - before).max(-1)
        first = step + (name == "action")
        assert (moved[:first] == 0).all()
        assert (moved[first:] > 1e-6).all()


def test_padding_changes_nothing():
    agent, real = make_agent(dropout=0.0), np.arange(CONTEXT) >= 2
    batch = windows(2, 1, real=real)
    pads = ~real[None]
    other = batch.replace(
        to_go=batch.to_go + 9 * pads, time=batch.time + 5 * pads, action=batch.action - 10 * pads[..., None],
        observation=batch.observation + 3 * pads[..., None],
    )  # fmt: skip
    slopes = jax.jit(jax.value_and_grad(lambda p, b: agent.actor_loss(p, b, KEY)[0]))
    one, two = slopes(agent.policy.params, batch), slopes(agent.policy.params, other)
    chex.assert_trees_all_equal(one, two)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(one))
    short = [np.asarray(x)[0][real] for x in inputs(batch)]
    np.testing.assert_allclose(agent.policy(*inputs(batch))[0][real], agent.policy(*short), rtol=1e-4, atol=1e-6)


def test_dropout_is_there_where_it_learns_alone():
    agent, batch = make_agent(dropout=0.5), windows(2, 3)
    losses = [float(agent.actor_loss(agent.policy.params, batch, jax.random.key(k))[0]) for k in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    sure = make_agent(dropout=0.0)
    np.testing.assert_array_equal(agent.policy(*inputs(batch)), sure.policy(*inputs(batch)))


def test_returns_to_go_and_times_by_hand():
    rows = data((2, 3))
    rows.reward[:] = [1, 2, 4, 8, 16]
    prior = DecisionTransformer.prepare(Config(), rows, tasks.find("antmaze-umaze"))
    assert prior.to_go.tolist() == [3, 2, 28, 24, 16]
    assert prior.time.tolist() == [0, 1, 0, 1, 2]
    assert prior.end.tolist() == [1, 1, 4, 4, 4]
    np.testing.assert_array_equal(prior.reward, rows.reward - 1)  # as other algorithms see it


def test_windows_never_cross_episodes_and_hold_what_the_data_have():
    agent, prior = make_agent(batch_size=2000, return_scale=10.0), prior_of()
    drawn = jax.tree.map(np.asarray, jax.jit(DecisionTransformer.sample, static_argnums=2)(agent, KEY, None, prior))
    assert drawn.observation.shape == (1, 2000, CONTEXT, OBSERVATION)
    starts, ends = np.cumsum((0, *LENGTHS))[:-1], np.cumsum(LENGTHS) - 1
    seen = np.asarray(agent.normal(prior.observation))
    found = set()
    for k in range(2000):
        real = drawn.real[0, k]
        steps = int(real.sum())
        assert real.tolist() == [False] * (CONTEXT - steps) + [True] * steps
        (start,) = np.flatnonzero((drawn.observation[0, k][real][0] == seen).all(-1))
        rows = np.arange(start, start + steps)
        end = ends[ends >= start][0]
        assert steps == min(CONTEXT, end - start + 1)
        np.testing.assert_array_equal(drawn.observation[0, k][real], seen[rows])
        np.testing.assert_array_equal(drawn.action[0, k][real], prior.action[rows])
        np.testing.assert_allclose(drawn.to_go[0, k][real], prior.to_go[rows] / 10, rtol=1e-6)
        np.testing.assert_array_equal(drawn.time[0, k][real], rows - starts[starts <= start][-1])
        found.add(int(start))
    assert found == set(range(sum(LENGTHS)))


def test_episodes_are_drawn_in_proportion_to_their_length():
    agent, prior = make_agent(batch_size=20_000), prior_of()
    drawn = agent.sample(KEY, None, prior)
    last = np.asarray(drawn.time[0, :, -1]) - np.asarray(drawn.real[0]).sum(-1) + 1  # the first row's place
    counts = np.bincount(last, minlength=9) / 20_000
    alive = [sum(length > place for length in LENGTHS) / sum(LENGTHS) for place in range(9)]
    np.testing.assert_allclose(counts, alive, atol=0.015)


def test_the_step_size_grows_and_gradients_are_clipped():
    """Against AdamW by hand: decay of all parameters, by the step size of the moment."""
    agent = make_agent(dropout=0.0, learning_rate=0.1, warm_up=4, weight_decay=0.5, gradient_clip=0.01)
    batch, update = windows(2, 3), jax.jit(DecisionTransformer.update_once)
    before = jax.tree.map(lambda x: np.asarray(x, np.float64), agent.policy.params)
    first = second = jax.tree.map(np.zeros_like, before)
    slope = jax.jit(jax.grad(lambda p: agent.actor_loss(p, batch, KEY)[0]))
    for number in range(1, 7):
        gradient = slope(agent.policy.params)
        size = np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(gradient)))
        assert size > 0.01
        gradient = jax.tree.map(lambda g, size=size: np.asarray(g, np.float64) * 0.01 / (size + 1e-6), gradient)
        agent, metrics = update(agent, batch, KEY, jnp.int32(number))
        np.testing.assert_allclose(metrics["gradient_norm"], size, rtol=1e-4)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, gradient)
        rate = 0.1 * min(number / 4, 1)

        def step(x, m, v, n=number, rate=rate):
            return x - rate * (m / (1 - 0.9**n) / (np.sqrt(v / (1 - 0.999**n)) + 1e-8) + 0.5 * x)

        before = jax.tree.map(step, before, first, second)
        if number < 3:  # later, rounding has made much of small gradients
            chex.assert_trees_all_close(agent.policy.params, before, rtol=1e-2, atol=1e-2 * rate)
        before = jax.tree.map(lambda x: np.asarray(x, np.float64), agent.policy.params)
    small = update(make_agent(gradient_clip=1e9, warm_up=1), batch, KEY, jnp.int32(1))[0]
    clipped = update(make_agent(gradient_clip=1e-3, warm_up=1), batch, KEY, jnp.int32(1))[0]
    sizes = [float(sum(jnp.square(m).sum() for m in jax.tree.leaves(a.policy.opt_state.mu))) for a in (small, clipped)]
    np.testing.assert_allclose(np.sqrt(sizes[1]), 0.1 * 1e-3, rtol=1e-3)
    assert sizes[0] > sizes[1]


def play(agent, observations, rewards):
    """Actions of an episode, and the memory after each step."""
    proceed, memory, actions, memories = jax.jit(DecisionTransformer.proceed), agent.recall(), [], []
    for observation, reward in zip(observations, rewards, strict=True):
        action, memory = proceed(agent, memory, observation, reward)
        actions.append(np.asarray(action))
        memories.append(memory)
    return np.stack(actions), memories


@pytest.mark.parametrize("discrete", [False, True])
def test_acting_equals_the_whole_forward_pass_in_an_episode_longer_than_the_context(discrete):
    """Also beyond the last time that has a vector of its own."""
    agent = make_agent(discrete_actions=discrete, target_return=50.0, return_scale=10.0)
    steps, rng = 15, np.random.default_rng(5)
    observations, rewards = random_batch(6, steps).observation, rng.normal(size=steps).astype(np.float32)
    rewards[0] = 0  # nothing has led to the first
    actions, _ = play(agent, observations, rewards)
    to_go, seen = (50 - np.cumsum(rewards)) / 10, np.asarray(agent.normal(observations))
    for t in range(steps):
        rows = slice(max(0, t + 1 - CONTEXT), t + 1)
        time, real = np.arange(steps)[rows], np.ones(min(t + 1, CONTEXT), bool)
        expected = numpy_forward(agent, to_go[rows], seen[rows], actions[rows], time, real)[-1]
        if discrete:
            assert actions[t].tolist() == np.eye(ACTION)[expected.argmax()].tolist()
        else:
            np.testing.assert_allclose(actions[t], expected, rtol=1e-3, atol=1e-5)
    if not discrete:
        assert actions.std(axis=0).min() > 1e-3


@pytest.mark.parametrize("kind", [Exported, Policy])
@pytest.mark.parametrize("discrete", [False, True])
def test_a_policy_file_remembers_as_the_agent_does(kind, discrete):
    """Two episodes side by side, beyond the context, the second time after a reset."""
    agent = make_agent(discrete_actions=discrete, target_return=50.0, return_scale=10.0)
    agent = jax.tree.map(np.asarray, agent)
    policy = kind("memory.npz", content_of(agent))
    rng = np.random.default_rng(5)
    rewards = rng.normal(size=(2, 15)).astype(np.float32)
    rewards[:, 0] = 0
    observations = random_batch(6, 2, 15).observation
    expected = np.stack([play(agent, *episode)[0] for episode in zip(observations, rewards, strict=True)])
    for _ in range(2):
        policy.reset()
        for step in range(15):
            found = policy.act(observations[:, step], reward=rewards[:, step])
            np.testing.assert_allclose(found, expected[:, step], rtol=1e-3, atol=2e-5)
    with pytest.raises(Unusable, match=r"2 episodes have begun, not 1; call reset first"):
        policy(observations[0, 0])
    with pytest.raises(Unusable, match=r"the reward is nan, not a finite number"):
        policy(observations[:, 0], reward=np.nan)
    policy.reset()
    own = policy(observations[0, 0])
    np.testing.assert_allclose(own, policy.own_units(expected[:1, 0])[0], rtol=1e-3, atol=2e-5)


def test_the_return_asked_for_is_that_of_the_best_episode_unless_it_is_named():
    returns = [prior_of().to_go[start] for start in np.cumsum((0, *LENGTHS))[:-1]]
    np.testing.assert_allclose(make_agent().recall().to_go, np.max(returns) / 1000, rtol=1e-6)
    np.testing.assert_allclose(make_agent(target_return=-30.0).recall().to_go, -0.03, rtol=1e-6)
    low, high = (make_agent(target_return=x, return_scale=1.0).act(jnp.ones((2, OBSERVATION))) for x in (1.0, 5.0))
    assert np.abs(low - high).min() > 1e-4


class Line:
    """Episodes of different lengths; the reward tells the step, the observation the seed and the step."""

    observation_size = OBSERVATION

    def reset(self, seed):
        self.seed, self.step_count = seed, 0
        return self._seen()

    def step(self, action):
        self.step_count += 1
        over = self.step_count == 2 + self.seed % 5
        reward = float(np.sum(action) * self.step_count)
        return Taken(self._seen(), reward, over)

    def _seen(self):
        return np.random.default_rng([self.seed, self.step_count]).normal(size=OBSERVATION).astype(np.float32)

    def close(self):
        pass


class Taken:
    def __init__(self, next_observation, reward, terminated):
        self.next_observation, self.reward, self.terminated = next_observation, reward, terminated
        self.truncated, self.success = False, False


def evaluated(agents, seeds, workers=0, episodes=5, most=None, devices=1):
    """Outcomes of agents [runs, ...], as training.Session plays them."""
    programs = Programs(DecisionTransformer, jax.tree.map(lambda x: x[0], agents.config), len(seeds), None, devices)
    evaluator = Evaluator(Line, len(seeds), episodes, workers, most=most)
    agents, told = programs.place(agents), []
    memory = programs.room(agents, evaluator.slots)

    def act(observations):
        nonlocal memory
        actions, memory = programs.proceed(memory, agents, observations, *told[-1])
        return actions

    outcomes = evaluator(act, seeds, 7, telling=lambda latest: told.append(jax.tree.map(np.copy, latest)))
    evaluator.close()
    return [outcome.returns.tolist() for outcome in outcomes], told


def stacked(*agents):
    return jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *agents)


def test_evaluations_are_the_same_whatever_runs_beside_them_and_in_however_many_processes():
    one, two = (make_agent(target_return=x, return_scale=1.0) for x in (3.0, -2.0))
    together, told = evaluated(stacked(one, two), [4, 9])
    assert evaluated(stacked(two), [9])[0] == together[1:]
    assert evaluated(stacked(one, two), [4, 9], workers=3)[0] == together
    # One environment of each run, which plays its episodes one after the other: each forgets the one before.
    assert evaluated(stacked(one, two), [4, 9], most=2)[0] == together
    assert together[0] != together[1]
    # Three runs on two devices, of which the second has one.
    spread = evaluated(stacked(one, two, one), [4, 9, 4], devices=2)[0]
    np.testing.assert_allclose(spread, [*together, together[0]], rtol=1e-4, atol=1e-5)
    assert all(told[0].begins.ravel())
    assert not np.any(told[1].begins)


def test_episodes_are_those_that_a_fresh_memory_plays():
    agent = make_agent(target_return=3.0, return_scale=1.0)
    (returns,), told = evaluated(stacked(agent), [4], most=1)
    assert sum(int(t.begins.sum()) for t in told) == 5
    assert all((t.rewards[t.begins] == 0).all() for t in told)
    for number, return_ in enumerate(returns):
        line, memory, reward, total, over = Line(), agent.recall(), 0.0, 0.0, False
        observation = line.reset(episode_seed(4, 1, 7, number))
        while not over:
            action, memory = agent.proceed(memory, observation, jnp.float32(reward))
            taken = line.step(np.asarray(action))
            observation, reward, over = taken.next_observation, taken.reward, taken.terminated
            total += reward
        np.testing.assert_allclose(return_, total, rtol=1e-4, atol=1e-5)


def test_agents_without_memory_have_no_room_for_one():
    agent, _ = fresh(MODULES["bc"])
    programs = Programs(type(agent), agent.config, 1, None, 1)
    assert programs.room(jax.tree.map(lambda x: np.asarray(x)[None], agent), 3) is None
    mine = make_agent()
    room = Programs(DecisionTransformer, mine.config, 1, None, 1).room(stacked(mine), 3)
    assert isinstance(room, Memory)
    assert room.observation.shape == (1, 3, CONTEXT, OBSERVATION)


def test_it_learns_which_return_is_asked_for():
    """Two kinds of episodes: in those of return 1 all actions are 0.6, in those of return 0 they are -0.6."""
    rng, lengths = np.random.default_rng(0), (6,) * 40
    rows = data(lengths)
    good = np.repeat(rng.uniform(size=40) < 0.5, 6)
    rows.action[:] = np.where(good, 0.6, -0.6)[:, None]
    rows.reward[:] = good & rows.truncated | good & rows.terminated
    config = Config(**SMALL | {"return_scale": 1.0, "learning_rate": 1e-2, "warm_up": 10, "batch_size": 32})
    prior = jax.tree.map(jnp.asarray, DecisionTransformer.prepare(config, rows, tasks.find("hopper-medium")))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = DecisionTransformer.create(config, jax.random.key(0), example, prior).replace(phase="offline")
    learn = jax.jit(DecisionTransformer.update_offline, static_argnums=4)
    agent, metrics = learn(agent, jax.random.split(KEY, 150), 1 + jnp.arange(150), prior, False)
    assert metrics["actor_loss"][-1] < 0.1 * metrics["actor_loss"][0]
    observations, rewards = random_batch(6, 8).observation, np.zeros(8, np.float32)
    for asked, expected in ((1.0, 0.6), (1e-9, -0.6)):
        actions, _ = play(agent.replace(config=agent.config.replace(target_return=asked)), observations, rewards)
        np.testing.assert_allclose(actions, expected, atol=0.2)


def test_presets_are_the_authors():
    def config(env, *arguments):
        return parse(["--env", env, *arguments], "decision_transformer", "", Config, PRESETS).config

    c = config("hopper-medium")
    assert (c.learning_rate, c.weight_decay, c.warm_up, c.gradient_clip) == (1e-4, 1e-4, 10_000, 0.25)
    assert (c.context, c.layers, c.heads, c.embedding, c.dropout, c.batch_size) == (20, 3, 1, 128, 0.1, 64)
    assert (c.return_scale, c.horizon, c.offline_steps, c.discrete_actions) == (1000.0, 1000, 100_000, False)
    targets = {"hopper-medium": 3600, "halfcheetah-medium-replay": 12_000, "walker2d-medium-expert": 5000}
    assert {name: config(name).target_return for name in targets} == targets
    assert config("cartpole-mixed").discrete_actions
    assert {"hopper-medium", "acrobot-mixed"} <= set(helptext.playable(Config))
    assert config("antmaze-umaze").return_scale == 1
    assert Config(heads=3).problem() == "--embedding 128 cannot be divided among --heads 3: name a multiple"
    for preset in PRESETS.values():
        fields = Config.__dataclass_fields__
        assert Config(**{k: v for k, v in preset.items() if k in fields}).problem() is None
