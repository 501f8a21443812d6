"""The pictures of reports and of throughput, each line told apart by dashes and markers as well as by colour."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.reporting.finished import Finished, names
from benchmarks.reporting.statistics import balanced, interquartile_mean, interval, mean, optimality_gap, profile

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255"]
"""Of Okabe and Ito, with Tol's wine instead of yellow: distinct to the colour-blind."""
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (8, 2, 1, 2))]
MARKERS = "os^Dv<>Pp"
"""Eight colours, seven dashes, nine markers: two of the first 56 variants share one of the three at most."""


def style(number: int) -> dict[str, Any]:
    """How the line of the variant of this number looks."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.6,
    }


def curves(runs: Sequence[Finished]) -> Figure:
    """Mean score against steps, a panel per task; the band spans all seeds, a grey line is the switch to online."""
    tasks, variants = names(runs)
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(4.2 * columns + 0.5, 3.2 * rows + 0.4 + 0.2 * len(variants)), layout="constrained")
    handles = {}
    for index, task in enumerate(tasks):
        axes = figure.add_subplot(rows, columns, index + 1)
        for run in (run for run in runs if run.task == task):
            steps, scores, switch = run.curve()
            look = style(variants.index(run.variant))
            handles[run.variant] = axes.plot(steps, scores.mean(1), **look)[0]
            if scores.shape[1] > 1:
                axes.fill_between(steps, scores.min(1), scores.max(1), color=look["color"], alpha=0.12, linewidth=0)
            if switch:
                axes.axvline(switch, color="0.5", linewidth=0.8)
        axes.set(title=task, xlabel="steps", ylabel="score, %" if run.headline == "score" else "return")
        axes.grid(alpha=0.3)
    legend(figure, handles)
    return figure


def aggregates(strata: dict[str, list[np.ndarray]], variants: Sequence[str]) -> Figure:
    """Mean, interquartile mean and optimality gap of all tasks together, with their 95 % intervals.

    `strata` are the scores per task of those of the `variants` that have run on all tasks; without equally many runs
    on every task there is no interquartile mean.
    """
    statistics = {"mean, %": mean, "interquartile mean, %": interquartile_mean, "optimality gap, %": optimality_gap}
    if not all(map(balanced, strata.values())):
        del statistics["interquartile mean, %"]
    figure = Figure(figsize=(12, 0.8 + 0.35 * len(strata)), layout="constrained")
    first: Axes | None = None
    for index, (title, statistic) in enumerate(statistics.items()):
        axes = first = figure.add_subplot(1, len(statistics), index + 1, sharey=first)
        for place, (variant, tasks) in enumerate(strata.items()):
            low, high = interval(tasks, statistic)
            look = style(variants.index(variant))
            axes.plot([low, high], [place] * 2, color=look["color"], linewidth=5, alpha=0.35, solid_capstyle="butt")
            axes.plot(statistic(tasks), place, look["marker"], color=look["color"], markersize=7)
        axes.set(title=title)
        axes.grid(alpha=0.3, axis="x")
        axes.tick_params(labelleft=index == 0)
    first.set_yticks(range(len(strata)), list(strata))
    first.invert_yaxis()
    return figure


def profiles(strata: dict[str, list[np.ndarray]], variants: Sequence[str]) -> Figure:
    """The share of all runs that score above a threshold, with its 95 % band; arguments as of `aggregates`."""
    scores = np.concatenate([task for tasks in strata.values() for task in tasks])
    thresholds = np.linspace(min(0.0, scores.min()), scores.max(), 101)
    figure = Figure(figsize=(7, 3.6 + 0.2 * len(strata)), layout="constrained")
    axes = figure.add_subplot()
    handles = {}
    for variant, tasks in strata.items():
        shares, (low, high) = profile(tasks, thresholds)
        number = variants.index(variant)
        look = style(number) | {"markevery": (number % 12, 12)}
        handles[variant] = axes.plot(thresholds, shares, **look)[0]
        axes.fill_between(thresholds, low, high, color=look["color"], alpha=0.1, linewidth=0)
    axes.set(xlabel="score, %", ylabel="share of runs above it", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    legend(figure, handles)
    return figure


def rates(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Updates per second of all runs together against their number, a panel per algorithm, and the fastest peer's one.

    `rows` are those of throughput_NAME.csv.
    """
    algorithms = list(dict.fromkeys(row["algorithm"] for row in rows))
    columns = min(3, len(algorithms))
    lines = -(-len(algorithms) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.3, 2.9 * lines + 0.3), layout="constrained")
    counts = sorted({int(row["runs"]) for row in rows})
    for index, algorithm in enumerate(algorithms):
        found = [
            (row["whose"], int(row["runs"]), float(row["updates_per_second"]))
            for row in rows
            if row["algorithm"] == algorithm
        ]
        axes = figure.add_subplot(lines, columns, index + 1)
        ours = sorted((runs, rate) for whose, runs, rate in found if whose == "ours")
        axes.plot(*zip(*ours, strict=True), **style(0))
        peers = [(rate, whose) for whose, _, rate in found if whose != "ours"]
        for runs, rate in ours:
            height = -11 if peers and rate < max(peers)[0] else 3  # not on the peer's words
            axes.annotate(rounded(rate), (runs, rate), (-5, height), textcoords="offset points", ha="right", fontsize=8)
        if peers:
            rate, whose = max(peers)
            axes.axhline(rate, color=COLOURS[1], linestyle="--", linewidth=1.2)
            words = f"{whose}, one run: {rounded(rate)}"
            axes.annotate(
                words, (1, rate), (-3, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                ha="right", va="bottom", fontsize=8, color=COLOURS[1],
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, map(str, counts))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set(title=algorithm, xlabel="runs together", xlim=(counts[0] / 2.5, counts[-1] * 1.5))
        axes.set_ylim(0, 1.15 * max(rate for *_, rate in found))
        axes.grid(alpha=0.3)
        if index % columns == 0:
            axes.set_ylabel("updates per second, all runs")
    return figure


def rounded(rate: float) -> str:
    """In whole numbers, or in three digits if it has not as many."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def legend(figure: Figure, handles: dict[str, Any]) -> None:
    """One for all panels, below them."""
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=min(3, len(handles)), fontsize="small",
        handlelength=4,
    )  # fmt: skip


def png(figure: Figure, dpi: int = 130) -> bytes:
    """The content of a file with the picture."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()
