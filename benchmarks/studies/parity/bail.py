"""bail.py against lanyavik/BAIL: gains, the envelope's updates, selection, cloning, and the progressive form.

Two mistakes of theirs are repaired for the comparison of the progressive form: "best parameters" are copied when they
are noted, and given at once to the envelope that selects. Each of its steps updates the envelope, validates it, and
updates the policy; our methods are called in this order.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import bail
from benchmarks.studies.parity import harness as h
from common.datasets import Dataset, transforms

torch = h.pytorch()
h.stub("gym", "matplotlib.pyplot", "spinup.utils.logx", "spinup.utils.run_utils", "spinup.algos.BAIL.bail_training")
FOLDER = "BAIL/spinup/spinup/algos/BAIL"
training, utils = h.theirs(FOLDER, "bail_training", "utils")
sys.modules["spinup.algos.BAIL"].utils = utils
gains_of, static = h.theirs(FOLDER, "main_get_mcret", "main_static_bail")


def doubled() -> Any:
    """Their single precision as this check's."""
    stack = h.contextlib.ExitStack()
    stack.enter_context(
        h.mock.patch.object(torch, "FloatTensor", lambda x: torch.tensor(x, dtype=torch.get_default_dtype()))
    )
    stack.enter_context(h.mock.patch.object(torch.Tensor, "float", lambda x: x.to(torch.get_default_dtype())))
    return stack


def value_tree(net: torch.nn.Module) -> h.Tree:
    """Ours of their envelope."""
    return h.network([h.linear(layer) for layer in net.affine_layers], h.linear(net.value_head))


def prior_of(rows: int, seed: int = 1) -> bail.Prior:
    """Rows with positive and negative gains."""
    (d,) = h.batches(1, rows, seed=seed)
    gain = 2 + 3 * np.random.default_rng(seed).standard_normal(rows).astype(h.REAL)
    return bail.Prior(**{k: jnp.asarray(d[k]) for k in h.NAMES}, gain=jnp.asarray(gain))


def ours_like(config: bail.Config, prior: bail.Prior, phase: str, **trees: h.Tree) -> bail.BAIL:
    """Our agent with these parameters."""
    agent = bail.BAIL.create(config, jax.random.key(0), h.example(), prior)
    agent = agent.replace(**{part: h.fresh(getattr(agent, part), tree) for part, tree in trees.items()})
    return agent.replace(best=agent.envelope.params, best_loss=jnp.asarray(jnp.inf, h.REAL), phase=phase)


def rows_at(prior: bail.Prior, index: np.ndarray, held_out: jax.Array) -> bail.Rows:
    """A minibatch of these rows."""
    return bail.Rows(**{k: x[index] for k, x in vars(prior).items()}, held_out=held_out[index])


def gains() -> None:
    """Returns of episodes of their horizon, of a shorter one that terminated, and of a longer one."""
    table = h.Table("gains", "ours are kept in single precision")
    rng = np.random.default_rng(0)
    lengths, n = (1000, 40, 1000), 2040
    observation = np.cumsum(rng.standard_normal((n, 3)), axis=0) * 0.1 + 5 * rng.standard_normal((1, 3))
    observation = observation.astype(np.float32)
    reward = rng.standard_normal(n).astype(np.float32)
    following = observation + 1
    following[:-1] = observation[1:]
    ends = np.cumsum(lengths) - 1
    following[ends] += 1
    terminated = np.arange(n) == ends[1]
    buffer = h.namespace(
        get_length=lambda: n,
        index=lambda i: (observation[i], following[i], reward[i], float(reward[i]), bool(terminated[i])),
    )
    states, theirs = gains_of.calculate_mc_gain(buffer)
    ends_here = np.isin(np.arange(n), ends)
    data = Dataset(
        observation, observation, reward, terminated, ends_here & ~terminated, following, np.zeros(n, bool), "test"
    )
    assert np.array_equal(np.array(states), observation)
    ours, plain = transforms.continued_returns(data, reward, 0.99), transforms.returns_to_go(data, reward, 0.99)
    table.row(
        "G of 2040 rows", h.error(ours, np.array(theirs)), f"without going on {h.error(plain, np.array(theirs)):.1e}"
    )


