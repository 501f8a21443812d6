"""Libraries that obey environment variables which other projects, shells and notebooks have left behind.

Nothing of ours draws on a screen, so that none of these is needed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType


def simulator() -> ModuleType:
    """MuJoCo, although MUJOCO_GL may ask it for a library to draw with that is not here."""
    spare_search()
    try:
        return importlib.import_module("mujoco")
    except Exception:  # whatever the library that should draw raises
        if "MUJOCO_GL" not in os.environ:
            raise
    os.environ["MUJOCO_GL"] = "disabled"
    return importlib.import_module("mujoco")


def spare_search() -> None:
    """Tell glfw, which MuJoCo imports to draw in windows, where its own library is.

    It would start processes to look for it, at every import, and a signal that ends us would have them show a
    traceback.
    """
    found = importlib.util.find_spec("glfw")
    if found is None or "PYGLFW_LIBRARY" in os.environ:
        return
    asked, session = (os.environ.get(name, "").lower() for name in ("PYGLFW_LIBRARY_VARIANT", "XDG_SESSION_TYPE"))
    variant = asked if asked in ("x11", "wayland") else "wayland" if session == "wayland" else "x11"
    library = Path(found.origin).parent / variant / "libglfw.so"
    if library.exists():
        os.environ["PYGLFW_LIBRARY"] = str(library)


def figures() -> ModuleType:
    """matplotlib.figure, although MPLBACKEND may name a backend that this Python does not have, as a notebook's."""
    if "matplotlib" in sys.modules or "MPLBACKEND" not in os.environ:
        return importlib.import_module("matplotlib.figure")
    backend = os.environ.pop("MPLBACKEND")
    try:
        matplotlib = importlib.import_module("matplotlib")
    finally:
        os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = backend
    return importlib.import_module("matplotlib.figure")
