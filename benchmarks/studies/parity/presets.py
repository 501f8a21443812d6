"""Our presets against the peers' configuration files, read as they are, and the papers' tables, typed in here.

A row is a task: the number of settings that differ, and which.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import yaml

from algorithms import edac, iql, redq_adaptive_bc, rlpd, td3_bc
from benchmarks.studies.parity import harness as h
from common import tasks

HANDS = 200_000
"""Steps of pretraining for Adroit in "First Imitate"."""


def ours(module: ModuleType, task: str, preset: str | None = None) -> Any:
    """The Config of a task, as commandline.parse lays presets over each other."""
    presets, known = module.PRESETS, tasks.find(task)
    values = presets.get(known.family, {}) | presets.get(f"{known.family}/{known.name}", {})
    if preset:
        values = values | presets[preset] | presets.get(f"{preset}/{task}", {})
    return module.Config(**{k: v for k, v in values.items() if k in module.Config.__dataclass_fields__})


def compare(table: h.Table, what: str, pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """One row: name of a setting -> ours and theirs."""
    different = [f"{name}: ours {a}, theirs {b}" for name, (a, b) in pairs.items() if a != b]
    table.row(what, len(different), "; ".join(different))


def without_version(environment: str) -> str:
    """The task of a D4RL name."""
    return re.sub(r"-v\d$", "", environment)


def files(*folders: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Task and settings of all YAML files of tasks that we have."""
    for file in sorted(h.checkout("/".join(folders)).rglob("*.yaml")):
        values = yaml.safe_load(file.read_text())
        task = without_version(values.get("env_name") or values.get("env"))
        if task in tasks.names():
            yield task, values


def edac_first() -> None:
    """N and eta; with the preset imitate-first the steps, too."""
    for task, v in files("EfficientOfflineRL", "configs", "edac"):
        table = h.Table("EDAC, First Imitate")
        plain, imitating = ours(edac, task), ours(edac, task, "imitate-first")
        steps = v["num_epochs"] * v["num_updates_on_epoch"]
        if task != "antmaze-umaze":  # EDAC's own are CORL's there
            compare(table, task, {"N": (plain.ensemble, v["num_critics"]), "eta": (plain.eta, v["eta"])})
        compare(table, f"{task} --preset imitate-first", {
            "N": (imitating.ensemble, v["num_critics"]), "eta": (imitating.eta, v["eta"]),
            "all steps": (imitating.pretrain_steps + imitating.offline_steps, steps),
            "actor's rate": (imitating.actor_learning_rate, v["actor_learning_rate"]),
            "batch": (imitating.batch_size, v["batch_size"]), "hidden": (imitating.hidden, (v["hidden_dim"],) * 3),
            "rewards normalised": (imitating.normalise_reward, v["normalize_reward"]),
        })  # fmt: skip
        if tasks.find(task).family == "adroit":
            hybrid = ours(edac, task, "imitate-first-adroit")
            compare(table, f"{task} --preset imitate-first-adroit", {
                "N": (hybrid.ensemble, v["num_critics"]), "eta": (hybrid.eta, v["eta"]),
                "pretraining": (hybrid.pretrain_steps, HANDS),
                "all steps": (hybrid.pretrain_steps + hybrid.offline_steps, steps),
            })  # fmt: skip


def edac_corl() -> None:
    """N and eta, also of SAC-N."""
    table = h.Table("EDAC, CORL", "pen-expert's eta is that of First Imitate")
    for task, v in files("CORL", "configs", "offline", "edac"):
        plain = ours(edac, task)
        compare(table, task, {"N": (plain.ensemble, v["num_critics"]), "eta": (plain.eta, v["eta"])})
    for task, v in files("CORL", "configs", "offline", "sac_n"):
        maze = tasks.find(task).family == "antmaze"
        table = h.Table("SAC-N in AntMaze, CORL", "10 critics here, 25 there") if maze else h.Table("SAC-N, CORL")
        compare(table, task, {"N": (ours(edac, task, "sac-n").ensemble, v["num_critics"])})


