"""Pictures of an environment without a display, and the film that they make (extra: video)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from common.errors import Refused, one_line

if TYPE_CHECKING:
    import gymnasium

BACKENDS = "egl", "osmesa"
"""What MuJoCo draws with where there is no display, the faster first."""
NONE = "", "disable", "disabled", "off", "false", "0"
"""Values of MUJOCO_GL that ask for nothing; "disabled" is also what foreign.py leaves there."""
DISPLAYS = "DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"
"""Variables that tell of a display, or of what stands in for it."""
FRAMES_PER_SECOND = 30
"""Where an environment does not tell."""
CLEARANCE = 1.25
"""How much more than a maze is drawn."""
_working: set[str] = set()
"""Of what was tried in this process."""
_TRY = "import mujoco; mujoco.GLContext(64, 64).make_current()"


def choose_backend() -> None:
    """Have MuJoCo draw with what works here, by MUJOCO_GL. Raises Refused if nothing does, or not what that asks for.

    To be called before MuJoCo is imported, some environments choose then. Each is tried in a process of its own: one
    that has failed is in the way of the next.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower()
    if asked in _working:
        return
    told, others = [], {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
    for name in BACKENDS if asked in NONE else (asked,):
        command = [sys.executable, "-c", _TRY]
        tried = subprocess.run(command, env=others | {"MUJOCO_GL": name}, capture_output=True, text=True)
        if tried.returncode == 0:
            os.environ["MUJOCO_GL"] = name
            _working.add(name)
            return
        told.append(f"{name}: {' '.join((tried.stderr.strip().splitlines() or ['no reason given'])[-1].split())[:120]}")
    remedy = "install libegl1 (or a GPU's driver) or libosmesa6"
    remedy = remedy if asked in NONE else f"unset MUJOCO_GL, or {remedy}"
    raise Refused(f"--video: MuJoCo cannot draw here ({'; '.join(told)}); {remedy}")


def has_display() -> bool:
    """Whether there is a display to show anything on."""
    return sys.platform != "linux" or any(os.environ.get(name) for name in DISPLAYS)


def check_display() -> None:
    """Raise Refused where there is none: what draws would end the process."""
    if not has_display():
        raise Refused("--render: there is no display here (DISPLAY is not set); --video FILE.mp4 needs none")


def show_maze(environment: gymnasium.Env) -> None:
    """Have a maze of gymnasium-robotics be drawn whole and from above; other environments are left as they are.

    Its own camera is too near for larger mazes than the smallest, and an ant's stands behind the outer wall.
    """
    maze = getattr(environment.unwrapped, "maze", None)
    inner = getattr(environment.unwrapped, "point_env", None) or getattr(environment.unwrapped, "ant_env", None)
    if maze is None or inner is None:
        return
    extent = max(maze.map_length, maze.map_width) * maze.maze_size_scaling
    inner.mujoco_renderer.camera_id = -1  # free, not one of the model's
    inner.mujoco_renderer.default_cam_config = {
        "azimuth": 90.0,
        "elevation": -75.0,
        "distance": CLEARANCE * extent / 2 / np.tan(np.radians(inner.model.vis.global_.fovy / 2)),
        "lookat": np.zeros(3),
    }


class Film:
    """An MP4 that is written picture by picture, and is there once it is whole."""

    def __init__(self, path: Path, frames_per_second: float):
        """Raises Refused without the extra `video`, for another kind of file, and where it cannot be written."""
        check(path)
        import av

        self.path, self.partial = path, path.with_name(f".{path.stem}.partial.mp4")
        self.failures = av.FFmpegError, OSError, ValueError
        self._frame = av.VideoFrame.from_ndarray
        try:
            self._file = av.open(str(self.partial), "w")
            self._stream = self._file.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1000))
        except self.failures as error:
            raise self._refusal(error) from error
        self._stream.pix_fmt = "yuv420p"  # what every player shows
        self.count = 0

    def __enter__(self) -> Film:
        return self

    def add(self, picture: np.ndarray) -> None:
        """One picture, uint8 [height, width, 3]; all have the size of the first. Raises Refused."""
        height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2  # H.264 takes even numbers
        try:
            if not self.count:
                self._stream.width, self._stream.height = width, height
            frame = self._frame(np.ascontiguousarray(picture[:height, :width]), "rgb24")
            self._file.mux(self._stream.encode(frame))
        except self.failures as error:
            raise self._refusal(error) from error
        self.count += 1

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._file.mux(self._stream.encode())
                self._file.close()
                self.partial.replace(self.path)
            else:
                with contextlib.suppress(*self.failures):  # what has ended it is what is told
                    self._file.close()
        except self.failures as failure:
            raise self._refusal(failure) from failure
        finally:
            self.partial.unlink(missing_ok=True)

    def _refusal(self, error: BaseException) -> Refused:
        return Refused(f"--video {self.path}: cannot be written ({one_line(error)}); choose another place")


def check(path: Path) -> None:
    """Raise Refused unless a film can be written there."""
    if path.suffix != ".mp4":
        raise Refused(f"--video {path}: films are .mp4 files")
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise Refused(f"--video {path}: its folder is not there, or not yours to write in")
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise Refused("--video needs PyAV: pip install -e '.[video]'") from error
