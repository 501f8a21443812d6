"""mopo.py and common/dynamics.py against yihaosun1124/OfflineRL-Kit: EnsembleDynamics and MOPOPolicy.learn.

Their density has 1e-6 in its logarithm, which is taken out for the cases that are meant to be equal. Their model draws
a noise for every member and takes the chosen one's; here both draw one. `check` also serves combo.py.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import mopo
from benchmarks.studies.parity import harness as h
from common import dynamics, tasks
from common.dynamics import Dynamics, ModelData

torch = h.pytorch()
h.stub("gym.envs.mujoco", "torch.utils.tensorboard")
NAMES = "modules", "nets", "dynamics", "policy", "utils.scaler", "utils.termination_fns"
modules, nets, ensemble, policy, scaler, terminations = h.theirs(
    "OfflineRL-Kit", *(f"offlinerlkit.{name}" for name in NAMES)
)
SIZE, WIDTH, MEMBERS, ELITES = 64, 32, 4, 3
DECAY = (2.5e-5, 5e-5, 1e-4)
PARTS = "actor", "critic", "target_critic", "temperature"


@contextlib.contextmanager
def doubled(exact: bool = True) -> Any:
    """Their single precision as this check's, and if `exact` their density without its 1e-6."""
    kind = modules.dist_module.TanhNormalWrapper

    def log_prob(self: Any, action: Any, raw_action: Any) -> Any:
        squashing = 2 * (np.log(2.0) - raw_action - torch.nn.functional.softplus(-2 * raw_action))
        return (torch.distributions.Normal.log_prob(self, raw_action) - squashing).sum(-1, keepdim=True)

    with contextlib.ExitStack() as stack:
        stack.enter_context(h.mock.patch.object(torch, "float32", torch.get_default_dtype()))
        if exact:
            stack.enter_context(h.mock.patch.object(kind, "log_prob", log_prob))
        yield


# ---------------------------------------------------------------------- the model


def members_tree(model: Any) -> h.Tree:
    """Their model's parameters as ours."""
    own = {f"Dense_{k}": h.linear(layer) for k, layer in enumerate((*model.backbones, model.output_layer))}
    bounds = {f"{which}_log_var": getattr(model, f"{which}_logvar").detach().numpy().copy() for which in ("max", "min")}
    return h.real({"params": own | bounds})


def models(prior: ModelData) -> tuple[Any, Dynamics]:
    """Theirs, moved a little, and ours with its parameters, of the same data."""
    shape = h.OBSERVATION, h.ACTION, (WIDTH, WIDTH), MEMBERS, ELITES
    model = modules.EnsembleDynamicsModel(*shape, weight_decays=DECAY).to(torch.get_default_dtype())
    h.jitter_torch([*model.backbones, model.output_layer], 0.1)
    model.min_logvar.data.fill_(-2.0)  # within reach
    theirs = ensemble.EnsembleDynamics(
        model, torch.optim.Adam(model.parameters(), lr=1e-3), scaler.StandardScaler(),
        terminations.termination_fn_hopper, penalty_coef=2.5,
    )  # fmt: skip
    theirs.scaler.fit(np.concatenate([prior.observation, prior.action], -1))
    ours = Dynamics.create(jax.random.key(0), prior, (WIDTH, WIDTH), MEMBERS, ELITES)
    return theirs, ours.replace(network=h.fresh(ours.network, members_tree(model)))


def prior_of(rows: int) -> ModelData:
    """Rows about the edges of hopper's health."""
    (d,) = h.batches(1, rows, seed=3)
    columns = {name: jnp.asarray(d[name]) for name in h.NAMES}
    columns["observation"] = 0.2 * columns["observation"] + jnp.asarray([0.9, *[0.0] * (h.OBSERVATION - 1)])
    return ModelData(**columns, termination=tasks.hopper_falls)