def td3_bc_first() -> None:
    """The presets imitate-first and imitate-first-adroit."""
    table = h.Table("TD3+BC, First Imitate", "AntMaze's rewards and observations, documented")
    for task, v in files("EfficientOfflineRL", "configs", "td3_bc"):
        c = ours(td3_bc, task, "imitate-first")
        compare(table, task, {
            "alpha": (c.alpha, v["alpha"]), "all steps": (c.pretrain_steps + c.offline_steps, v["max_timesteps"]),
            "normalise": (c.normalise, v["normalize"]),
            "rewards": (tasks.find(task).reward_shift != 0, v["normalize_reward"]),
            "noise": (c.target_noise, v["policy_noise"]), "clip": (c.noise_clip, v["noise_clip"]),
            "delay": (c.policy_delay, v["policy_freq"]), "tau": (c.target_rate, v["tau"]),
        })  # fmt: skip
        if tasks.find(task).family == "adroit":
            c = ours(td3_bc, task, "imitate-first-adroit")
            compare(table, f"{task} --preset imitate-first-adroit", {
                "alpha": (c.alpha, v["alpha"]), "all steps": (c.pretrain_steps + c.offline_steps, v["max_timesteps"]),
                "pretraining": (c.pretrain_steps, HANDS), "w": (c.conservative, 1),
            })  # fmt: skip


def td3_bc_authors() -> None:
    """The defaults of main.py."""
    source = (h.checkout("TD3_BC") / "main.py").read_text()
    d = {k: float(v) for k, v in re.findall(r'add_argument\("--(\w+)", default=([\d.e-]+)', source)}
    c = ours(td3_bc, "hopper-medium")
    compare(h.Table("TD3+BC, its authors"), "hopper-medium", {
        "steps": (c.offline_steps, d["max_timesteps"]), "batch": (c.batch_size, d["batch_size"]),
        "alpha": (c.alpha, d["alpha"]), "noise": (c.target_noise, d["policy_noise"]),
        "clip": (c.noise_clip, d["noise_clip"]), "delay": (c.policy_delay, d["policy_freq"]),
        "discount": (c.discount, d["discount"]), "tau": (c.target_rate, d["tau"]),
    })  # fmt: skip


def iql_authors() -> None:
    """Its configurations; binary Adroit's counterpart is the kitchen's."""
    table, folder = h.Table("IQL, its authors"), h.checkout("implicit_q_learning") / "configs"
    for task, name in (("hopper-medium", "mujoco"), ("antmaze-large-play", "antmaze"), ("pen-human", "kitchen")):
        text = (folder / f"{name}_config.py").read_text()
        v = {k: ast.literal_eval(x) for k, x in re.findall(r"config\.(\w+) = ([^#\n]+)", text)}
        c = ours(iql, task)
        compare(table, task, {
            "expectile": (c.expectile, v["expectile"]), "beta": (c.inverse_temperature, v["temperature"]),
            "dropout": (c.actor_dropout, v["dropout_rate"] or 0.0), "tau": (c.target_rate, v["tau"]),
            "discount": (c.discount, v["discount"]), "rate": (c.learning_rate, v["actor_lr"]),
            "hidden": (c.hidden, v["hidden_dims"]), "steps": (c.offline_steps, 1_000_000),
        })  # fmt: skip


def iql_corl() -> None:
    """CORL's fine-tuning."""
    table = h.Table("IQL, CORL's fine-tuning", "Adroit's expectile and beta are the authors'")
    for task, v in files("CORL", "configs", "finetune", "iql"):
        c = ours(iql, task)
        compare(table, task, {
            "expectile": (c.expectile, v["iql_tau"]), "beta": (c.inverse_temperature, v["beta"]),
            "dropout": (c.actor_dropout, v.get("actor_dropout") or 0.0),
        })  # fmt: skip


