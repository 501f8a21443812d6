"""Runs leave policies, which are loaded, played, filmed and exported; interrupted and old ones too."""

import contextlib
import csv
import io
import itertools
import json
import shutil
import signal
import subprocess
import sys
import types
import zlib
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from exporting import agent_for, content_of, faces
from rich.console import Console
from served import serving

from algorithms import bc
from common import environments, export, films, play, policies, policyfiles, tasks, terminal, training
from common.errors import Refused
from common.exported import Exported


class Line(gymnasium.Env):
    """A point that is pushed towards its goal, with a dictionary to see and a dimension of action that is held."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - as Gymnasium has it
    observation_space = gymnasium.spaces.Dict(
        {name: gymnasium.spaces.Box(-9, 9, (size,), float) for name, size in (("place", 1), ("goal", 1), ("all", 2))}
    )
    action_space = gymnasium.spaces.Box(np.array([-1, 0.5], np.float32), np.array([3, 0.5], np.float32))

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, (2, 1))
        return self.seen(), {}

    def step(self, action):
        self.place = self.place + 0.1 * action[:1]
        distance = float(abs(self.place - self.goal)[0])
        return self.seen(), -distance, False, False, {"success": distance < 0.2}

    def seen(self):
        return {"place": self.place, "goal": self.goal, "all": np.concatenate([self.place, self.goal])}

    def render(self):
        picture = np.zeros((41, 60, 3), np.uint8)
        picture[10:30, 10 : 10 + int(10 * abs(self.place[0])) + 1] = 255
        return picture


serve = serving(bc)
gymnasium.register("Line-v0", entry_point=Line, max_episode_steps=12)
SMALL = (
    "--env Line-v0 --hidden 8 --batch-size 8 --offline-steps 20 --log-every 10 --eval-every 10 --eval-episodes 3 "
    "--eval-workers 0 --num-seeds 2 --seed 4 --grid.learning-rate 0.1 0.01"
).split()


def written(folder: Path) -> list[str]:
    """The numbers of the runs with a policy file, in order."""
    return sorted((file.stem for file in (folder / policyfiles.FOLDER).glob("[0-9]*.npz")), key=int)


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    path, rng = tmp_path_factory.mktemp("data") / "data.npz", np.random.default_rng(0)
    actions = np.column_stack([rng.uniform(-1, 3, 60), np.full(60, 0.5)])
    np.savez(
        path, observations=rng.normal(size=(60, 4)), actions=actions, rewards=np.zeros(60),
        terminals=np.zeros(60, bool), timeouts=np.arange(60) % 12 == 11,
    )  # fmt: skip
    return [*SMALL, "--dataset", f"npz:{path}"]


@pytest.fixture(scope="module")
def run(flags, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert serve(*flags, "--out", out)[0] == 0
    return out


def evaluations(folder: Path) -> list[dict[str, str]]:
    with (folder / "eval.csv").open() as file:
        return list(csv.DictReader(file))


def weights(path: Path, run: int = 0) -> list[np.ndarray]:
    arrays = policies.load(path, run).arrays
    return [arrays[name] for name in sorted(arrays)]


def test_every_run_leaves_its_policy(run):
    assert written(run) == ["0", "1", "2", "3"]
    last = evaluations(run)[-4:]
    for number in range(4):
        about = Exported(run / "policies" / f"{number}.npz").about
        told, row = about["provenance"], last[number]
        assert (told["run"], told["seed"], told["config"]["learning_rate"]) == (
            number,
            4 + number % 2,
            [0.1, 0.01][number // 2],
        )
        assert (told["algorithm"], told["task"], told["phase"], told["step"]) == ("bc", "Line-v0", "offline", 20)
        assert told["evaluation"]["return_mean"] == float(row["return_mean"])
        assert told["evaluation"]["total_step"] == 20
        assert told["versions"]["jax"]
        assert about["observation"]["keys"] == ["all", "goal", "place"]
        assert (about["action"]["low"], about["action"]["high"]) == ([-1.0, 0.5], [3.0, 0.5])


@pytest.mark.parametrize("number", [0, 3])
def test_played_are_the_episodes_of_the_last_evaluation(run, number):
    outcome = play.play(run, run=number, episodes=3)
    row = evaluations(run)[-4 + number]
    assert outcome.returns.mean() == pytest.approx(float(row["return_mean"]), rel=1e-5)
    assert 100 * outcome.success.mean() == pytest.approx(float(row["success"]))
    assert outcome.lengths.tolist() == [12, 12, 12]
    # The policy moves what it should: in the environment's own units, with the dictionary that it returns.
    environment = gymnasium.make("Line-v0", disable_env_checker=True)
    observation, _ = environment.reset(seed=0)
    action = policies.load(run, number)(observation)
    assert environment.action_space.contains(action)
    assert not np.array_equal(outcome.returns, play.play(run, run=number, episodes=3, seed=1).returns)


def test_old_runs_are_read_from_their_newest_checkpoint(run, tmp_path, monkeypatch):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    shutil.rmtree(old / "policies")
    for number in range(4):
        for ours, theirs in zip(weights(old, number), weights(run, number), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    before = policies.load(old / "checkpoints" / "10", 3)
    assert before.about["provenance"]["step"] == 10
    assert before.about["provenance"]["config"]["learning_rate"] == 0.01
    assert not np.array_equal(before.arrays["mean.0.0"], policies.load(run, 3).arrays["mean.0.0"])
    # Also where there are policies of a later step.
    assert policies.load(run / "checkpoints" / "10", 3).about["provenance"]["step"] == 10
    assert play.play(old / "checkpoints" / "10", episodes=1).lengths.tolist() == [12]
    with pytest.raises(Refused, match="no 15 among its checkpoints; there are 10, 20"):
        policies.load(old / "checkpoints" / "15")
    # Of an algorithm, or a hyperparameter, that is not here.
    saved = json.loads((old / "config.json").read_text())
    changes = {
        "algorithms/oracle.py is not here": {"algorithm": "oracle"},
        "no wit any more": {"config": saved["config"] | {"wit": 1}},
    }
    for said, change in changes.items():
        (old / "config.json").write_text(json.dumps(saved | change))
        with pytest.raises(Refused, match=said):
            policies.load(old)
    (old / "config.json").write_text(json.dumps(saved))
    with monkeypatch.context() as patch:
        patch.setattr(zlib, "crc32", lambda content: 1)
        with pytest.raises(Refused, match=r"checkpoint 20 cannot be read \(checksum of agent\."):
            policies.load(old)
    for path in (old / "checkpoints" / "20").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Refused, match="checkpoint 20 cannot be read"):
        policies.load(old)
    assert (old / "checkpoints" / "20").exists()


def test_what_is_no_policy_is_refused(run, tmp_path):
    with pytest.raises(Refused, match=r"has no run 4; runs are 0 \.\.\. 3"):
        policies.load(run, 4)
    with pytest.raises(Refused, match="neither a run directory, nor a checkpoint of one, nor a policy file"):
        policies.load(tmp_path)
    with pytest.raises(Refused, match="not a policy file, or damaged"):
        policies.load(run / "curve.png")


def test_an_interrupted_run_leaves_policies_with_its_checkpoint(flags, run, tmp_path, monkeypatch):
    """A signal at step 10, where a checkpoint is, and one where nothing is written by itself."""
    out, update, calls = tmp_path / "run", training.Session.update, []

    def interrupted(self, *arguments):
        update(self, *arguments)
        calls.append(self.progress.step)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(training.Session, "update", interrupted)
    assert serve(*flags, "--checkpoint-every", "1000", "--out", out)[0] == 143
    stopped = policies.load(out, 1).about["provenance"]
    assert (stopped["step"], written(out)) == (calls[0], ["0", "1", "2", "3"])
    assert stopped["step"] < 20
    assert serve("--resume", out)[0] == 0
    for number in range(4):
        assert (out / "policies" / f"{number}.npz").exists()
        for ours, theirs in zip(weights(out, number), weights(run, number), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_run_without_checkpoints_leaves_policies_at_its_end(flags, run, tmp_path):
    out = tmp_path / "run"
    assert serve(*flags, "--checkpoint-every", "0", "--out", out)[0] == 0
    assert not list((out / "checkpoints").glob("*"))
    for ours, theirs in zip(weights(out, 2), weights(run, 2), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# ---------------------------------------------------------------- commands


@pytest.fixture
def said(monkeypatch) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(terminal, "console", lambda: Console(file=text, width=200, markup=False, highlight=False))
    return text


def test_the_command_prints_episodes_and_their_mean(run, said):
    play.command(play.Play(run, run=2, episodes=3))
    lines = said.getvalue().splitlines()
    row = evaluations(run)[-2]
    assert lines[0] == f"bc on Line-v0, seed 4, offline step 20, return {float(row['return_mean']):.2f}"
    assert lines[1].split() == ["episode", "return", "success", "steps"]
    table = [line.split() for line in lines[2:5]]
    assert [(number, steps) for number, _, _, steps in table] == [("0", "12"), ("1", "12"), ("2", "12")]
    assert np.mean([float(value) for _, value, _, _ in table]) == pytest.approx(float(row["return_mean"]), abs=0.01)
    assert lines[5].startswith(f"success {float(row['success']):.2f}, return {float(row['return_mean']):.2f} +- ")
    assert lines[5].endswith(": mean of 3 episodes")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"episodes": 0}, "--episodes must be at least 1, not 0"),
        ({"seed": -1}, "--seed must lie in 0"),
        ({"env": "Pendulum-v1"}, "the policy sees 4 numbers .*Pendulum-v1 has 3 .*play the task it is of"),
        ({"video": Path("film.avi")}, r"films are \.mp4 files"),
        ({"video": Path("nowhere/film.mp4")}, "its folder is not there"),
        ({"render": True, "video": Path("film.mp4")}, "--render beside --video"),
    ],
)  # fmt: skip
def test_what_cannot_be_played_is_refused(run, values, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=said):
        play.play(run, **values)
    assert not list(tmp_path.iterdir())


def test_a_film_shows_every_step(run, tmp_path, monkeypatch, said):
    av = pytest.importorskip("av", reason="needs the extra `video`")
    monkeypatch.setattr(films, "choose_backend", lambda: None)
    play.command(play.Play(run, episodes=2, video=tmp_path / "film.mp4"))
    with av.open(tmp_path / "film.mp4") as file:
        pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert file.streams.video[0].average_rate == 20
    assert len(pictures) == 2 * 13
    assert pictures[0].shape == (40, 60, 3)
    lit = [picture[20, :, 0] > 128 for picture in pictures]
    assert all(row[10] and not row[:8].any() for row in lit)
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
    assert said.getvalue().endswith(f"film in {tmp_path / 'film.mp4'}\n")

    # One that fails leaves nothing, and not what was there damaged.
    before = (tmp_path / "film.mp4").read_bytes()
    monkeypatch.setattr(Line, "render", lambda self: 1 / 0)
    with pytest.raises(Refused, match="Line-v0 cannot be drawn: ZeroDivisionError"):
        play.play(run, episodes=1, video=tmp_path / "film.mp4")
    monkeypatch.setattr(Line, "render", lambda self: None)
    with pytest.raises(Refused, match=r"draws no pictures \(its render returned NoneType\)"):
        play.play(run, episodes=1, video=tmp_path / "film.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
    assert (tmp_path / "film.mp4").read_bytes() == before


def test_what_draws_without_a_display_is_found_or_named(monkeypatch):
    tried = []

    def runs(works):
        def run(command, env, **_):
            tried.append(env["MUJOCO_GL"])
            there = env["MUJOCO_GL"] in works
            return types.SimpleNamespace(returncode=0 if there else 1, stderr="" if there else "trace\nE: no library")

        return run

    monkeypatch.setattr(films, "_working", set())
    monkeypatch.setattr(subprocess, "run", runs(["osmesa"]))
    monkeypatch.setenv("MUJOCO_GL", "disabled")  # as foreign.py leaves it
    films.choose_backend()
    assert tried == ["egl", "osmesa"]
    films.choose_backend()  # what works is not tried again
    assert tried == ["egl", "osmesa"]
    monkeypatch.setenv("MUJOCO_GL", "EGL")
    with pytest.raises(Refused, match=r"cannot draw here \(egl: E: no library\); unset MUJOCO_GL, or install"):
        films.choose_backend()
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(subprocess, "run", runs([]))
    with pytest.raises(Refused, match=r"cannot draw here \(egl: E: no library; osmesa: E: no library\); install"):
        films.choose_backend()


def test_nothing_is_shown_where_there_is_no_display(run, monkeypatch):
    for name in films.DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Refused, match=r"--render: there is no display here .*; --video FILE\.mp4 needs none"):
        play.play(run, render=True)


def test_a_policy_is_exported_by_the_command(run, tmp_path, capsys):
    pytest.importorskip("onnx", reason="needs the extra `onnx`")
    export.command(export.Export(run, run=1, npz=tmp_path / "p.npz", onnx=tmp_path / "p.onnx"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported.py", "p.npz", "p.onnx"]
    assert (tmp_path / "p.npz").read_bytes() == (run / "policies" / "1.npz").read_bytes()
    assert "bc on Line-v0, seed 5" in capsys.readouterr().out
    for asked, said in (
        (export.Export(run), "nothing to write"),
        (export.Export(run, onnx=tmp_path / "p.pb"), r"such files end in \.onnx"),
        (export.Export(run, npz=tmp_path / "nowhere" / "p.npz"), r"cannot be written \(No such file or directory\)"),
    ):
        with pytest.raises(Refused, match=said):
            export.command(asked)


@pytest.mark.parametrize("name", ["pointmaze-umaze", "pointmaze-large", "antmaze-medium-play"])
def test_a_maze_is_drawn_whole(name):
    """The corners of its outer wall, seen from where the camera stands."""
    with contextlib.closing(environments.make(tasks.find(name), render="rgb_array")) as environment:
        films.show_maze(environment.raw)
        raw = environment.raw.unwrapped
        inner = raw.point_env if name.startswith("pointmaze") else raw.ant_env
        camera, maze = inner.mujoco_renderer.default_cam_config, raw.maze
        assert inner.mujoco_renderer.camera_id == -1
        half = np.array([maze.map_width, maze.map_length]) * maze.maze_size_scaling / 2
        down, reach = np.radians(-camera["elevation"]), np.tan(np.radians(inner.model.vis.global_.fovy / 2))
        assert camera["azimuth"] == 90  # looks along +y
        for x, y, z in itertools.product((-half[0], half[0]), (-half[1], half[1]), (0, maze.maze_height)):
            depth = camera["distance"] + y * np.cos(down) - z * np.sin(down)
            height = y * np.sin(down) + z * np.cos(down)
            assert 0 < max(abs(x), abs(height)) < reach * depth
    with contextlib.closing(environments.make(tasks.find("InvertedPendulum-v5"), render="rgb_array")) as environment:
        before = environment.raw.unwrapped.mujoco_renderer.default_cam_config
        films.show_maze(environment.raw)
        assert environment.raw.unwrapped.mujoco_renderer.default_cam_config is before


def test_a_film_and_a_graph_say_which_package_they_need(run, tmp_path, monkeypatch):
    for package in ("av", "onnx"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Refused, match=r"PyAV: pip install -e '\.\[video\]'"):
        films.check(tmp_path / "film.mp4")
    policy = Exported("memory.npz", content_of(agent_for(("rlpd", {})), faces()))
    with pytest.raises(Refused, match=r"onnx: pip install -e '\.\[onnx\]'"):
        export.graph(policy)


def test_the_library_has_what_the_commands_do():
    from common import library

    assert (library.load, library.play) == (policies.load, play.play)
