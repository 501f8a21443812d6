"""Are our updates those of the authors' code? Losses and parameters, update by update, against checkouts of theirs.

    python -m benchmarks.studies.parity --peers FOLDER [--peer-python PYTHON] [--only iql cql ...] [--bits 64]
        [--jobs 1] [--name NAME]

FOLDER holds a checkout per peer, under its repository's name (rlpd, implicit_q_learning, TD3_BC, CORL, ...); one that
is not there is named and left out. PYTHON can import ours and theirs: JAX, Flax, PyTorch, tensorflow-probability, gym.
Every module of this folder is a check, called as the file of ours that it checks, and runs in a process of its own
(harness.py says how). Beside them: `compiled` (our jitted updates against eager ones), `data`, `init`, `presets`.

Errors are relative. "values": of the parameters, largest element of a leaf over the largest of that leaf. "change": of
how far training has moved them, norm over all parameters. Cases that are known to differ say why and are not judged;
status 1 if another one is off by more than 1e-6 of the change in double precision, or a check does not run. Rows go to
benchmarks/results/NAME.{csv,json}, by default `parity`; with `--only`, only if there is a `--name`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.reporting.results import commit_of, file, publish
from common.errors import Refused, exiting

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
ABSENT = 3
"""Status of a check whose peer is not there."""
LARGEST = 1e-6
"""Of the change, in double precision: the error that passes for rounding, magnified by Adam."""
VERSIONS = """
import json
from importlib import metadata
from common.runs import versions
theirs = ("torch", "tfp-nightly", "tensorflow-probability", "gym")
installed = {d.metadata["name"]: d.version for d in metadata.distributions()}
print(json.dumps(versions() | {name: installed[name] for name in theirs if name in installed}))
"""


@dataclass(frozen=True)
class Parity:
    """What is compared."""

    peers: Path
    """The folder that holds the peers' checkouts."""
    peer_python: str = sys.executable
    """The Python that can import them, and ours."""
    only: tuple[str, ...] = ()
    """Checks; default: all."""
    bits: Literal[64, 32] = 64
    """Precision of both sides: 32 is as shipped."""
    jobs: int = 1
    """Checks side by side."""
    name: str | None = None
    """Of the files in benchmarks/results."""

    def environment(self, out: str = "") -> dict[str, str]:
        """Of a check's process."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        # Eager operations run once or twice each: compiling them is what takes the time.
        flags = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()
        mine = {"PARITY_THEIRS": str(self.peers.absolute()), "PARITY_BITS": str(self.bits), "PARITY_OUT": out}
        return os.environ | mine | {"PYTHONPATH": path, "XLA_FLAGS": flags}


def checks() -> list[str]:
    """All there are."""
    return sorted(path.stem for path in HERE.glob("[!_]*.py") if path.stem != "harness")


class Ran(NamedTuple):
    """What came of a check."""

    rows: list[dict[str, Any]]
    peers: set[str]
    """Whose code it has used."""
    absent: set[str]
    """Those that were not there."""
    failed: str
    """Why it does not run; empty if it does."""


def run(asked: Parity, check: str) -> Ran:
    """A check in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows"
        out.touch()
        command = [asked.peer_python, "-m", f"{__package__}.{check}"]
        done = subprocess.run(command, cwd=ROOT, env=asked.environment(str(out)), capture_output=True, text=True)
        lines = [json.loads(line) for line in out.read_text().splitlines()]
    failed = "" if done.returncode in (0, ABSENT) else done.stderr.strip()[-2000:] or f"status {done.returncode}"
    peers, absent = ({line[key] for line in lines if key in line} for key in ("peer", "absent"))
    return Ran([row_of(check, line) for line in lines if "case" in line], peers, absent, failed)


