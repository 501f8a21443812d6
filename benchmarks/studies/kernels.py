"""How many kernels an update starts on a GPU, and what they move, counted in programs compiled for it without one.

    JAX_PLATFORMS=cpu python -m benchmarks.studies.kernels --name h100

It needs `pip install -e '.[cuda12]'` and no GPU. With one run, an update on a GPU is bound by the number of its
kernels, which take some microseconds however little they do; with many, by the bytes that they read and write. The
programs are those that `benchmarks.throughput` times, of the same sizes, compiled ahead of time for an H100; the memory
that they hold, with replay buffers and a thousand rows of prior data, is told too. What is fused with what is decided
without trying; which kernel is best for a matrix product is not, so that products may be other kernels on the card.
Rows go to benchmarks/results/kernels_NAME.{csv,json}.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from benchmarks.measuring.instructions import count, instructions
from benchmarks.measuring.timed import CAPACITY, OBSERVATION, ONLINE, OURS, TASK, UPDATES, actions, bytes_held
from benchmarks.reporting.results import publish
from common import tasks
from common.datasets import Dataset
from common.errors import Refused, exiting
from common.layers import Precision
from common.programs import Learner, Programs, block_size
from common.replay import Episode, Replay

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""What XLA has to know of the card: an SXM of 80 GB."""


@dataclass(frozen=True)
class Kernels:
    """What is counted."""

    algorithms: tuple[str, ...] = tuple(OURS)
    """Files of ours."""
    runs: tuple[int, ...] = (1, 10)
    """Numbers of runs side by side."""
    precision: Precision = "default"
    """As `--precision` of a run."""
    capacity: int = CAPACITY
    """Rows of each run's replay buffer, where there is one."""
    name: str = "h100"
    """Of the files in benchmarks/results, after "kernels_"."""


# ---------------------------------------------------------------------- what is compiled


def topology() -> Any:
    """One H100. Raises Refused where JAX cannot compile for it."""
    try:
        return topologies.get_topology_desc(platform="cuda", topology_name="", target_config=H100, topology="1x1x1")
    except (RuntimeError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise Refused(
            f"programs cannot be compiled for a GPU here ({why}): pip install -e '.[cuda12]', and JAX_PLATFORMS=cpu"
        ) from error


def compiled(
    algorithm: str, runs: int, device: Any, precision: Precision = "default", capacity: int = CAPACITY
) -> tuple[jax.stages.Compiled, int]:
    """The program of an algorithm's updates on a card, and how many gradient steps one block or environment step has.

    Replay buffers have room for `capacity` rows.
    """
    module, agent_class, values = OURS[algorithm]
    config, task, online = module.Config(**values), tasks.find(TASK), algorithm in ONLINE
    with mock.patch.object(jax, "default_backend", return_value="gpu"):  # what our own code asks
        programs = Programs(agent_class, config, runs, None, 1, precision)
        programs.mesh = Mesh(np.array([device]), ("runs",), axis_types=(AxisType.Auto,))

        def there(tree: Any, *axes: str) -> Any:
            place = NamedSharding(programs.mesh, PartitionSpec(*axes))
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=place), tree)

        def shapes(function: Callable, *arguments: Any) -> Any:
            return there(jax.eval_shape(function, *arguments), "runs")

        data = few_rows(module.Config.discrete_actions)
        prior = there(agent_class.prepare(config, data, task))
        example = there(jax.tree.map(lambda x: np.repeat(x[:1], runs, axis=0), data.batch(task)), "runs")
        seeds, number = there(np.zeros(runs, np.int32), "runs"), jax.ShapeDtypeStruct((), jnp.int32)
        configs = there(jax.tree.map(lambda x: np.full(runs, x, np.float32), config), "runs")
        agents = shapes(programs._create, configs, seeds, example, prior)
        phase = "online" if online else "offline"
        agents = shapes(lambda *x: programs._enter(x[0], x[1], phase, x[2]), agents, seeds, prior)
        if online:
            experience = shapes(jax.vmap(lambda row: Replay.create(row, capacity)), example)
            episode = Episode(np.zeros(runs, bool), np.zeros(runs, np.float32), np.ones(runs, np.int32))
            rows = number, example, there(episode, "runs"), example.observation
            lowered = programs.learn.jitted.lower(Learner(agents, experience), seeds, *rows, prior)
            steps = config.utd
        else:
            grouped = agents.are_whole_groups(0, UPDATES[algorithm])
            steps = block_size(UPDATES[algorithm], agents.period if grouped else 1)
            rows = phase, number, steps, number, grouped
            lowered = programs.offline.jitted.lower(agents, seeds, *rows, prior)
    return lowered.compile(), steps


def few_rows(discrete: bool, rows: int = 1000) -> Dataset:
    """Data of the sizes that are timed, but for their number, which changes no kernel."""
    zeros = np.zeros((rows, OBSERVATION), np.float32)
    ends = np.arange(1, rows + 1) % 100 == 0
    nothing = np.zeros(rows, bool)
    action = actions(np.random.default_rng(0), discrete)[:rows]
    return Dataset(zeros, action, np.zeros(rows, np.float32), nothing, ends, zeros, nothing, "none")


def main(asked: Kernels) -> None:
    """Compile, count, print and write."""
    unknown = [name for name in asked.algorithms if name not in OURS]
    if unknown:
        raise Refused(f"--algorithms {unknown[0]}: there are {', '.join(OURS)}")
    (device,) = topology().devices
    console, rows = Console(width=200), []
    for algorithm in asked.algorithms:
        for runs in asked.runs:
            program, steps = compiled(algorithm, runs, device, asked.precision, asked.capacity)
            found, held = count(instructions(program.as_text())), bytes_held(program)
            row = {"algorithm": algorithm, "runs": runs, "gradient_steps": steps}
            row |= {
                "kernels": found.kernels / steps,
                "megabytes": found.bytes / steps / 1e6,
                "gigabytes_held": held / 1e9,
            }
            rows.append(row)
            console.print(
                f"{algorithm}, {runs} runs: {row['kernels']:.1f} kernels, {row['megabytes']:.4g} MB per gradient step; "
                f"{row['gigabytes_held']:.3g} GB of memory",
                highlight=False,
            )
    publish(f"kernels_{asked.name}", rows, "benchmarks.studies.kernels", target="NVIDIA H100 80GB HBM3, not present")


if __name__ == "__main__":
    exiting("kernels", lambda: main(tyro.cli(Kernels, description=__doc__)))
