"""Signals in every stage: the answer, what is kept, and what a resumed run makes of it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from served import falling, serving
from stuck import Failing, Short, Stuck

from algorithms import iql
from common import evaluation, processes, stops, training
from common.checkpoints import Checkpoints
from common.collection import Collector
from common.environments import Environment
from common.errors import EnvironmentFailed, Refused
from common.players import Elsewhere, Here
from common.reporting import Reporter
from common.stops import SIGNALS, Stopped, Watch

serve = serving(iql)
FLAGS = (
    "--env InvertedPendulum-v5 --hidden 8 --batch-size 16 --offline-steps 30 --log-every 20 --eval-every 10 "
    "--eval-episodes 2 --eval-workers 0 --online-steps 30 --checkpoint-every 1000"
).split()


@pytest.fixture(autouse=True)
def usual_handlers():
    """Also where the tests were told to survive their terminal (nohup), or run behind a shell."""
    usual = dict.fromkeys(SIGNALS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """With prior data of a pendulum that falls."""
    path = falling(tmp_path_factory.mktemp("data") / "data.npz")
    return [*FLAGS, "--dataset", f"npz:{path}"]


def refused(*arguments: object) -> str:
    with pytest.raises(Refused) as refusal:
        serve(*arguments)
    return str(refusal.value)


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert serve(*flags, "--out", out)[0] == 0
    return out


def same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("metrics.csv", "eval.csv"))


@contextlib.contextmanager
def at_call(kind: type, name: str, number: int, act) -> None:
    """`act()` just before the call of this number of a method, counted from when learning begins."""
    method, learn, count = getattr(kind, name), training.Session.learn, [-(10**9)]

    def begun(self, watch):
        count[0] = 0
        return learn(self, watch)

    def counted(self, *arguments, **keywords):
        count[0] += 1
        if count[0] == number:
            act()
        return method(self, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, name, counted)
        patch.setattr(training.Session, "learn", begun)
        yield
    assert count[0] >= number


def send(number: int = signal.SIGTERM):
    return lambda: os.kill(os.getpid(), number)


# ---------------------------------------------------------------- in the loop


@pytest.mark.parametrize(
    ("kind", "name", "number", "by", "after"),
    [
        (training.Session, "update", 1, signal.SIGINT, "step 5;"),
        (training.Session, "update", 3, signal.SIGHUP, "step 15;"),
        (Reporter, "log", 1, signal.SIGUSR1, "step 10;"),
        (Environment, "step", 3, signal.SIGTERM, "step 10;"),
        (Reporter, "evaluated", 1, signal.SIGTERM, "step 10;"),
        (Checkpoints, "save", 1, signal.SIGINT, "step 30;"),
        (Collector, "step", 4, signal.SIGUSR1, "step 4;"),
        (Collector, "step", 17, signal.SIGHUP, "step 17;"),
    ],
)
def test_a_stop_at_any_moment_loses_nothing(whole, flags, tmp_path, monkeypatch, kind, name, number, by, after):
    """In a call of updates, before a row, within an evaluation and behind it, while saving, online before and after
    learning begins. A call has a single block here, so that the first stop is in the middle of an interval."""
    monkeypatch.setattr(training, "CALL_SECONDS", 0.0)
    monkeypatch.setattr("common.programs.LARGEST_BLOCKS", {"cpu": 5})
    out = tmp_path / "run"
    with at_call(kind, name, number, send(by)):
        status, said = serve(*flags, "--out", out)
    assert status == 128 + by
    assert said.count(stops.ANSWER) == 1
    assert f"interrupted after {after} continue with --resume {out}" in said
    status, said = serve("--resume", out)
    assert status == 0
    assert same(out, whole)


def test_how_many_updates_a_call_has_changes_no_number(whole, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CALL_SECONDS", 0.0)
    calls = []
    update = training.Session.update
    monkeypatch.setattr(training.Session, "update", lambda self, *a: (update(self, *a), calls.append(self.pace))[0])
    assert serve(*flags, "--out", tmp_path / "run")[0] == 0
    assert len(calls) > 4
    assert same(tmp_path / "run", whole)


def test_an_evaluation_that_was_left_is_played_again_once(whole, flags, tmp_path):
    """Also if the process that owed it is killed just after it."""
    out = tmp_path / "run"
    with at_call(Environment, "step", 3, send()):
        serve(*flags, "--out", out)
    assert not (out / "eval.csv").exists()

    def die():
        raise RuntimeError("killed")

    with at_call(training.Session, "update", 1, die), pytest.raises(RuntimeError, match="killed"):
        serve("--resume", out)
    assert len((out / "eval.csv").read_text().splitlines()) == 2
    assert serve("--resume", out)[0] == 0
    assert same(out, whole)


def test_a_second_signal_does_what_it_did_before_in_a_process_of_somebody_else(flags, tmp_path):
    def twice():
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    with at_call(training.Session, "update", 1, twice), pytest.raises(KeyboardInterrupt):
        serve(*flags, "--out", tmp_path / "run")


def test_a_stop_after_the_last_step_changes_nothing(whole, flags, tmp_path):
    out = tmp_path / "run"
    with at_call(Reporter, "evaluated", 6, send()):
        status, _ = serve(*flags, "--out", out)
    assert status == 0
    assert (out / "summary.json").exists()
    assert same(out, whole)


def test_a_stop_before_anything_was_learnt_writes_no_checkpoint(whole, flags, tmp_path):
    out = tmp_path / "run"
    with at_call(training.Session, "offline", 1, send()):
        status, said = serve(*flags, "--out", out)
    assert (status, list((out / "checkpoints").iterdir())) == (143, [])
    assert "interrupted after step 0" in said
    assert serve("--resume", out)[0] == 0
    assert same(out, whole)


def test_while_programs_compile_a_checkpoint_is_written_and_the_compiler_left_alone(flags, tmp_path, monkeypatch):
    """Of the policy, when the first evaluation begins."""
    out, released = tmp_path / "run", threading.Event()
    prepare = training.Session.prepare

    def slow(self, watch, program, *arguments):
        if program is not self.programs.act:
            return prepare(self, watch, program, *arguments)
        threading.Timer(0.2, send()).start()
        return watch.aside(released.wait)

    monkeypatch.setattr(training.Session, "prepare", slow)
    began = time.monotonic()
    status, said = serve(*flags, "--out", out)
    released.set()
    assert status == 143
    assert "interrupted after step 10" in said
    assert (out / "checkpoints" / "10").is_dir()
    assert time.monotonic() - began < 60


# ---------------------------------------------------------------- environments that fail


@pytest.mark.parametrize(("name", "number"), [("step", 1), ("step", 5), ("reset", 2)])
def test_an_environment_that_fails_ends_in_a_checkpoint_and_a_line(whole, flags, tmp_path, name, number):
    """In the first evaluation."""

    def fail():
        raise EnvironmentFailed("InvertedPendulum-v5: its observation is not finite at step 5 of an episode")

    out = tmp_path / "run"
    with at_call(Environment, name, number, fail):
        said = refused(*flags, "--out", out)
    assert "InvertedPendulum-v5: its observation is not finite at step 5" in said
    assert f"; continue with --resume {out}" in said
    assert "diverged" not in said
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["10"]
    assert serve("--resume", out)[0] == 0
    assert same(out, whole)


@pytest.mark.parametrize("place", ["step", "reset"])
def test_an_environment_that_fails_in_collection_leaves_the_last_whole_step(whole, flags, tmp_path, place):
    out, begun = tmp_path / "run", []

    def step(self, actions):
        begun.append(1)
        if len(begun) < 12:
            return original(self, actions)
        if place == "step":
            raise EnvironmentFailed("E: it raised")
        with pytest.MonkeyPatch.context() as patch:  # its episode ends there, and the next one cannot begin
            patch.setattr(Environment, "step", lambda *a: played(*a)._replace(truncated=True))
            patch.setattr(Environment, "reset", fail)
            return original(self, actions)

    def fail(*_):
        raise EnvironmentFailed("E: it raised")

    original, played = Collector.step, Environment.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collector, "step", step)
        said = refused(*flags, "--out", out)
    assert said == f"E: it raised; continue with --resume {out}"
    assert max(int(path.name) for path in (out / "checkpoints").iterdir()) == 30 + 11
    assert serve("--resume", out)[0] == 0
    assert same(out, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_players_pass_on_that_an_environment_failed(workers, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    said = []
    evaluator = evaluation.Evaluator(Failing, 1, 4, workers, said.append)
    with contextlib.closing(evaluator), pytest.raises(EnvironmentFailed, match="Failing: it raised at step 3"):
        evaluator(lambda o: np.zeros((1, o.shape[1], 1), np.float32), [0], 0)
    assert said == []


# ---------------------------------------------------------------- players


def test_one_looks_for_signals_while_players_play(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("STUCK_FILE", str(tmp_path / "stuck"))
    monkeypatch.setattr(processes, "LOOKS", 0.01)

    def look():
        if (tmp_path / "stuck").exists():
            raise Stopped

    with contextlib.closing(evaluation.Evaluator(Stuck, 1, 1, 1)) as evaluator, pytest.raises(Stopped):
        evaluator(lambda o: np.zeros((1, o.shape[1], 1), np.float32), [0], 0, look=look)


def test_one_looks_between_the_steps_of_one_environment_and_those_of_the_next():
    looks = []
    here = Here(Short, 4)
    here.begin([[1], [2], [3], [4]])
    here.wait(lambda: looks.append(1))
    assert len(looks) == 4
    here.act(np.zeros((4, 1), np.float32))
    here.wait(lambda: looks.append(1))
    assert len(looks) == 8


def test_a_player_in_the_midst_of_a_step_does_not_outlive_its_parent(tmp_path):
    script = (
        "import os; from stuck import Stuck; from common.players import Elsewhere; import numpy as np\n"
        "group = Elsewhere(Stuck, 1); group.begin([[0]]); group.wait(); group.act(np.zeros((1, 1))); group.wait()"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths, "STUCK_FILE": str(tmp_path / "stuck")}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment)
    while not (tmp_path / "stuck").exists() or not (tmp_path / "stuck").read_text():
        assert parent.poll() is None
        time.sleep(0.05)
    player = int((tmp_path / "stuck").read_text())
    parent.kill()
    parent.wait()
    assert ends(player)


def ends(process: int) -> bool:
    """Whether a process of this number is gone, or dead, within a while."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_started_sheltered_does_not_hear_of_signals(number):
    script = "import time; print('here', flush=True); time.sleep(600)"
    with stops.sheltered():
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    assert child.stdout.readline() == "here\n"
    child.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.2)
    child.kill()
    child.communicate()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_that_helps_leaves_signals_to_its_parent(number):
    """What it starts itself, such as a simulator, can be ended by them."""
    script = (
        "import os, signal, subprocess, sys\n"
        "from common.stops import left_to_parent; left_to_parent()\n"
        f"os.kill(os.getpid(), {int(number)})\n"
        f"inner = 'import os; os.kill(os.getpid(), {int(number)}); print(1)'\n"
        "print(subprocess.run([sys.executable, '-c', inner], stderr=subprocess.DEVNULL).returncode)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, int(done.stdout)) == (0, -number)


# ---------------------------------------------------------------- a process of its own

OWN = """
import sys, time
from common import stops
def ready(): print("here", flush=True)
with stops.commanding(lambda text: print(text, flush=True)) as watch:
    stops.remedy("continue with --resume folder")
    {work}
sys.exit(0)
"""
WORK = {
    "between two steps": "ready(); time.sleep(60)",
    # Where Python ignores exceptions.
    "in a callback of the garbage collector": (
        "import gc\n    gc.callbacks.append(lambda phase, _: phase == 'stop' or (ready(), time.sleep(60)))\n"
        "    gc.collect(); time.sleep(60)"
    ),
    # No handler runs meanwhile.
    "in one long call": "import hashlib; ready(); hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
    "compiling": "\n    with stops.noting(print):\n        watch.aside(lambda: (ready(), time.sleep(60)))",
    "where it is noted": (
        "\n    with stops.noting(print):\n        ready()\n        while not watch.heard.wait(0.01): pass\n"
        "        watch.answering.join()\n        print('saved', flush=True)\n    sys.exit(128 + watch.received)"
    ),
}


def own(work: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", OWN.format(work=work)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout.readline() == "here\n"
    return process


def rest(process: subprocess.Popen) -> str:
    """What it says until its end; killed if that does not come. `communicate` would miss what is read already."""
    timer = threading.Timer(20, process.kill)
    timer.start()
    said = process.stdout.read()
    process.wait()
    timer.cancel()
    return said


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("stage", WORK)
def test_the_answer_comes_at_once_and_the_end_soon(stage, number):
    process = own(WORK[stage])
    process.send_signal(number)
    began = time.monotonic()
    assert process.stdout.readline().strip() == stops.ANSWER
    answered = time.monotonic() - began
    said = rest(process)
    assert process.returncode == 128 + number
    assert answered < 2
    assert time.monotonic() - began < 8
    assert said.strip() == ("saved" if "noted" in stage else "interrupted; continue with --resume folder")


def test_the_second_signal_ends_at_once():
    process = own("\n    with stops.noting(print):\n        ready(); time.sleep(60)")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline().strip() == stops.ANSWER
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert rest(process) == ""
    assert process.returncode == 130
    assert time.monotonic() - began < 2


def test_one_that_is_to_survive_its_terminal_does():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    script = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from common import stops\n"
        "with stops.commanding(print): os.kill(os.getpid(), signal.SIGHUP); print('on')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.returncode) == ("on\n", 0)


def test_nothing_is_touched_where_no_algorithm_is_the_program():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    script = "import signal; before = signal.getsignal(2); import common; assert signal.getsignal(2) is before"
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_while_an_algorithm_is_imported_a_signal_ends_it_in_a_line(tmp_path, number):
    (tmp_path / "algorithms").mkdir()
    file = tmp_path / "algorithms" / "mine.py"
    file.write_text("import common, time\nprint('here', flush=True)\ntime.sleep(60)")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=10)
    assert (said, process.returncode) == ("interrupted before anything was begun\n", 128 + number)


def test_a_handler_that_a_simulator_puts_in_place_is_replaced_when_training_begins(monkeypatch):
    watch = Watch(print, owns_process=False)
    before = signal.getsignal(signal.SIGINT)
    try:
        watch.install()
        signal.signal(signal.SIGINT, lambda *_: None)
        with watch.noting():
            assert signal.getsignal(signal.SIGINT) == watch.handle
    finally:
        watch.uninstall()
    assert signal.getsignal(signal.SIGINT) is before


def test_in_a_thread_nothing_is_noted_and_nothing_fails():
    found = []

    def work():
        with stops.noting(print) as watch:
            found.append((watch.before, watch.aside(lambda: 3)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [({}, 3)]


def test_what_fails_aside_fails_here():
    with stops.noting(print) as watch, pytest.raises(Refused, match="no"):
        watch.aside(lambda: refuse())


def refuse():
    raise Refused("no")


# ---------------------------------------------------------------- data in the making

MAKING = """
import os, sys, time
from common import stops
from common.recipes import episodes
import stuck
with stops.commanding(lambda text: print(text, flush=True)):
    with episodes.workers(10**6) as stream:
        for number, process in enumerate(stream(stuck.slow_episode)):
            print("made", process, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGKILL])
def test_processes_that_make_data_end_with_the_one_that_needs_them(number):
    """Every one of a group gets the signal, as from a terminal; of the last kind there is no word."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", MAKING], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env=os.environ | {"PYTHONPATH": paths, "HEADSTART_CORES": "1"},
    )  # fmt: skip
    helper = int(process.stdout.readline().split()[1])
    began = time.monotonic()
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)
    said = rest(process)
    assert time.monotonic() - began < 8
    assert ends(helper)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        # After which the keeper of multiprocessing's books may have a word about semaphores that it clears up.
        assert said.splitlines()[:2] == [stops.ANSWER, "interrupted"]


def test_the_thread_reads_whatever_comes_at_once():
    """Signals that come together are the first and the second."""
    reader, writer = socket.socketpair()
    writer.send(bytes([signal.SIGTERM, signal.SIGINT]))
    writer.close()
    heard = []
    watch = Watch(print, owns_process=True)
    watch.arrived = heard.append
    before = {number: signal.signal(number, watch.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        watch.read(reader)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == [signal.SIGTERM, signal.SIGINT]


def test_what_is_owed_is_kept(whole):
    state = json.loads((whole / "summary.json").read_text())
    assert state["not_finite_at_step"] == {}


def test_elsewhere_is_tied(monkeypatch):
    """In a step, it sees nothing of its connection."""
    asked = []
    monkeypatch.setattr(processes, "tied", lambda command: (asked.append(command), command)[1])
    monkeypatch.setattr(processes.subprocess, "Popen", lambda *a, **k: (_ for _ in ()).throw(OSError(12, "no memory")))
    with pytest.raises(processes.Lost, match="no memory"):
        Elsewhere(Short, 1)
    assert len(asked) == 1