def row_of(check: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded line as a row of the results."""
    number = isinstance(line["value"], int | float)
    updates = re.search(r"after (\d+) update", line["what"]) if line["kind"] == "parameters" else None
    return {
        "file": check,
        "case": line["case"].removeprefix(f"{check}/"),
        "bits": line["bits"],
        "kind": line["kind"],
        "what": line["what"],
        "updates": int(updates[1]) if updates else None,
        "error": line["value"] if number else None,
        "worst_change": line.get("change"),
        "change": line.get("distance"),
        "note": "; ".join(filter(None, ["" if number else str(line["value"]), line["note"]])),
        "differs": line["differs"],
    }


def cases(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per file and case: the largest errors of its losses, and of its parameters after the first and the last
    number of updates that was looked at; of other numbers where it has neither."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["file"], row["case"]), []).append(row)

    def largest(found: Sequence[Mapping[str, Any]], column: str) -> float | None:
        numbers = [float(row[column]) for row in found if row[column] is not None]
        return float(np.max(numbers)) if numbers else None  # NaN remains NaN

    table = []
    for (name, case), mine in groups.items():
        of_kind = {kind: [row for row in mine if row["kind"] == kind] for kind in ("loss", "parameters", "other")}
        counts = [row["updates"] for row in of_kind["parameters"] if row["updates"] is not None]
        entry = {"file": name, "case": case, "losses": largest(of_kind["loss"], "error")}
        for which, count in (("first", min(counts, default=None)), ("last", max(counts, default=None))):
            found = [row for row in of_kind["parameters"] if row["updates"] == count]
            entry |= {
                f"{which}_updates": count,
                f"{which}_values": largest(found, "error"),
                f"{which}_change": largest(found, "change"),
            }
        entry["other"] = largest(of_kind["other"], "error")
        table.append(entry | {"differs": mine[0]["differs"]})
    return table


def shown(table: Sequence[Mapping[str, Any]], bits: int) -> Table:
    """The cases, for a terminal."""
    drawn = Table(title=f"largest relative errors, {bits} bit")
    for column in ("file", "case", "losses", "updates", "values", "change", "updates", "values", "change", "other"):
        drawn.add_column(column, justify="left" if column in ("file", "case") else "right")
    drawn.add_column("known to differ")

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.1e}" if isinstance(value, float) else str(value)

    for entry in table:
        drawn.add_row(*map(cell, entry.values()))
    return drawn


def suspicious(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cases that should be equal and are not."""
    return [
        f"{entry['file']}, {entry['case']}"
        for entry in table
        if not entry["differs"] and not all((entry[f"{w}_change"] or 0.0) <= LARGEST for w in ("first", "last"))
    ]


def main(asked: Parity) -> int:
    """Compare, print, write; the exit status."""
    known = checks()
    unknown = [name for name in asked.only if name not in known]
    if unknown:
        raise Refused(f"--only {unknown[0]}: there are {', '.join(known)}")
    if asked.jobs < 1:
        raise Refused(f"--jobs must be at least 1, not {asked.jobs}")
    if not asked.peers.is_dir():
        raise Refused(f"--peers {asked.peers}: there is no such folder; it must hold the checkouts of the peers")
    name = asked.name or (None if asked.only else "parity")
    if name is not None:
        file(name, ".csv")  # refuses a name that cannot be before anything is compared
    try:
        told = subprocess.run(
            [asked.peer_python, "-c", VERSIONS], cwd=ROOT, env=asked.environment(), capture_output=True, text=True
        )
    except OSError as error:
        raise Refused(f"--peer-python {asked.peer_python}: cannot be started ({error.strerror})") from error
    if told.returncode:
        raise Refused(f"--peer-python {asked.peer_python}: cannot import this project")
    console, rows, peers, failures = Console(width=200), [], set(), []
    names = asked.only or known
    with ThreadPoolExecutor(asked.jobs) as pool:
        for check, ran in zip(names, pool.map(lambda x: run(asked, x), names), strict=True):
            rows += ran.rows
            peers |= ran.peers
            for peer in sorted(ran.absent):
                console.print(f"{check}: {peer} is not in {asked.peers}, left out", highlight=False, soft_wrap=True)
            if ran.failed:
                failures.append(check)
                console.print(f"{check}: does not run:\n{ran.failed}", highlight=False, markup=False, soft_wrap=True)
            console.print(f"{check}: {len(ran.rows)} rows", highlight=False)
    table = cases(rows)
    console.print(shown(table, asked.bits))
    if name is not None and rows:
        commits = {peer: commit_of(asked.peers / peer) for peer in sorted(peers)}
        program = "benchmarks.studies.parity"
        publish(name, rows, program, bits=asked.bits, peers=commits, peer_versions=json.loads(told.stdout))
    off = suspicious(table) if asked.bits == 64 else []
    for case in off:
        console.print(f"not equal: {case}", highlight=False)
    return 1 if off or failures else 0


if __name__ == "__main__":
    exiting("parity", lambda: main(tyro.cli(Parity, description=__doc__)))
