"""Runs are told apart by algorithm and by the flags that differ, not by folders and times."""

import json
import shlex
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.reporting.finished import find
from benchmarks.reporting.variants import Said, called, flags


def names(*lines: str, **configs: dict) -> list[str]:
    """What runs with these command lines are called; a line begins with the algorithm."""
    said = []
    for number, line in enumerate(lines):
        algorithm, *arguments = shlex.split(line)
        task = arguments[arguments.index("--env") + 1] if "--env" in arguments else "pointmaze-large"
        config = {"algorithm": algorithm, "arguments": arguments} | configs.get(f"c{number}", {})
        said.append(Said(Path(f"runs/{algorithm}/{task}/2026010{number}-120000"), task, config))
    return called(said)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["iql"], ["iql"]),
        (["iql", "bc"], ["iql", "bc"]),
        (["iql --env a", "iql --env b"], ["iql", "iql"]),  # one variant on two tasks
        (["iql --expectile 0.7", "iql --expectile 0.9"], ["iql --expectile 0.7", "iql --expectile 0.9"]),
        (["iql", "iql --expectile 0.9"], ["iql", "iql --expectile 0.9"]),
        # Only what differs.
        (["bc --batch-size 8 --policy gmm", "bc --batch-size 8 --policy vae"], ["bc --policy gmm", "bc --policy vae"]),
        (["edac --eta 1", "edac --eta 2", "iql --expectile 0.9"], ["edac --eta 1", "edac --eta 2", "iql"]),
        # Written in other ways they are the same; of a repeated flag the last holds.
        (["bc --batch-size 1e2 --env a", "bc --batch_size=100 --env b"], ["bc", "bc"]),
        (["bc --bins 3 --bins 4", "bc --bins 5 --bins 4 --policy gmm"], ["bc", "bc --policy gmm"]),
        (["rlpd --hidden 8 8", "rlpd --hidden 8"], ["rlpd --hidden 8 8", "rlpd --hidden 8"]),
        (["rlpd --no-layer-norm", "rlpd --layer-norm"], ["rlpd --no-layer-norm", "rlpd --layer-norm"]),
        (["rlpd --preset sac", "rlpd --preset redq", "rlpd"], ["rlpd --preset sac", "rlpd --preset redq", "rlpd"]),
        # Data belong to their task, unless one task has several.
        (["bc --env a --dataset npz:a.npz", "bc --env b --dataset npz:b.npz"], ["bc", "bc"]),
        (["bc --dataset npz:a.npz", "bc --dataset npz:b.npz"], ["bc --dataset npz:a.npz", "bc --dataset npz:b.npz"]),
        # How it is measured tells apart only what nothing else does.
        (["bc --seed 1 --bins 3", "bc --seed 2 --bins 4"], ["bc --bins 3", "bc --bins 4"]),
        (["bc --seed 1", "bc --seed 2"], ["bc --seed 1", "bc --seed 2"]),
        (["bc --out x --num-seeds 3 --env a", "bc --out y --env b"], ["bc", "bc"]),
        # And the folder what is the same command.
        (["bc", "bc", "iql"], ["bc in 20260100-120000", "bc in 20260101-120000", "iql"]),
        (["bc --out x", "bc --out y --env a"], ["bc", "bc"]),
        # A grid's points have their own names; a grid of one value is none.
        (["bc --grid.learning-rate 1 2", "bc"], ["bc", "bc"]),
        (["bc --grid.learning-rate 1", "bc --learning-rate 2"], ["bc --grid.learning-rate 1", "bc --learning-rate 2"]),
        (["bc --grid.learning-rate 1 2 --bins 3", "bc --bins 4"], ["bc --bins 3", "bc --bins 4"]),
    ],
)  # fmt: skip
def test_a_run_is_called_by_what_it_differs_in(lines, expected):
    assert names(*lines) == expected