def envelope(updates: int, rows: int) -> None:
    """`train_upper_envelope`, one epoch of so many minibatches of 800, nothing shuffled."""
    table = h.Table("envelope")
    made = []

    class Value(training.Value):
        def __init__(self, *arguments: Any, **keywords: Any):
            super().__init__(*arguments, **keywords)
            made.append((self, value_tree(self)))

    prior = prior_of(rows)
    states, returns = np.array(prior.observation), np.array(prior.gain)
    torch.manual_seed(2)
    with (
        doubled(),
        h.mock.patch.object(training, "Value", Value),
        h.mock.patch.object(np.random, "shuffle", lambda x: None),
    ):
        trained, _ = training.train_upper_envelope(states, returns, h.OBSERVATION, 0, num_epoches=1, k=1000)
    best = int(returns.argmax())
    order = np.append(np.delete(np.arange(rows), best)[: int(rows * 0.8)], best)
    assert len(order) == 800 * updates
    held_out = jnp.zeros(rows, bool)
    ours = ours_like(bail.Config(), prior, "envelope", envelope=made[0][1])
    with jax.disable_jit():
        for index in order.reshape(updates, 800):
            ours, _ = ours.update_once(rows_at(prior, index, held_out), jax.random.key(0), jnp.asarray(1))
    table.change(
        f"envelope after {updates} update{'s' * (updates > 1)}", ours.envelope.params, value_tree(trained), made[0][1]
    )


def selection_and_cloning(updates: int = 5, rows: int = 400) -> None:
    """`select_batch_ue`, where the envelope is above 1, and `BC.train` on what is selected."""
    table = h.Table("static")
    prior = prior_of(rows)
    torch.manual_seed(3)
    net, policy = training.Value(h.OBSERVATION), training.BC(h.OBSERVATION, h.ACTION, 1.0, lr=1e-3, wd=0)
    with torch.no_grad():
        net.value_head.bias.add_(4.0)
    h.jitter_torch([net], seed=None)
    storage = [
        (np.array(s), np.array(s), np.array(a), 0.0, 0.0) for s, a in zip(prior.observation, prior.action, strict=True)
    ]
    buffer = utils.ReplayBuffer()
    buffer.storage = storage
    with doubled(), h.mock.patch.object(utils.ReplayBuffer, "add", lambda self, x: self.storage.append(x)):
        selected, count, _ = static.select_batch_ue(
            buffer, np.array(prior.observation), np.array(prior.gain), net, 0, 1000, None, select_percentage=0.25
        )
    actor = h.three_layers(policy.actor)
    ours = ours_like(bail.Config(), prior, "envelope", envelope=value_tree(net), actor=actor)
    with jax.disable_jit():
        ours = ours.enter("offline", jax.random.key(0), prior)
    mine = set(np.asarray(ours.ranking)[: int(ours.count(rows))].tolist())
    places = {s.tobytes(): i for i, (s, *_) in enumerate(storage)}
    theirs = {places[s.tobytes()] for s, *_ in selected.storage}
    table.row("rows selected by one side only", float(len(mine ^ theirs)), f"of {count}")
    rng = np.random.default_rng(4)
    batches = [rng.choice(sorted(theirs), 100) for _ in range(updates)]
    params, own, losses = [], [], []
    with doubled():
        for index in batches:
            columns = np.array(prior.observation)[index], None, np.array(prior.action)[index], None, None
            logger = h.namespace(store=lambda Loss: losses.append(Loss))
            policy.train(h.namespace(sample=lambda n, columns=columns: columns), 1, 100, logger)
            params.append({"actor": h.three_layers(policy.actor)})
    with jax.disable_jit():
        for number, index in enumerate(batches):
            batch = rows_at(prior, index, ours.held_out)
            ours, metrics = ours.update_once(batch, jax.random.key(0), jnp.asarray(number + 1))
            own.append({"actor": ours.actor.params})
            if not number:
                table.scalar("actor_loss (1st update)", metrics["actor_loss"], losses[0])
    table.changes(own, params, {"actor": actor}, at=(1, updates))


class Repaired(training.BAIL_selebah):
    """Theirs, with best parameters that are what they are called."""

    @property
    def ue_best_parameters(self) -> dict[str, torch.Tensor]:
        """A copy of them."""
        return copy.deepcopy(self.noted)

    @ue_best_parameters.setter
    def ue_best_parameters(self, parameters: dict[str, torch.Tensor]) -> None:
        self.noted = copy.deepcopy(parameters)
        self.best_v_ue.load_state_dict(self.noted)


