"""Libraries that obey environment variables which other projects, shells and notebooks have left behind.

Nothing of ours draws on a screen, so that none of these is needed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from types import ModuleType


def simulator() -> ModuleType:
    """MuJoCo, although MUJOCO_GL may ask it for a library to draw with that is not here."""
    try:
        return importlib.import_module("mujoco")
    except Exception:  # whatever the library that should draw raises
        if "MUJOCO_GL" not in os.environ:
            raise
    os.environ["MUJOCO_GL"] = "disabled"
    return importlib.import_module("mujoco")


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
