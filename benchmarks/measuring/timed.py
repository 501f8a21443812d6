"""What is timed: updates of ours, and of peers in processes of their own."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import (
    awac,
    awr,
    bail,
    bc,
    bcq,
    bear,
    brac,
    combo,
    cql,
    decision_transformer,
    discrete_bcq,
    edac,
    fisher_brc,
    iql,
    mopo,
    rebrac,
    redq_adaptive_bc,
    rlpd,
    td3_bc,
)
from benchmarks.measuring.apart import Apart
from benchmarks.measuring.ceilings import Product, products
from benchmarks.measuring.instructions import Count, count, instructions
from common import tasks
from common.datasets import Dataset
from common.errors import Refused
from common.layers import Precision
from common.programs import Learner, Programs, block_size
from common.replay import Episode, Replay

TASK = "walker2d-medium"
OBSERVATION, ACTION, ROWS = 17, 6, 1_000_000
CAPACITY = 100_000
OURS: dict[str, tuple[ModuleType, type, dict[str, Any]]] = {
    "rlpd": (rlpd, rlpd.RLPD, {"hidden": (256, 256, 256), "target_subset": 1, "backup_entropy": False}),
    "td3_bc": (td3_bc, td3_bc.TD3BC, {}),
    "iql": (iql, iql.IQL, {}),
    "bc": (bc, bc.BC, {}),
    "edac": (edac, edac.EDAC, {}),
    "cql": (cql, cql.CQL, {}),
    "awac": (awac, awac.AWAC, {}),
    "rebrac": (rebrac, rebrac.ReBRAC, {"batch_size": 256}),
    "bcq": (bcq, bcq.BCQ, {}),
    "bear": (bear, bear.BEAR, {}),
    "brac": (brac, brac.BRAC, {}),
    "fisher_brc": (fisher_brc, fisher_brc.FisherBRC, {}),
    "awr": (awr, awr.AWR, {}),
    "bail": (bail, bail.BAIL, {}),
    "discrete_bcq": (discrete_bcq, discrete_bcq.DiscreteBCQ, {"batch_size": 256}),
    "mopo": (mopo, mopo.MOPO, {"hidden": (256, 256, 256)}),
    "combo": (combo, combo.COMBO, {}),
    "decision_transformer": (decision_transformer, decision_transformer.DecisionTransformer, {}),
    "redq_adaptive_bc": (redq_adaptive_bc, redq_adaptive_bc.REDQAdaptiveBC, {"target_noise": 0.2}),
}
"""Algorithm -> its file, its agent, and what differs from its defaults."""
ONLINE = ("rlpd", "redq_adaptive_bc")
UPDATES = {
    "rlpd": 60, "td3_bc": 400, "iql": 400, "bc": 1000, "edac": 20, "cql": 40, "awac": 200, "rebrac": 200,
    "bcq": 40, "bear": 40, "brac": 40, "fisher_brc": 40, "awr": 1200, "bail": 100, "discrete_bcq": 400,
    "mopo": 1000, "combo": 1000, "decision_transformer": 20, "redq_adaptive_bc": 100,
}  # fmt: skip
"""Critic steps per timing; of MOPO and COMBO as many as one time of imagining is for."""
PEERS = {
    "rlpd": ("rlpd",),
    "jax_corl": ("td3_bc", "iql", "awac", "cql", "decision_transformer"),
    "unifloral": ("td3_bc", "iql", "bc", "edac", "rebrac", "mopo"),
    "corl": ("td3_bc", "iql", "bc", "edac", "awac", "cql"),
    "adaptive_bc": ("redq_adaptive_bc",),
    "bcq": ("bcq",),
}
"""Peer -> what it has. Unifloral's CQL draws one action where the paper's draws ten, and is no measure of ours."""


def actions(rng: np.random.Generator, discrete: bool) -> np.ndarray:
    """[ROWS, ACTION]; one-hot vectors if discrete."""
    if discrete:
        return np.eye(ACTION, dtype=np.float32)[rng.integers(ACTION, size=ROWS)]
    return rng.uniform(-0.99, 0.99, size=(ROWS, ACTION)).astype(np.float32)


def bytes_held(program: jax.stages.Compiled) -> int | None:
    """What a program takes of each device's memory: what goes in, what comes out, and what is there meanwhile."""
    used = program.memory_analysis()
    if used is None:
        return None
    whole = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
    return whole - used.alias_size_in_bytes


