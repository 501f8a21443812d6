"""What is told of runs: lines and the bar at the terminal, the time that is left, tables of a grid, the curve."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from common import curves, points, reporting, tasks, terminal
from common.commandline import Run
from common.evaluation import Outcome
from common.progress import Left, Progress
from common.reporting import Reporter
from common.runs import RunDirectory


def screen(width: int = 200, interactive: bool = True) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=interactive, force_interactive=interactive)


def reporter(tmp_path: Path, console: Console, labels: list[str], progress: Progress | None = None, **run) -> Reporter:
    progress = progress or Progress({"offline": 100}, step=50)
    asked = Run(**{"eval_every": 50, "eval_episodes": 2} | run)
    seeds = list(range(len(labels)))
    return Reporter(RunDirectory(tmp_path, "1"), console, tasks.find("hopper-medium"), asked, progress, seeds, labels)


def outcomes(*returns: float) -> list[Outcome]:
    return [Outcome(np.array([value, value]), np.array([False, False]), np.array([5, 5])) for value in returns]


# ---------------------------------------------------------------- the time that is left


def progress(phases: dict[str, int], phase: str, step: int, speed: float = 0.0, evaluations: tuple = ()) -> Progress:
    made = Progress(phases, phase, step)
    if speed:
        made.learnt(10, 10 / speed)
    for seconds in evaluations:
        made.evaluated(seconds)
    return made


@pytest.mark.parametrize(
    ("made", "evaluating", "expected"),
    [
        (progress({"offline": 100}, "offline", 0), 0, None),  # nothing is known
        (progress({"online": 100}, "online", 5), 0, None),  # steps without learning say nothing
        (progress({"offline": 100}, "offline", 10, 2.0), 0, Left(45, False)),  # no evaluation has been timed
        (progress({"offline": 100}, "offline", 10, 2.0, (3, 5)), 0, Left(45 + 4 * 4, True)),  # at 25, 50, 75, 100
        (progress({"offline": 100}, "offline", 25, 2.0, (3, 5)), 0, Left(37.5 + 3 * 4, True)),
        (progress({"offline": 100}, "offline", 25, 2.0, (3, 5)), 0.5, Left(37.5 + 3.5 * 4, True)),
        (progress({"offline": 90}, "offline", 80, 2.0, (4,)), 0, Left(5 + 4, True)),  # the last, at 90, is due
        (progress({"offline": 90}, "offline", 90, 2.0, (4,)), 1.0, Left(4, True)),
        (progress({"offline": 90}, "offline", 90, 2.0, (4,)), 0, Left(0, True)),
        (progress({"offline": 20}, "offline", 20, 2.0), 0, Left(0, True)),
        (progress({"offline": 100, "online": 30}, "offline", 50, 2.0, (4,)), 0, Left(25 + 4 * 4, False)),
        (progress({"offline": 100, "online": 30}, "online", 10), 0, None),  # the other phase's speed is another
        (progress({"offline": 100, "online": 30}, "online", 10, 1.0, (4,)), 0, Left(20 + 2 * 4, True)),
    ],
)
def test_what_is_left_is_steps_by_their_speed_and_evaluations_by_their_mean(made, evaluating, expected):
    assert made.left(25, evaluating) == (expected if expected is None else pytest.approx(expected))


def test_a_checkpoint_keeps_how_many_evaluations_there_were():
    made = progress({"offline": 100}, "offline", 50, 2.0, (3, 5))
    again = Progress(made.phases)
    again.restore(json.loads(json.dumps(made.state())))
    assert again.left(25) == made.left(25)


@pytest.mark.parametrize(
    ("left", "text"),
    [(None, ""), (Left(3725.4, True), "1:02:05 left"), (Left(59.6, False), "> 0:01:00 left"),
     (Left(0, True), "0:00:00 left"), (Left(200_000, True), "2 days, 7:33:20 left")],
)  # fmt: skip
def test_it_is_told_in_words(left, text):
    assert terminal.in_words(left) == text


# ---------------------------------------------------------------- the bar


def shown(bar: terminal.Bar) -> str:
    """The bar as it stands."""
    paper = Console(file=io.StringIO(), width=bar.console.width)
    paper.print(bar.progress.get_renderable())
    return paper.file.getvalue().rstrip("\n")


def test_the_bar_says_what_happens(tmp_path):
    told = reporter(tmp_path, screen(), ["", ""])
    with told.live():
        assert "left" not in shown(told.bar)
        assert "steps/s" not in shown(told.bar)
        told.compiling()
        assert shown(told.bar).startswith("compiling ")
        told.progress.learnt(50, 5.0)
        told.advance("offline")
        assert shown(told.bar).startswith("offline ")
        assert "50/100" in shown(told.bar)
        assert "10 steps/s" in shown(told.bar)
        assert shown(told.bar).endswith("> 0:00:05 left")
        told.evaluating(0, 4)
        told.evaluating(3, 4)
        assert shown(told.bar).startswith("evaluating 3/4 ")
        told.progress.evaluated(8.0)
        told.evaluated(outcomes(1000, 2000), told.progress.step)
        assert shown(told.bar).startswith("offline ")  # as before
        told.evaluating(1, 4)
        assert shown(told.bar).endswith("0:00:19 left")  # 5 s, 8 s, and three quarters of 8 s


@pytest.mark.parametrize("width", [40, 80, 100, 120, 200])
def test_the_bar_is_one_line(tmp_path, width):
    long = Progress({"offline": 3_000_000}, step=1_234_567)
    long.learnt(10, 0.001)
    long.evaluated(123.0)
    told = reporter(tmp_path, screen(width), [f"x={k}" for k in range(20)], long)
    with told.live():
        told.advance("offline")
        told.evaluating(1234, 2000)
        told.evaluated(outcomes(*range(20)), told.progress.step)
        told.evaluating(1234, 2000)
        assert "\n" not in shown(told.bar)
        assert len(shown(told.bar)) <= width
        if width >= 80:
            assert "evaluating 1234/2000" in shown(told.bar)
            assert "left" in shown(told.bar)
        if width >= 100:
            assert "1234567/3000000" in shown(told.bar)


def test_where_nobody_looks_on_there_are_whole_lines_and_nothing_else(tmp_path):
    console = screen(80, interactive=False)
    told = reporter(tmp_path, console, [""] * 10)
    with terminal.making(console) as made, told.live():
        made(5, 10)
        told.announce("a line that is not broken " * 10)
        told.compiling()
        told.advance("offline")
        told.evaluating(1, 4)
        told.evaluated(outcomes(*(1234.5 * k for k in range(10))), told.progress.step)
    first, second = console.file.getvalue().splitlines()
    assert first == "a line that is not broken " * 10
    assert second.startswith("     offline step 50   score ")
    assert len(second) > 80
    assert console.file.getvalue().endswith("\n")


def test_a_console_prints_names_as_they_are(capsys):
    console = terminal.console()
    console.print("runs/[red]a/[/b] :warning: " + "x" * 500)
    assert capsys.readouterr().out == "runs/[red]a/[/b] :warning: " + "x" * 500 + "\n"
    terminal.console(stderr=True).print("[x]")
    assert capsys.readouterr().err == "[x]\n"


# ---------------------------------------------------------------- grids


def test_points_are_ranked_and_those_that_diverged_come_last():
    finals = [
        {"score": s, "return_mean": 10 * s, "episode_scores": [s]} for s in (1.0, float("nan"), 5.0, 3.0, 2.0, 4.0)
    ]
    labels = ["a=1", "a=2", "a=3", "a=1", "a=2", "a=3"]
    found = points.ranked(finals, labels, [0, 0, 0, 1, 1, 1], "score")
    assert [point["point"] for point in found] == ["a=3", "a=1", "a=2"]
    assert found[0] == {
        "point": "a=3", "runs": [2, 5], "seeds": [0, 1], "mean": {"score": 4.5, "return_mean": 45.0},
        "score": [5.0, 4.0],
    }  # fmt: skip
    assert points.table(found, "score") == [
        "best first        score  seed by seed",
        "a=3                4.50  5 4",
        "a=1                2.00  1 3",
        "a=2                 nan  nan 2",
    ]
    assert points.each(range(13)) == "0 ... 12"


def finished(tmp_path: Path, labels: list[str], console: Console) -> tuple[dict, list[str]]:
    """The summary and the last lines of runs whose scores are 10, 20, ..., and what the terminal was told."""
    told = reporter(tmp_path, console, labels, Progress({"offline": 50}, step=50))
    random, expert = told.task.reference
    came_to = outcomes(*(random + (expert - random) * (k + 1) / 10 for k in range(len(labels))))
    with told.live():
        told.evaluated(came_to, 50)
    summary = told.finish(1000)
    assert json.loads((tmp_path / "summary.json").read_text()).keys() == summary.keys()
    return summary, console.file.getvalue().splitlines()


def test_a_grid_ends_with_its_table_and_without_a_mean_over_it(tmp_path):
    summary, said = finished(tmp_path, ["a=1", "a=1", "a=2", "a=2"], screen(interactive=False))
    assert "final_mean" not in summary
    assert [(point["point"], round(point["mean"]["score"])) for point in summary["points"]] == [
        ("a=2", 35),
        ("a=1", 15),
    ]
    assert summary["points"][0]["score"] == pytest.approx([30, 40])
    assert said[0] == "     offline step 50   score, point by point: 15 35"
    assert said[1].split() == ["best", "first", "score", "seed", "by", "seed"]
    assert said[2].split() == ["a=2", "35.00", "30", "40"]
    assert said[3].split() == ["a=1", "15.00", "10", "20"]
    assert said[4].startswith(
        "final score of the best of 2 points, a=2: 35.00, mean of 2 runs, 2 episodes each; 0.0 steps/s"
    )
    assert len(said) == 5


@pytest.mark.parametrize("labels", [["", "", ""], ["a=1", "a=1", "a=1"]])
def test_seeds_of_one_setting_have_a_mean(tmp_path, labels):
    summary, said = finished(tmp_path, labels, screen(interactive=False))
    assert "points" not in summary
    assert summary["final_mean"]["score"] == pytest.approx(20)
    assert "episode_scores" not in summary["final_mean"]
    assert said[0] == "     offline step 50   score   20.00   runs: 10 20 30"
    assert said[1].startswith("final score: 20.00, mean of 3 runs, 2 episodes each; ")


# ---------------------------------------------------------------- the curve


def test_the_curve_is_there_from_the_first_evaluation_on_and_takes_a_fiftieth_of_the_time(tmp_path, monkeypatch):
    now, drawn = [100.0], []

    def draw(directory, *_):
        drawn.append((now[0], len(directory.evaluations.rows())))
        now[0] += 0.5

    monkeypatch.setattr(reporting, "draw_curve", draw)
    monkeypatch.setattr(reporting.time, "perf_counter", lambda: now[0])
    steps = Progress({"offline": 100}, step=0)
    told = reporter(tmp_path, screen(interactive=False), [""], steps)
    with told.live():
        for _ in range(6):
            steps.step += 10
            told.evaluated(outcomes(1.0), told.progress.step)
            now[0] += 10
        assert drawn == [(100.0, 1), (130.5, 4)]  # 25 seconds for half a one
        told.interrupted(True)
        assert drawn[2:] == [(161.0, 6)]
        steps.step = 100
        told.evaluated(outcomes(1.0), told.progress.step)
    told.finish(1000)
    assert [count for _, count in drawn[3:]] == [7]


@pytest.mark.parametrize(
    "labels",
    [
        [""],
        ["a=1", "a=2"],
        [f"discount={k}" for k in range(12)],
        [f"learning_rate={k}e-05, discount=0.995, target_rate=0.00{k}, temperature={k}" for k in range(12)],
        [
            f"target_entropy_per_action=-0.{k}, initial_temperature=0.123456, learning_rate=0.000312345"
            for k in range(45)
        ],
    ],
)
def test_the_legend_of_a_curve_is_whole_and_hides_nothing(tmp_path, monkeypatch, labels):
    directory = RunDirectory(tmp_path, "1")
    directory.evaluations.append([
        {"run": run, "seed": 0, "step": step, "phase": phase, "score": step + run, "point": label}
        for phase in ("offline", "online") for step in (50, 100) for run, label in enumerate(labels)
    ])  # fmt: skip
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1])
    title = "my_module:AnEnvironmentOfAVeryLongName-v0, 45 runs"
    curves.draw_curve(directory, title, "score", {"offline": 100, "online": 100})
    (figure,) = drawn
    (axes,), (legend,) = figure.axes, figure.legends
    assert [text.get_text().partition(":")[0] for text in legend.get_texts()][-1] in (labels[-1], "mean of 1 run")
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    assert not box.overlaps(axes.get_window_extent())
    assert axes.get_window_extent().height > 250  # the axes keep their size
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines if line.get_linewidth() == 2}
    assert len(looks) == min(len(labels), 40)
