"""A run goes on from any folder, with its data where they are now, and says how where it ends early."""

import contextlib
import io
import json
import os
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
from interruption import stopped_at
from rich.console import Console
from served import serving

from algorithms import bc
from common import commandline, launch, resuming
from common.errors import Refused
from common.programs import Programs
from common.runs import RunDirectory

FOLDER = RunDirectory(Path("runs/x"), "1")
serve = serving(bc, width=80)
SMALL = (
    "--env InvertedPendulum-v5 --hidden 8 --batch-size 8 --offline-steps 30 --log-every 10 --eval-every 30 "
    "--eval-episodes 1 --checkpoint-every 10 --eval-workers 0 --dataset npz:data.npz"
).split()


def data(path: Path, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    np.savez(
        path, observations=rng.normal(size=(40, 4)), actions=rng.uniform(-1, 1, (40, 1)), rewards=np.ones(40),
        terminals=np.arange(40) % 10 == 9, timeouts=np.zeros(40, bool),
    )  # fmt: skip


def test_a_run_goes_on_from_any_folder_and_with_moved_data(tmp_path, monkeypatch):
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    for folder in (work, elsewhere):
        folder.mkdir()
    data(work / "data.npz")
    monkeypatch.chdir(work)
    with stopped_at(10, monkeypatch):
        serve(*SMALL, "--out", "runs/mine")
    saved = json.loads(Path("runs/mine/config.json").read_text())
    assert saved["began_in"] == str(work)
    assert saved["dataset"]["source"] == "npz:data.npz"

    # From another folder.
    monkeypatch.chdir(elsewhere)
    with stopped_at(20, monkeypatch):
        serve("--resume", "../work/runs/mine")
    assert Path.cwd() == elsewhere
    # The data have moved: it is said, and they may be named; others are refused, and nothing is changed by that.
    (work / "data.npz").rename(elsewhere / "moved.npz")
    before = Path("../work/runs/mine/config.json").read_text()
    with pytest.raises(
        Refused, match=r"data\.npz.*if its data have moved, name them: --resume .*mine --dataset KIND:WHAT"
    ):
        serve("--resume", "../work/runs/mine")
    data(elsewhere / "other.npz", seed=1)
    with pytest.raises(Refused, match=r"other.npz holds other data than it began with; name those with --dataset KIND"):
        serve("--resume", "../work/runs/mine", "--dataset", "npz:other.npz")
    assert Path("../work/runs/mine/config.json").read_text() == before
    # Where they are is kept, for the next time.
    with stopped_at(30, monkeypatch):
        serve("--resume", "../work/runs/mine", "--dataset", "npz:moved.npz")
    assert json.loads(Path("../work/runs/mine/config.json").read_text())["data_now"] == f"npz:{elsewhere}/moved.npz"
    monkeypatch.chdir(work)
    status, said = serve("--resume", "runs/mine")
    assert status == 0
    assert "resuming in the offline phase after step 30" in said
    status, said = serve("--resume", "runs/mine")
    assert (status, said) == (0, "runs/mine has finished already; its results are in summary.json\n")


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A run directory, as if it had begun in a folder; what a --resume would launch, and where."""
    launched = []

    def run(agent_class, request, arguments, console, begun):
        launched.append((Path.cwd(), request.run.dataset))
        return types.SimpleNamespace(status=0)

    def begin(out: Path, where: Path, began: str | None, *more: str) -> None:
        arguments = [*SMALL, *more, "--out", str(out)]
        request = commandline.parse(arguments, "bc", "", bc.Config, bc.PRESETS)
        path = out if out.is_absolute() else where / out
        monkeypatch.chdir(where)
        programs = Programs(bc.BC, request.config, 1, None, 1)
        launch.begin(bc.BC, request, arguments, launch.tasks.find("InvertedPendulum-v5"), None, programs)
        config = path / "config.json"
        saved = json.loads(config.read_text()) | {"dataset": {"source": "npz:data.npz", "fingerprint": "f"}}
        saved["began_in"] = began
        if began is None:
            del saved["began_in"]
        config.write_text(json.dumps(saved))

    monkeypatch.setattr(launch, "run", run)
    return begin, launched


@pytest.mark.parametrize(
    ("out", "knows", "moved", "expected"),
    [
        ("runs/mine", True, None, "work"),  # told by config.json
        ("runs/mine", False, None, "work"),  # an older config.json: by where the run directory lies
        ("runs/mine", True, "new", "new"),  # all of it moved
        ("runs/mine", False, "new", "new"),
        ("ABSOLUTE/runs/mine", True, None, "work"),
        ("ABSOLUTE/runs/mine", False, None, "here"),  # nothing else is known
    ],
)
def test_paths_hold_from_where_the_run_began(tmp_path, monkeypatch, begun, out, knows, moved, expected):
    begin, launched = begun
    work, here = tmp_path / "work", tmp_path / "here"
    for folder in (work, here):
        folder.mkdir()
    data(work / "data.npz")
    out = Path(out.replace("ABSOLUTE", str(tmp_path / "scratch")))
    begin(out, work, str(work) if knows else None)
    place = out if out.is_absolute() else work / out
    if moved:
        work.rename(tmp_path / moved)
        place = tmp_path / moved / out
    monkeypatch.chdir(here)
    assert serve("--resume", place)[0] == 0
    assert launched == [(tmp_path / expected, "npz:data.npz")]
    assert Path.cwd() == here


def test_a_copy_of_all_goes_on_with_its_own_data(tmp_path, monkeypatch, begun):
    begin, launched = begun
    (tmp_path / "work").mkdir()
    data(tmp_path / "work" / "data.npz")
    begin(Path("mine"), tmp_path / "work", str(tmp_path / "work"))
    shutil.copytree(tmp_path / "work", tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    serve("--resume", "copy/mine")
    assert launched == [(tmp_path / "copy", "npz:data.npz")]


def test_a_run_directory_moved_alone_finds_its_data_where_it_began(tmp_path, monkeypatch, begun):
    begin, launched = begun
    work = tmp_path / "work"
    work.mkdir()
    data(work / "data.npz")
    begin(Path("mine"), work, str(work))
    (tmp_path / "archive").mkdir()
    (work / "mine").rename(tmp_path / "archive" / "mine")
    monkeypatch.chdir(tmp_path)
    serve("--resume", tmp_path / "archive" / "mine")
    assert launched == [(work, "npz:data.npz")]


def test_an_own_module_is_found_where_the_run_began(tmp_path, monkeypatch):
    (tmp_path / "work" / "pack").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    run = {"out": None, "dataset": None, "env": "pack.own:E-v0"}
    saved = {"run": run, "began_in": str(tmp_path / "gone")}
    folder = tmp_path / "work" / "runs" / "bc" / "pack.own:E-v0" / "20260101"
    assert resuming.began_in(folder, saved) == tmp_path / "work"  # the default place of a run
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "own.py").write_text("")
    assert resuming.began_in(folder, saved) == tmp_path


def test_a_file_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("odd").write_text("")
    for source in ("npz:a.npz", "d4rl:sub/a.hdf5", "npz:odd"):
        kind, _, name = source.partition(":")
        assert resuming.whole(source) == f"{kind}:{tmp_path}/{name}"
    assert resuming.whole("npz:~/a.npz") == f"npz:{tmp_path}/a.npz"
    for source in ("d4rl:hopper-medium-v2", "minari:a/b-v0", "recipe:pointmaze-large", "npz:/there/a.npz"):
        assert resuming.whole(source) == source


@pytest.mark.parametrize("more", ["--steps", "--seed=1", "--help", "--out"])
def test_beside_resume_stands_nothing_but_the_data(more):
    with pytest.raises(Refused, match=f"--resume takes no other flag but --dataset \\({more}"):
        commandline.resumed(["--resume", "x", more, "1"])
    assert commandline.resumed(["--resume", "x", "--dataset", "npz:y"]) == (Path("x"), "npz:y")
    assert commandline.resumed(["--resume=x"]) == (Path("x"), None)
    assert commandline.resumed(["--dataset", "npz:y"]) is None


def test_data_are_noted_once_they_have_moved(tmp_path):
    directory = RunDirectory.create(tmp_path / "run", {"id": "1", "dataset": {"source": "npz:a", "fingerprint": "f"}})
    path = directory.path / "config.json"
    for source, noted in (("npz:a", None), ("npz:b", "npz:b"), ("npz:b", "npz:b"), ("npz:c", "npz:c")):
        saved = json.loads(path.read_text())
        card = {"source": source, "fingerprint": "f"}
        resuming.check_data(directory, saved, card)
        resuming.note_data(directory, saved, card)
        assert json.loads(path.read_text()).get("data_now") == noted
    with pytest.raises(Refused, match=r"--resume .*run: npz:a holds other data"):
        resuming.check_data(directory, saved, {"source": "npz:a", "fingerprint": "g"})


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("eval.csv: cannot be written; make room and continue with --resume",
         "eval.csv: cannot be written; make room and continue with --resume runs/x"),
        ("make room and continue with --resume from the one before",
         "make room and continue with --resume runs/x from the one before"),
        ("the environment raised", "the environment raised; continue with --resume runs/x"),
        ("stopped; continue with --resume runs/x", "stopped; continue with --resume runs/x"),
    ],
)  # fmt: skip
def test_a_run_that_ends_early_says_how_it_goes_on(told, expected):
    with pytest.raises(Refused) as refusal, resuming.telling(FOLDER, Console(file=io.StringIO())):
        raise Refused(told)
    assert str(refusal.value) == expected
    with pytest.raises(Refused) as refusal, resuming.telling(FOLDER, Console(), resumable=False):
        raise Refused(told)
    assert str(refusal.value) == told


def test_an_error_says_how_the_run_goes_on_before_its_traceback():
    console = Console(file=io.StringIO(), width=20)
    with pytest.raises(ZeroDivisionError), resuming.telling(FOLDER, console):
        1 / 0  # noqa: B018
    assert console.file.getvalue() == "ended by an error; continue with --resume runs/x\n"
    with contextlib.suppress(KeyboardInterrupt), resuming.telling(FOLDER, console):
        raise KeyboardInterrupt  # told elsewhere
    assert console.file.getvalue().count("\n") == 1


def test_a_full_disk_is_told_with_the_way_to_go_on(tmp_path, monkeypatch):
    data(tmp_path / "data.npz")
    monkeypatch.chdir(tmp_path)

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("common.runs.os.fsync", full)
    with pytest.raises(Refused, match=r"metrics.csv: cannot be written \(No space left .* --resume runs/mine$"):
        serve(*SMALL, "--out", "runs/mine")
