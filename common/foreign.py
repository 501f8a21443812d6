"""Libraries that obey environment variables which other projects, shells and notebooks have left behind."""

from __future__ import annotations

import importlib
import os
from types import ModuleType


def imported(name: str, variable: str, instead: str = "") -> ModuleType:
    """The module of this name, although an environment variable may ask it for what is not here.

    Where it cannot be imported with the variable as it is, `instead` takes the value's place for this process: nothing
    of ours needs what the variable chooses.
    """
    try:
        return importlib.import_module(name)
    except Exception:  # whatever the library raises at a value that it does not know, or cannot follow
        if os.environ.get(variable, instead) == instead:
            raise
    os.environ[variable] = instead
    return importlib.import_module(name)