def progressive(selection: str, rate: float, updates: int = 7, rows: int = 400) -> None:
    """`BAIL_selebah.train`; with a high rate no validation betters the first, and the fifth restores it."""
    table = h.Table(f"progressive, {selection}, rate {rate:g}")
    prior = prior_of(rows)
    torch.manual_seed(5)
    with doubled():
        peer = Repaired(
            h.OBSERVATION, h.ACTION, 1.0, 1, np.array(prior.observation), np.array(prior.gain), ue_lr=rate,
            pct_anneal_type="constant", select_type="border" if selection == "ratio" else "margin",
        )  # fmt: skip
    with torch.no_grad():
        peer.v_ue.value_head.bias.add_(1.0)  # values on both sides of 1
        peer.v_ue.value_head.weight.mul_(10.0)
    start = {"envelope": value_tree(peer.v_ue), "actor": h.three_layers(peer.actor)}
    config = bail.Config(envelope_steps=0, selection=selection, envelope_learning_rate=rate, batch_size=100)
    ours = ours_like(config, prior, "offline", **start)
    validation = np.asarray(ours.validation)
    peer.MC_valiset_indices = validation
    peer.test_states, peer.test_mcrets = (
        torch.as_tensor(np.array(x)[validation]) for x in (prior.observation, prior.gain)
    )
    rng = np.random.default_rng(6)
    indices = [rng.integers(0, rows, 100) for _ in range(updates)]
    theirs, losses, told = [], [], []
    with doubled():
        for number, index in enumerate(indices):
            one = tuple(
                np.array(x)[index]
                for x in (prior.observation, prior.observation, prior.action, prior.reward, prior.mask)
            )
            stored = {}
            peer.train(
                h.namespace(sample=lambda n, require_idxs, one=one, index=index: (*one, index)), number, iterations=1,
                batch_size=100, ue_loss_k=1000, ue_vali_freq=1,
                logger=h.namespace(store=lambda stored=stored, **x: stored.update(x)),
            )  # fmt: skip
            losses.append(stored)
            told.append((float(peer.ue_valiloss_min), peer.num_increase))
            theirs.append({
                "envelope": value_tree(peer.v_ue), "best": value_tree(peer.best_v_ue),
                "actor": h.three_layers(peer.actor),
            })  # fmt: skip
    mine, counts, selected = [], [], []
    with jax.disable_jit():
        for number, index in enumerate(indices):
            batch = rows_at(prior, index, ours.held_out)
            ours, first = ours.update_envelope(batch)
            ours = ours.validate(prior)
            # Their border row is lost where rounding puts its return below border times value.
            selected.append(count := int(losses[number]["BatchUpSize"]))
            with h.mock.patch.object(bail.BAIL, "count", lambda *_, count=count: count):
                ours, second = ours.update_actor(batch)
            mine.append({"envelope": ours.envelope.params, "actor": ours.actor.params, "best": ours.best})
            counts.append((float(ours.best_loss), int(ours.strikes)))
            if not number:
                table.scalar("envelope_loss (1st update)", first["envelope_loss"], losses[0]["UELoss"])
                table.scalar("actor_loss (1st update)", second["actor_loss"], losses[0]["CloneLoss"])
    table.row(
        "rows selected of 25", sum(selected), f"theirs {selected}: one more where it ties, fewer by rounding; ours too"
    )
    table.scalar("least validation loss (last)", counts[-1][0], told[-1][0])
    table.row(
        "validations without a better one, those that differ",
        float(sum(a[1] != b[1] for a, b in zip(counts, told, strict=True))),
        f"theirs {[x[1] for x in told]}",
    )
    table.changes(mine, theirs, start | {"best": start["envelope"]}, at=(1, 5, updates))


def main() -> None:
    """All cases."""
    gains()
    envelope(1, 999)
    envelope(5, 4999)
    selection_and_cloning()
    for selection in ("ratio", "difference"):
        for rate in (3e-3, 1.0):
            progressive(selection, rate)


if __name__ == "__main__":
    main()
