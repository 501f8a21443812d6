"""The picture of a run directory: curve.png."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from common.foreign import figures
from common.runs import RunDirectory, replacing, writing

Figure = figures().Figure
DASHES = ("-", "--", ":", "-.")
"""With ten colours, forty points that look different."""
LINE = 0.205
"""Height of a legend's line, in inches."""


def draw_curve(directory: RunDirectory, title: str, metric: str, phases: Mapping[str, int]) -> None:
    """Draw curve.png, `metric` against steps: a run is a thin line, the mean of a grid point a thick one.

    `phases` are the names and steps of the phases, drawn one after another. Raises Refused if it cannot be written.
    """
    rows = directory.evaluations.rows()
    if not rows:
        return
    starts = dict(zip(phases, itertools.accumulate(phases.values(), initial=0), strict=False))
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        line = groups.setdefault(row.get("point", ""), {}).setdefault(row["run"], [])
        line.append((starts[row["phase"]] + float(row["step"]), float(row[metric])))
    # The legend is below the axes, where it hides no line, and the figure grows with it, so that nothing is cut off.
    longest = max(map(len, groups)) + len(": mean of 10 runs")
    columns = max(1, min(len(groups), int(90 / (longest + 8))))
    width = max(6.0, 0.068 * (longest + 8))
    figure = Figure(figsize=(width, 4 + LINE * -(-len(groups) // columns)), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    for index, (point, lines) in enumerate(groups.items()):
        color, dash = f"C{index % 10}", DASHES[index // 10 % len(DASHES)]
        for line in lines.values():
            axes.plot(*zip(*line, strict=True), color=color, alpha=0.35, linewidth=1)
        steps = sorted({x for line in lines.values() for x, _ in line})
        mean = [np.mean([y for line in lines.values() for at, y in line if at == x]) for x in steps]
        label = (f"{point}: " if point else "") + f"mean of {len(lines)} run{'s' * (len(lines) > 1)}"
        axes.plot(steps, mean, color=color, linestyle=dash, linewidth=2, marker="o", markersize=3, label=label)
    for phase, start in starts.items():
        if len(starts) > 1:
            axes.axvline(start, color="0.6", linestyle=":", linewidth=1)
            axes.annotate(f" {phase}", (start, 1), xycoords=("data", "axes fraction"), va="top", color="0.4")
    kind = "environment steps" if list(starts) == ["online"] else "updates" if "online" not in starts else "steps"
    axes.set(xlabel=kind, ylabel=metric)
    axes.set_title(title, wrap=True)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=columns, fontsize="small", handlelength=3)
    picture = directory.path / "curve.png"
    with writing(picture), replacing(picture) as temporary:
        figure.savefig(temporary, format="png")