def check_model() -> None:
    """Five updates of the model, what is held out and restored, and a step of a rollout."""
    table, prior = h.Table("mopo/the model"), prior_of(400)
    with doubled():
        theirs, ours = models(prior)
        start, reached, mine, losses = members_tree(theirs.model), [], [], []
        for k in range(5):
            rows = np.random.default_rng(k).integers(0, 400, (MEMBERS, SIZE))
            batch = jax.tree.map(lambda x, rows=rows: x[rows], prior.transitions())
            inputs = theirs.scaler.transform(np.concatenate([batch.observation, batch.action], -1))
            loss = theirs.learn(inputs, np.asarray(dynamics.outcome(batch)), SIZE)
            losses.append((float(ours.loss(ours.network.params, batch, DECAY)[0]), loss))
            ours, _ = ours.update(batch, 1e-3, DECAY, 5)
            mine.append({"model": ours.network.params})
            reached.append({"model": members_tree(theirs.model)})
        table.scalar("loss (1st)", *losses[0])
        table.scalar("loss (5th)", *losses[-1])
        table.changes(mine, reached, {"model": start}, at=(1, 5))

        held_out = jax.tree.map(lambda x: np.asarray(x[ours.held_out]), prior.transitions())
        inputs = theirs.scaler.transform(np.concatenate([held_out.observation, held_out.action], -1))
        errors = theirs.validate(inputs, np.asarray(dynamics.outcome(held_out)))
        table.row("held-out errors", h.error({"x": ours.error(prior)}, {"x": np.array(errors)}))
        # Members 1 and 2 were worse before, and the others better.
        before = np.array(errors) * [0.5, 2.0, 2.0, 0.9]
        theirs.model.update_save([1, 2])
        ours = ours.replace(best_error=jnp.asarray(before)).validate(prior, 5)
        for layer in (*theirs.model.backbones, theirs.model.output_layer):
            layer.weight.data.add_(1)
        theirs.model.load_save()
        elsewhere = jax.tree.map(lambda x: x + 1, ours.network.params)
        ours = ours.replace(network=ours.network.replace(params=elsewhere)).restored()
        elites = theirs.select_elites([min(pair) for pair in zip(errors, before, strict=True)])
        same = "equal" if ours.elites.tolist() == elites else "not equal"
        table.row("elites", same, f"ours {ours.elites.tolist()}, theirs {elites}")
        bettered = (dynamics.layers(tree) for tree in (ours.network.params, members_tree(theirs.model)))
        bettered = (jax.tree.map(lambda x: x[jnp.array([1, 2])], tree) for tree in bettered)
        table.row("restored layers of bettered members", h.error(*bettered))

        theirs, ours = models(prior)
        theirs.model.set_elites([0, 2, 3])
        ours = ours.replace(elites=jnp.array([0, 2, 3]))
        rng = np.random.default_rng(5)
        place, noise = rng.integers(0, 3, 400), rng.standard_normal((400, h.OBSERVATION + 1))
        agent = mopo.MOPO.create(
            mopo.Config(hidden=(4,), penalty=2.5, members=MEMBERS), jax.random.key(0), h.example(), prior
        )
        with (
            h.mock.patch.object(np.random, "normal", lambda size: np.broadcast_to(noise, size)),
            h.mock.patch.object(np.random, "choice", lambda a, size: a[place]),
            h.mock.patch.object(np, "float32", h.REAL),
        ):
            following, reward, terminal, _ = theirs.step(*map(np.asarray, (prior.observation, prior.action)))
        with (
            h.mock.patch.object(jax.random, "normal", lambda *_: jnp.asarray(noise)),
            h.mock.patch.object(jax.random, "randint", lambda *_: jnp.asarray(place)),
        ):
            found = ours.step(prior.observation, prior.action, jax.random.key(0))
        table.row("next observations", h.error({"x": found.next_observation}, {"x": following}))
        table.row("penalised rewards", h.error({"x": agent.imagined_reward(found)}, {"x": reward[:, 0]}))
        over = tasks.hopper_falls(found.next_observation, found.reward)
        table.row("terminations that differ", int((np.asarray(over) != terminal[:, 0]).sum()), f"of {over.sum()}")


# ---------------------------------------------------------------------- the policy


def networks() -> tuple[Any, list[Any]]:
    """Their actor and both critics."""
    inputs = h.OBSERVATION, h.OBSERVATION + h.ACTION, h.OBSERVATION + h.ACTION
    bodies = [nets.MLP(input_dim=size, hidden_dims=[WIDTH, WIDTH]) for size in inputs]
    head = modules.TanhDiagGaussian(WIDTH, h.ACTION, unbounded=True, conditioned_sigma=True)
    return modules.ActorProb(bodies[0], head), [modules.Critic(body) for body in bodies[1:]]


