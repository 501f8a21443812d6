"""combo.py against yihaosun1124/OfflineRL-Kit: COMBOPolicy.learn. Its model is MOPO's: mopo.py.

The result of their `reshape` of values [batch times actions, 1] to [batch, actions, 1] is thrown away; here it is kept.
Their actions are drawn [batch times n, action], ours [n, batch, action]: the draws of ours are turned. As in mopo.py,
their density is without the 1e-6 in its logarithm, but for one case.
"""

from __future__ import annotations

import contextlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from algorithms import combo
from benchmarks.studies.parity import harness as h
from benchmarks.studies.parity import mopo

ACTIONS, REAL = 5, 24
torch = h.pytorch()


class Turned(h.Draws):
    """Arrays [n, batch, action] are theirs of [batch times n, action]."""

    def take(self, kind: str, shape: tuple[int, ...], make: Callable) -> np.ndarray:
        """The next array of a kind."""
        if len(shape) != 3:
            return super().take(kind, shape, make)
        return np.swapaxes(super().take(kind, (shape[1], shape[0], shape[2]), make), 0, 1)


def mended() -> type:
    """Their policy with the `reshape` kept, and nothing else changed."""
    kind = mopo.policy.COMBOPolicy
    source = textwrap.dedent(inspect.getsource(kind.learn))
    for critic in (1, 2):
        names = f"[obs_pi_value{critic}, next_obs_pi_value{critic}, random_value{critic}]"
        assert source.count(names) == 1, "their code is another one"
        source = source.replace(names, f"[x.reshape(batch_size, self._num_repeat_actions, 1) for x in {names}]")
    space: dict[str, Any] = {}
    exec(source, kind.learn.__globals__, space)
    return type("Mended", (kind,), {"learn": space["learn"]})


@contextlib.contextmanager
def doubled() -> Any:
    """Their uniform actions in the precision of this check."""
    with h.mock.patch.object(torch, "FloatTensor", lambda *shape: torch.empty(shape, dtype=torch.get_default_dtype())):
        yield


def check(name: str, values: dict[str, Any], theirs: dict[str, Any], exact: bool = True, differs: str = "") -> None:
    """`values` are of our Config, `theirs` of their policy."""
    table = h.Table(f"combo/{name}", differs)
    space = h.namespace(low=np.array([-1.0]), high=np.array([1.0]))
    made = mopo.build(
        mended(), action_space=space, with_lagrange=False, num_repeart_actions=ACTIONS, cql_weight=5.0, **theirs
    )
    shape = {"hidden": (mopo.WIDTH,) * 2, "model_hidden": (4,), "batch_size": mopo.SIZE, "real_ratio": REAL / mopo.SIZE}
    config = combo.Config(actions=ACTIONS, decay=False, **shape, **values)
    ours = combo.COMBO.create(config, jax.random.key(0), h.example(), mopo.prior_of(40))
    with doubled():
        mine, log = mopo.check(table, made, ours, REAL, exact, {"actor_loss": "loss/actor"}, Turned())
    whole = mine["critic_loss"] + 2 * config.weight * mine["difference"]
    table.scalar("critic loss (1st)", whole, log["loss/critic1"] + log["loss/critic2"])


if __name__ == "__main__":
    check("mix", {}, {})
    check("model", {"rho": "model"}, {"rho_s": "model"})
    check("entropy in the target", {"backup_entropy": True}, {"deterministic_backup": False})
    check("their density", {}, {}, exact=False, differs="1e-6 in their logarithm")
