"""What is not needed stops nothing: output that cannot be written, and variables that other projects have left."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from common import foreign, output
from common.errors import EnvironmentFailed, Refused, exiting
from common.output import Tolerant

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
SCRIPT = """
import sys
from common.errors import exiting

def work():
    for _ in range(3):
        print({text!r}, flush=True)
        print("trouble", file=sys.stderr)
    with open({out!r}, "w") as file:
        file.write("done")

exiting("name", work)
"""


def run(tmp_path: Path, shell: str, text: str = "line", **variables: str) -> tuple[int, str]:
    """The status of a command that talks, within a shell's line, and all that is said."""
    (tmp_path / "script.py").write_text(SCRIPT.format(text=text, out=str(tmp_path / "out")), encoding="utf-8")
    line = shell.format(command=f"{sys.executable} {tmp_path / 'script.py'}")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=ENVIRONMENT | variables)
    assert (tmp_path / "out").read_text() == "done"
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "shell",
    [
        "{command} 2>/dev/null | true; exit ${{PIPESTATUS[0]}}",
        "{command} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}",
        "{command} >/dev/full 2>/dev/full",
        "{command} >&-",
        "{command} 2>&-",
        "{command} >&- 2>&-",
        "{command} <&- >&- 2>&-",
    ],
)
def test_a_command_ends_well_wherever_its_output_goes(tmp_path, shell):
    status, said = run(tmp_path, shell)
    assert status == 0
    assert "Traceback" not in said
    assert "Exception" not in said


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "cp1252", "utf-8"])
def test_what_an_encoding_lacks_is_shown_otherwise(tmp_path, encoding):
    status, said = run(tmp_path, "{command} 2>&1 | iconv -t utf-8 -f " + encoding, "größe ∑", PYTHONIOENCODING=encoding)
    assert status == 0
    assert said.splitlines()[0] in ("gr\\xf6\\xdfe \\u2211", "größe \\u2211", "größe ∑")


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    script = f"import common; print(open({str(tmp_path / 'file')!r}, 'w').fileno() > 2, file=open('said', 'w'))"
    line = f'{sys.executable} -c "{script}" <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", line], cwd=tmp_path, env=ENVIRONMENT).returncode == 0
    assert (tmp_path / "said").read_text() == "True\n"


class Broken(io.StringIO):
    """Takes nothing."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def write(self, text=""):
        raise self.error

    flush = write


ERRORS = [
    BrokenPipeError(), OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "gone"), OSError(errno.EAGAIN, "busy"),
    ValueError("I/O operation on closed file"), UnicodeEncodeError("ascii", "ä", 0, 1, "not in range"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_what_cannot_be_written_is_lost_in_silence(error):
    stream = Tolerant(Broken(error))
    assert stream.write("four") == 4
    stream.writelines(["a", "b"])
    stream.flush()
    Console(file=stream).print("rich")  # would end the process at a broken pipe
    assert stream.getvalue() == ""


def test_a_programming_error_is_not_lost():
    with pytest.raises(TypeError):
        Tolerant(io.StringIO()).write(3)


def test_guarding_twice_is_guarding_once(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    output.guard()
    once = sys.stdout, sys.stderr
    output.guard()
    assert (sys.stdout, sys.stderr) == once
    print("written")
    print("nowhere", file=sys.stderr)
    assert sys.stdout.getvalue() == "written\n"


@pytest.mark.parametrize(
    ("raised", "status"),
    [(None, 0), (Refused("no"), 2), (EnvironmentFailed("E: it raised"), 2), (KeyboardInterrupt(), 130)],
    ids=repr,
)
def test_how_a_command_ends(monkeypatch, raised, status):
    told = io.StringIO()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", told)

    def command():
        if raised is not None:
            raise raised

    with pytest.raises(SystemExit) as left:
        exiting("name", command)
    assert (left.value.code or 0) == status
    assert len(told.getvalue().splitlines()) == (raised is not None)


# ---------------------------------------------------------------- variables


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", "module://nothing", "no-such-backend", "TkAgg", "agg", ""]
)
def test_any_backend_of_matplotlibs_will_do(backend):
    """And who comes later finds the variable as it was."""
    script = (
        "import os; from common.foreign import figures; figures().Figure().add_subplot()\n"
        f"assert os.environ['MPLBACKEND'] == {backend!r}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT | {"MPLBACKEND": backend}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_backend_that_is_here_is_kept():
    script = "from common.foreign import figures; figures(); import matplotlib; print(matplotlib.get_backend())"
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT | {"MPLBACKEND": "svg"}, capture_output=True, text=True
    )
    assert done.stdout == "svg\n"


@pytest.mark.parametrize("value", ["osmesa", "no-such-library", "disabled", "egl"])
def test_any_library_to_draw_with_will_do(value):
    script = "from common import tasks, environments; print(environments.make(tasks.find('Hopper-v5')).reset(0).shape)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT | {"MUJOCO_GL": value}, capture_output=True, text=True
    )
    assert done.stdout == "(11,)\n", done.stderr


@pytest.mark.parametrize(("session", "variant"), [("", "x11"), ("wayland", "wayland")])
def test_the_library_that_draws_in_windows_starts_no_processes_to_find_itself(monkeypatch, session, variant):
    monkeypatch.delenv("PYGLFW_LIBRARY", raising=False)
    monkeypatch.delenv("PYGLFW_LIBRARY_VARIANT", raising=False)
    monkeypatch.setenv("XDG_SESSION_TYPE", session)
    foreign.spare_search()
    library = Path(os.environ["PYGLFW_LIBRARY"])
    assert (library.parent.name, library.is_file()) == (variant, True)
    monkeypatch.setenv("PYGLFW_LIBRARY", "mine.so")
    foreign.spare_search()
    assert os.environ["PYGLFW_LIBRARY"] == "mine.so"
