"""A report as one self-contained HTML page: tables, pictures, costs, and what repeats every run."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.reporting import figures, published
from benchmarks.reporting.finished import Finished, names, scored
from benchmarks.reporting.results import command_of
from benchmarks.reporting.statistics import improvement

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2em auto; padding: 0 1em; max-width: 76em }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th { border-bottom: 1.5px solid #555; vertical-align: bottom } th:first-child, td:first-child { text-align: left }
.wide { overflow-x: auto } img { max-width: 100%; height: auto }
.left td, .left th { text-align: left } p { max-width: 50em }
code { font-size: 12px; white-space: normal; display: inline-block; min-width: 34em }
"""
Cells = Sequence[Sequence[str]]
"""Lines of a table, the first of them its head."""


def page(title: str, note: str, finals: Cells, runs: Sequence[Finished]) -> str:
    """The whole page; `finals` is the table of final scores."""
    parts = [f"<h1>{html.escape(title)}</h1>", "<h2>Final scores</h2>", table(finals), f"<p>{html.escape(note)}</p>"]
    if beside := published.ranks(runs):
        parts += [
            "<h2>Beside published scores</h2>",
            table(beside),
            "<p>On D4RL's own data: the mean of all seeds, and the place it would have among the published means.</p>",
        ]
    parts += ["<h2>Learning</h2>", picture(figures.curves(runs), "mean score of every variant against steps")]
    parts.append("<p>Lines are means, bands span all seeds, a grey line is the switch from offline to online.</p>")
    strata, (_, variants) = scored(runs), names(runs)
    if len(strata) > 1 and min(len(seeds) for tasks in strata.values() for seeds in tasks) > 1:
        parts += [
            "<h2>All tasks together</h2>",
            picture(figures.aggregates(strata, variants), "aggregate scores with their intervals"),
            "<p>Tasks count alike. Bars are 95 % intervals: the percentile bootstrap that draws seeds anew within each "
            "task.</p>",
            picture(figures.profiles(strata, variants), "share of runs that score above a threshold"),
            "<h2>Probability of improvement</h2>",
            table(improvements(strata)),
            "<p>How likely a run of the variant on the left is to beat one of that above on the same task; a tie "
            "counts half; with its 95 % interval. An interval that holds 50 % says that these runs cannot tell.</p>",
        ]
    parts += ["<h2>Cost</h2>", table(costs(runs), "left"), "<h2>To run it again</h2>", table(origins(runs), "left")]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def table(lines: Cells, kind: str = "") -> str:
    """Lines of text as a table; what is a command stands in its own type."""

    def cell(text: str, tag: str) -> str:
        shown = html.escape(text)
        return f"<{tag}>" + (f"<code>{shown}</code>" if text.startswith("python ") else shown) + f"</{tag}>"

    head, *rest = ["".join(cell(text, "td" if row else "th") for text in line) for row, line in enumerate(lines)]
    body = "\n".join(f"<tr>{line}</tr>" for line in rest)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(figure: Figure, words: str) -> str:
    """A figure inside the page, with what it shows in words for those who cannot see it."""
    encoded = base64.b64encode(figures.png(figure)).decode()
    return f'<p style="max-width: none"><img alt="{html.escape(words)}" src="data:image/png;base64,{encoded}"></p>'


def improvements(strata: dict[str, list]) -> Cells:
    """Every variant against every other."""
    lines = [["", *strata]]
    for mine, tasks in strata.items():
        cells = [mine]
        for other, against in strata.items():
            value, (low, high) = improvement(tasks, against)
            cells.append("" if mine == other else f"{100 * value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]")
        lines.append(cells)
    return lines


def costs(runs: Sequence[Finished]) -> Cells:
    """What every command has taken, and on what."""
    lines = [["task", "variant", "runs", "device", "time", "of it evaluation", "steps/s of all runs", "most memory"]]
    commands: dict[Path, list[Finished]] = {}
    for run in runs:
        commands.setdefault(run.folder, []).append(run)
    for run, *others in commands.values():
        summary, device = run.summary, run.config.get("device", {})
        count = sum(len(point.summary["final"]) for point in (run, *others))
        variant = f"{run.variant} and {len(others)} more of its grid" if others else run.variant
        kind = (
            f"{device.get('kind', '')}, {device['cores']} core{'s' * (device['cores'] > 1)}"
            if "cores" in device
            else ""
        )
        lines.append([
            run.task, variant, str(count), kind, duration(taken(summary)), duration(summary.get("evaluation_seconds")),
            rate(count * summary["steps_per_second"]),
            f"{summary['peak_memory_bytes'] / 2**30:.1f} GiB" if "peak_memory_bytes" in summary else "",
        ])  # fmt: skip
    return lines


def taken(summary: Mapping[str, Any]) -> float | None:
    """The seconds of a command; of those that have not counted them whole, the learning is that of the last phase."""
    if "whole_seconds" in summary or "learning_seconds" not in summary:
        return summary.get("whole_seconds")
    return sum(summary.get(f"{part}_seconds", 0.0) for part in ("learning", "evaluation", "compile"))


def origins(runs: Sequence[Finished]) -> Cells:
    """Command, commit and data of every run."""
    lines = [["task", "variant", "command", "commit", "data"]]
    for run in runs:
        card: dict[str, Any] = run.config["dataset"] or {}
        data = f"{card['source']}, {card['transitions']:,} transitions, {card['fingerprint'][:16]}" if card else "none"
        lines.append([run.task, run.variant, command_of(run.config), str(run.config["commit"])[:12], data])
    return lines


def rate(per_second: float) -> str:
    """A number of steps, whole where it is large."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def duration(seconds: float | None) -> str:
    """In seconds below one minute, then in minutes."""
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