def test_a_default_that_was_typed_is_no_difference():
    same = {"config": {"alpha": 2.5, "batch_size": 8}, "run": {"num_seeds": 1}}
    other = {"config": {"alpha": 1.0, "batch_size": 8}, "run": {"num_seeds": 1}}
    lines = "td3_bc --alpha 2.5 --batch-size 8", "td3_bc --alpha 1", "td3_bc --batch-size 8"
    assert names(*lines, c0=same, c1=other, c2=same) == [
        "td3_bc in 20260100-120000", "td3_bc --alpha 1", "td3_bc in 20260102-120000",
    ]  # fmt: skip
    # On another task, or of another algorithm, it may be no default.
    assert names("td3_bc --alpha 2.5", "td3_bc --env other", c0=same, c1=same) == ["td3_bc --alpha 2.5", "td3_bc"]


def test_flags_are_read_as_typed():
    found = flags(["--env", "a", "--f", "-1e-3", "--g=x y", "--no-h", "--i", "--j", "1", "2", "--out", "z"])
    assert {name: (flag.values, flag.words) for name, flag in found.items()} == {
        "f": (("-0.001",), "--f -1e-3"), "g": (("x y",), "--g x y"), "h": (("False",), "--no-h"),
        "i": (("True",), "--i"), "j": (("1.0", "2.0"), "--j 1 2"),
    }  # fmt: skip


def run(folder: Path, arguments: list[str], points: tuple[str, ...] = ("",)) -> None:
    """A finished run directory."""
    folder.mkdir(parents=True)
    config = {
        "algorithm": "bc",
        "arguments": arguments,
        "commit": "c",
        "run": {"env": "hopper-medium", "eval_episodes": 1},
    }
    (folder / "config.json").write_text(json.dumps(config | {"dataset": None}))
    final = [
        {"run": k, "seed": 0, "point": p, "score": k, "return_mean": k, "success": None} for k, p in enumerate(points)
    ]
    summary = {"final": final, "diverged_at_step": {}, "steps_per_second": 1.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = [f"{k},0,10,offline,1,{k},{k}," for k in range(len(points))]
    (folder / "eval.csv").write_text("\n".join(["run,seed,step,phase,episodes,score,return_mean,success", *rows, ""]))


def test_a_report_of_single_runs_names_no_folder(tmp_path, capsys):
    run(tmp_path / "20260101", ["--env", "hopper-medium", "--policy", "gmm"])
    run(
        tmp_path / "20260102",
        ["--env", "hopper-medium", "--grid.learning-rate", "1", "2"],
        ("learning_rate=1", "learning_rate=2"),
    )
    report.main(report.Report((tmp_path,)))
    said = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in said.splitlines() if line.startswith("| bc")] == [
        "bc --policy gmm", "bc, learning_rate=1", "bc, learning_rate=2",
    ]  # fmt: skip
    assert "2026" not in said


@pytest.mark.parametrize("below", ["", "hopper-medium", "hopper-medium/BC-best-10", "..", "../.."])
def test_a_sweep_names_its_runs_from_whatever_folder_they_are_found(tmp_path, below):
    sweep = tmp_path / "runs" / "sweeps" / "mine"
    for name in ("BC-best-10", "other"):
        run(sweep / "hopper-medium" / name, ["--env", "hopper-medium"])
    jobs = [
        {"folder": "hopper-medium/other", "task": "hopper-medium", "variant": "another"},
        {"folder": "hopper-medium/BC-best-10", "task": "hopper-medium", "variant": "BC, best 10 %"},
    ]
    (sweep / "suite.json").write_text(json.dumps({"jobs": jobs}))
    found = [run.variant for run in find([sweep / below])]
    assert found == (["BC, best 10 %"] if below.endswith("10") else ["another", "BC, best 10 %"])
    # A run beside the sweep's is called in its own way.
    run(sweep / "hopper-medium" / "apart", ["--env", "hopper-medium"])
    assert [run.variant for run in find([sweep])] == ["another", "BC, best 10 %", "bc"]