class Prepared:
    """Agents of some runs as the offline phase begins, and random data; the online phase of who lives there."""

    def __init__(
        self,
        algorithm: str,
        runs: int,
        hidden: tuple[int, ...] | None = None,
        devices: int | None = None,
        precision: Precision = "default",
    ):
        module, agent_class, values = OURS[algorithm]
        rng = np.random.default_rng(0)
        data = Dataset(
            observation=rng.normal(size=(ROWS, OBSERVATION)).astype(np.float32),
            action=actions(rng, module.Config.discrete_actions),
            reward=rng.normal(size=ROWS).astype(np.float32),
            terminated=np.zeros(ROWS, bool),
            truncated=np.arange(1, ROWS + 1) % 1000 == 0,
            next_observation=rng.normal(size=(ROWS, OBSERVATION)).astype(np.float32),
            success=np.zeros(ROWS, bool),
            source="random",
        )
        config, task = module.Config(**values), tasks.find(TASK)
        if hidden is not None:
            actor = {"actor_hidden": hidden} if hasattr(config, "actor_hidden") else {}
            config = config.replace(hidden=hidden, **actor)
        self.config, self.programs = config, Programs(agent_class, config, runs, None, devices, precision)
        programs, seeds = self.programs, np.arange(runs, dtype=np.int32)
        self.seeds, self.prior = programs.place(seeds), programs.share(agent_class.prepare(config, data, task))
        example = jax.tree.map(lambda x: np.repeat(x[:1], runs, axis=0), data.batch(task))
        agent = programs.create(
            jax.tree.map(lambda x: np.full(runs, x, np.float32), config), seeds, example, self.prior
        )
        self.online = algorithm in ONLINE
        agent = programs.enter(agent, self.seeds, "online" if self.online else "offline", self.prior)
        experience = None
        if self.online:
            experience = programs.place(jax.vmap(lambda row: Replay.create(row, CAPACITY))(example))
            self.played = example, Episode(np.zeros(runs, bool), np.zeros(runs, np.float32), np.ones(runs, np.int32))
        self.learner, self.utd = Learner(agent, experience), config.utd if self.online else 1
        self.updates, self.runs = UPDATES[algorithm], runs

    def counts(self) -> Counter[Product]:
        """The matrix products of one update of one run."""
        agent, experience = jax.tree.map(lambda x: x[0], (self.learner.agent, self.learner.experience))
        batches = jax.eval_shape(lambda key: agent.sample(key, experience, self.prior), jax.random.key(0))
        delay = getattr(self.config, "policy_delay", 1)
        found = products(agent.update, batches, jax.random.key(0), jnp.int32(1), rarely=1 / delay)
        return Counter({product: number / self.utd for product, number in found.items()})


class Ours(Prepared):
    """The jitted updates of these agents, and how long they take."""

    def __init__(self, *what: Any, **more: Any):
        """Of what Prepared takes: compiled, and called twice."""
        super().__init__(*what, **more)
        self.done = 0
        start = time.perf_counter()
        self.program = self.compiled()
        compiling = time.perf_counter() - start
        self.first_calls = compiling + (self.timing() + self.timing()) * self.updates * self.runs

    def timing(self) -> float:
        """Seconds per update, all runs' counted."""
        start = time.perf_counter()
        if self.online:
            for step in range(self.done // self.utd + 1, (self.done + self.updates) // self.utd + 1):
                self.learner, _, metrics = self.programs.learn(*self.arguments(step))
        else:
            agent, metrics = self.programs.offline(*self.offline_arguments())
            self.learner = self.learner.replace(agent=agent)
        jax.block_until_ready((self.learner, metrics))
        self.done += self.updates
        return (time.perf_counter() - start) / self.updates / self.runs

    def arguments(self, step: int) -> tuple:
        """Of one step of the online phase."""
        transition, episode = self.played
        return self.learner, self.seeds, step, transition, episode, transition.observation, self.prior

    def offline_arguments(self) -> tuple:
        """Of the next timed updates of the offline phase."""
        block, grouped = self.block()
        updates = self.done, block, self.updates // block, grouped
        return self.learner.agent, self.seeds, "offline", *updates, self.prior

    def block(self) -> tuple[int, bool]:
        """How many updates the program makes without a look at their number, and whether they are whole groups."""
        agent = self.learner.agent
        grouped = agent.are_whole_groups(self.done, self.updates)
        return block_size(self.updates, agent.period if grouped else 1), grouped

    def compiled(self) -> jax.stages.Compiled:
        """What is timed."""
        if self.online:
            return self.programs.learn.lower(*self.arguments(1)).compile()
        return self.programs.offline.lower(*self.offline_arguments()).compile()

    def started(self) -> Count:
        """What the program starts and moves for one update of all runs."""
        found = count(instructions(self.program.as_text()))
        steps = self.utd if self.online else self.block()[0]
        return Count(found.kernels / steps, found.bytes / steps)

    def memory(self) -> int | None:
        """Bytes that the program holds on each device, data included; None where XLA does not tell."""
        return bytes_held(self.program)


class Peer(Apart):
    """A peer's update: its answers are the seconds of one.

    Or of one step of another `part` of its code, "rollouts" or "decoding", of which it takes `steps` in a row.
    """

    def __init__(
        self, name: str, checkout: Path, algorithm: str, python: str, part: str = "updates", steps: int | None = None
    ):
        module, _, values = OURS[algorithm]
        config = module.Config(**values)
        settings = {
            "algorithm": algorithm, "part": part, "observation": OBSERVATION, "action": ACTION, "rows": ROWS,
            "hidden": getattr(config, "hidden", ()), "updates": steps or UPDATES[algorithm],
            "utd": config.utd if algorithm in ONLINE else 1,
        }  # fmt: skip
        script, flag = Path(__file__).parents[1] / "studies" / "peers" / "theirs.py", name.replace("_", "-")
        command = [python, str(script), flag, str(checkout), json.dumps(settings)]
        self._trouble = f"--{flag} {checkout}: its {algorithm} does not run under {python}"
        try:
            super().__init__(command)
        except OSError as error:
            raise Refused(f"--peer-python {python}: cannot be started ({error.strerror})") from error
        self.first_calls = self.answer()

    def trouble(self) -> str:
        """As Apart.trouble."""
        return self._trouble