def rlpd_paper() -> None:
    """Tables 1 and 2."""
    table = h.Table("RLPD, the paper")
    for task, clipped, backup, layers, steps in (
        ("hopper-medium", True, True, 2, 250_000),
        ("antmaze-large-play", False, False, 3, 300_000),
        ("pen-binary", True, False, 3, 1_000_000),
    ):
        c = ours(rlpd, task)
        compare(table, task, {
            "batch": (c.batch_size, 256), "share": (c.offline_ratio, 0.5), "discount": (c.discount, 0.99),
            "rate": (c.learning_rate, 3e-4), "E": (c.ensemble, 10), "rho": (c.target_rate, 0.005), "G": (c.utd, 20),
            "width": (set(c.hidden), {256}), "alpha": (c.initial_temperature, 1.0),
            "entropy": (c.target_entropy_per_action, -0.5), "CDQ": (c.target_subset == 2, clipped),
            "backups": (c.backup_entropy, backup), "layers": (len(c.hidden), layers), "steps": (c.steps, steps),
            "start": (c.start_training, 5000), "LayerNorm": (c.layer_norm, True), "decay": (c.weight_decay, 0.0),
            "dropout": (c.dropout, 0.0),
        })  # fmt: skip


def adaptive_paper() -> None:
    """Table 1."""
    table = h.Table("REDQ+AdaptiveBC, the paper")
    for task, alpha in (("hopper-medium", 0.4), ("walker2d-random", 100.0)):
        c = ours(redq_adaptive_bc, task)
        compare(table, task, {
            "rate": (c.learning_rate, 3e-4), "batch": (c.batch_size, 256), "tau": (c.target_rate, 5e-3),
            "noise": (c.target_noise, 0.1), "clip": (c.noise_clip, 0.5), "delay": (c.policy_delay, 2),
            "hidden": (c.hidden, (256, 256)), "N": (c.ensemble, 10), "M": (c.target_subset, 2), "G": (c.utd, 20),
            "alpha": (c.alpha_offline, alpha), "K_P": (c.k_p, 3e-5), "K_D": (c.k_d, 8e-5),
            "offline": (c.offline_steps, 1_000_000), "online": (c.online_steps, 250_000),
            "target": (c.target_return, 1.0),
        })  # fmt: skip


def adaptive_authors() -> None:
    """The preset authors-code against main.py."""
    table = h.Table("REDQ+AdaptiveBC, its authors")
    source = (h.checkout("adaptive_bc") / "main.py").read_text()
    found = re.findall(r"add_argument\(['\"]--(\w+)['\"],.*?default=([\w.]+)", source)
    d = {k: v.replace("_", "") for k, v in found}
    updates = int(d["num_updates"])
    for task, scale, alpha, most, utd in (
        ("hopper-medium", 1, 0.4, 0.4, updates),
        ("walker2d-random", 1, 100.0, 0.4, updates),
        ("pen-expert", 20, 8.0, 8.0, 1),
    ):
        c = ours(redq_adaptive_bc, task, "authors-code")
        compare(table, task, {
            "K_P": (round(c.k_p, 9), round(scale * float(d["Kp"]), 9)),
            "K_D": (round(c.k_d, 9), round(scale * float(d["Kd"]), 9)), "utd": (c.utd, utd),
            "noise": (c.target_noise, float(d["policy_noise"])), "clip": (c.noise_clip, float(d["noise_clip"])),
            "exploration": (c.exploration_noise, float(d["expl_noise"])), "alpha offline": (c.alpha_offline, alpha),
            "alpha online": (c.alpha_online, most), "most": (c.most_online, most),
            "kept": (c.kept, float(d["sample_ratio"])), "offline": (c.offline_steps, int(d["pretrain_timesteps"])),
            "online": (c.online_steps, int(d["max_timesteps"])),
        })  # fmt: skip


def main() -> None:
    """All sources."""
    h.each(
        edac_first, edac_corl, td3_bc_first, td3_bc_authors, iql_authors, iql_corl, rlpd_paper, adaptive_paper,
        adaptive_authors,
    )  # fmt: skip


if __name__ == "__main__":
    main()