def body(net: Any) -> list[h.Tree]:
    """The hidden layers of theirs."""
    return [h.linear(layer) for layer in net.backbone.model if hasattr(layer, "weight")]


def trees(theirs: Any) -> dict[str, h.Tree]:
    """Their parameters as ours."""
    head = theirs.actor.dist_net
    actor = h.network(body(theirs.actor), h.linear(head.mu), h.linear(head.sigma))

    def critics(*pair: Any) -> h.Tree:
        return h.stack_trees(*(h.network(body(net), h.linear(net.last)) for net in pair))

    log = theirs._log_alpha.detach().numpy().copy()[0]
    found = actor, critics(theirs.critic1, theirs.critic2), critics(theirs.critic1_old, theirs.critic2_old)
    return dict(zip(PARTS, map(h.real, (*found, {"params": {"log": log}})), strict=True))


def build(kind: Any, **values: Any) -> Any:
    """Their policy of a `kind`, moved a little, its targets elsewhere."""
    actor, critics = networks()
    optimisers = [
        torch.optim.Adam(net.parameters(), lr=rate) for net, rate in ((actor, 1e-4), *((c, 3e-4) for c in critics))
    ]
    log_alpha = torch.full((1,), -0.2, requires_grad=True)
    alpha = -h.ACTION, log_alpha, torch.optim.Adam([log_alpha], lr=1e-4)
    theirs = kind(None, actor, *critics, *optimisers, alpha=alpha, **values)
    h.jitter_torch([actor, *critics, theirs.critic1_old, theirs.critic2_old], 0.05)
    return theirs


def tensors(batch: dict[str, np.ndarray], rows: slice) -> dict[str, Any]:
    """Rows of a minibatch as they take them."""
    columns = {
        "observations": batch["observation"], "actions": batch["action"],
        "next_observations": batch["next_observation"], "rewards": batch["reward"][:, None],
        "terminals": 1 - batch["mask"][:, None],
    }  # fmt: skip
    return {name: torch.as_tensor(column[rows]) for name, column in columns.items()}


def check(
    table: h.Table, theirs: Any, ours: Any, real: int, exact: bool, losses: dict[str, str], draws: h.Draws | None = None
) -> tuple[dict[str, Any], dict[str, float]]:
    """Losses, and parameters after one and five updates; the first rows are `real`. `losses`: ours -> theirs.

    Returns what either side tells of the first update.
    """
    start = trees(theirs)
    parts = {part: h.fresh(getattr(ours, part), tree) for part, tree in start.items()}
    ours = ours.replace(phase="offline", **parts)
    data, reached, logs = h.batches(5, SIZE), [], []
    with h.fixed(h.Draws()), doubled(exact):
        for d in data:
            logs.append(theirs.learn({"real": tensors(d, slice(real)), "fake": tensors(d, slice(real, None))}))
            reached.append(trees(theirs))
    with h.fixed(draws or h.Draws()):
        mine, metrics = h.followed(ours, [mopo.Batch(**h.stacked([d])) for d in data], PARTS)
    for name, their_names in losses.items():
        table.scalar(f"{name} (1st)", metrics[0][name], sum(logs[0][key] for key in their_names.split()))
    table.changes(mine, reached, start, at=(1, 5))
    return metrics[0], logs[0]


def check_policy() -> None:
    """Five updates of actor, critics and temperature."""
    losses = {"critic_loss": "loss/critic1 loss/critic2", "actor_loss": "loss/actor"}
    for name, exact, differs in (("the policy", True, ""), ("their density", False, "1e-6 in their logarithm")):
        theirs = build(policy.MOPOPolicy)
        config = mopo.Config(hidden=(WIDTH, WIDTH), model_hidden=(4,), decay=False)
        ours = mopo.MOPO.create(config, jax.random.key(0), h.example(), prior_of(40))
        check(h.Table(f"mopo/{name}", differs), theirs, ours, 3, exact, losses)


if __name__ == "__main__":
    check_model()
    check_policy()
