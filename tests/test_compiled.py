"""Compiled losses and updates give the numbers of plain ones, at sizes at which XLA has been wrong.

jax 0.10.2 and later compute some fused reductions on a CPU wrongly, without a word, from 32,769 rows on
(jax-ml/jax#39103: the last rows of a vmapped product that is squared and summed). Python 3.11 gets 0.10.2.
"""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from served import agent_of
from test_agent import MODULES, data, small, some

from common import tasks
from common.networks import Critic, Ensemble
from common.programs import Learner, Programs
from common.replay import Episode, Replay

pytestmark = pytest.mark.optimised


@pytest.mark.parametrize("name", some("rlpd", "bc"))
def test_a_seed_learns_the_same_alone_in_a_group_and_uncompiled(name):
    """The first two to the last bit, at real widths, where the compiler has a choice."""
    kind = agent_of(MODULES[name])
    config = small(MODULES[name], hidden=(256, 256), actor_hidden=(256, 256), batch_size=257, ensemble=3, utd=2)
    alone, together = Learning(kind, config, [1]), Learning(kind, config, [0, 1, 2])
    first, third = alone.after(1), alone.after(3)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[0], third), jax.tree.map(lambda x: x[1], together.after(3)))
    (plain, expected), (compiled, metrics) = alone.after(1, compiled=False), first
    chex.assert_trees_all_close(metrics, expected, rtol=1e-4, atol=1e-5)
    # Of Adam's first step, which is the learning rate whatever the gradient's size, the moments tell more.
    for network in ("actor", "critic", "value", "policy", "vae"):
        if hasattr(plain, network):
            states = (getattr(x, network).opt_state for x in (compiled, plain))
            moments = (x.trace if isinstance(x, optax.TraceState) else x.mu for x in states)
            chex.assert_trees_all_close(*moments, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("members", "batch", "hidden"),
    [
        (1, 32_769, (3,)),
        pytest.param(2, 33_001, (8,), marks=pytest.mark.every),
        (3, 10_923, (16, 16)),
        pytest.param(129, 257, (16,), marks=pytest.mark.every),
    ],
)
def test_many_rows_are_reduced_rightly(members, batch, hidden):
    """The critics' loss over as many rows as hundreds of critics have, its parts and its gradient."""
    rng = np.random.default_rng(0)
    observation, action = (rng.normal(size=(batch, size)).astype(np.float32) for size in (3, 1))
    target = np.arange(batch, dtype=np.float32) / batch
    critic = Ensemble.create(Critic(hidden), jax.random.key(1), jnp.zeros(3), jnp.zeros(1), members=members)

    def losses(params):
        return jnp.square(critic(observation, action, params=params) - target)

    def rows(params):
        return losses(params).sum(axis=0)

    def loss(params):
        return losses(params).mean(axis=-1).sum()

    with unoptimised(), jax.disable_jit():
        expected = losses(critic.params), rows(critic.params), loss(critic.params), jax.grad(loss)(critic.params)
    got = tuple(jax.jit(f)(critic.params) for f in (losses, rows, loss, jax.grad(loss)))
    chex.assert_trees_all_close(got, expected, rtol=1e-3, atol=1e-4)


def test_squared_actions_of_many_rows_are_summed_rightly():
    """Cloning's distance and a Gaussian's density, over rows whose last ones stand out."""
    rows = jnp.arange(32_769, dtype=jnp.float32)[:, None] * jnp.array([1.0, 0.0, 0.0])
    for function in (lambda x: jnp.square(x).sum(-1), lambda x: jnp.square(x).mean(), lambda x: (-0.5 * x**2).sum(-1)):
        with unoptimised(), jax.disable_jit():
            expected = function(rows)
        np.testing.assert_allclose(jax.jit(function)(rows), expected, rtol=1e-5)


@contextlib.contextmanager
def unoptimised():
    """Without XLA's expensive passes."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


class Learning:
    """An algorithm's agents of these seeds as their first phase begins, and the program of its updates."""

    def __init__(self, kind, config, seeds):
        count, rows, task = len(seeds), data(400), tasks.find("hopper-medium")
        if config.expert is not None:  # what it learns of experience is no part of a step
            config = config.replace(offline_steps=10)
        self.phase = next(phase for phase, steps in config.phases if steps)
        self.programs = Programs(kind, config, count, None, 1)
        self.prior = self.programs.share(kind.prepare(config, rows, task))
        self.seeds = self.programs.place(np.array(seeds, np.int32))
        self.of_runs = jax.tree.map(lambda x: np.full(count, x, np.float32), config)
        self.example = jax.tree.map(lambda x: np.repeat(x[:1], count, axis=0), rows.batch(task))

    def begun(self):
        with unoptimised():  # what learns is to be looked at
            agents = self.programs.create(self.of_runs, self.seeds, self.example, self.prior)
            return self.programs.enter(agents, self.seeds, self.phase, self.prior)

    def after(self, updates, compiled=True):
        """The agents after so many updates on prior data, or one environment step, and metrics: [seeds, ...]."""
        programs, agents = self.programs, self.begun()
        with contextlib.ExitStack() as plainly:
            if not compiled:  # one operation after another: nothing is fused, and there is nothing to optimise
                plainly.enter_context(unoptimised())
                plainly.enter_context(jax.disable_jit())
            if self.phase == "online":
                experience = programs.place(jax.vmap(lambda row: Replay.create(row, 40))(self.example))
                episode = Episode(*(np.zeros(len(self.seeds), dtype) for dtype in (bool, np.float32, np.int32)))
                learn = programs.learn if compiled else programs._learn
                step = 1 if compiled else jnp.int32(1)
                rows = self.example, episode, self.example.observation
                learner, _, metrics = learn(Learner(agents, experience), self.seeds, step, *rows, self.prior)
                agents = learner.agent
            else:
                offline = programs.offline if compiled else programs._offline
                agents, metrics = offline(agents, self.seeds, self.phase, 0, 1, updates, False, self.prior)
                metrics = jax.tree.map(lambda x: x[:, :updates], metrics)
        return programs.host((agents, metrics))
