"""How prior data are named: KIND:WHAT, a file or folder alone, and options behind either.

    lerobot:demos?reward=end?keys=observation.state,observation.environment_state
    robomimic:low_dim_v141.hdf5?mask=train
    my_data.npz

Each option follows a `?` of its own, which no shell takes for anything else (zsh wants quotes), so that the text is one
argument of every command and stands whole in config.json. A path alone is told by what it holds.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

import h5py

from common.errors import Refused, one_line

KINDS = ("minari", "d4rl", "npz", "ogbench", "lerobot", "robomimic", "recipe", "vd4rl")
FILES = ("d4rl", "npz", "ogbench", "lerobot", "robomimic")
"""Kinds that may name a file or a folder."""
OPTIONS = {"lerobot": ("keys", "reward"), "robomimic": ("keys", "mask")}
"""Kind -> its options."""
HDF5 = (".hdf5", ".h5")


def parts(source: str) -> tuple[str, str, str]:
    """Kind ("" of a path alone), place and options of a source, these with their first "?"."""
    kind, _, rest = source.partition(":")
    if kind not in KINDS:
        kind, rest = "", source
    if kind and kind not in OPTIONS:
        return kind, rest, ""
    place, mark, options = rest.partition("?")
    return kind, place, mark + options


def options(source: str) -> dict[str, str]:
    """The options of a source. Raises Refused for those that its kind has not."""
    kind, _, text = parts(source)
    found: dict[str, str] = {}
    for option in text.split("?")[1:]:
        name, _, value = option.partition("=")
        if name not in OPTIONS[kind] or not value or name in found:
            known = " and ".join(f"?{name}=..." for name in OPTIONS[kind])
            raise Refused(f"{source}: {kind} takes {known}, each once, not ?{option}")
        found[name] = value
    return found


def chosen_keys(source: str, keys: str, vectors: Collection[str]) -> list[str]:
    """The value of `?keys=`: names of observations among those that are vectors, each once. Raises Refused."""
    chosen = keys.split(",")
    if wrong := [key for key in chosen if key not in vectors or chosen.count(key) > 1]:
        raise Refused(f"{source}: no vector of observations, or twice: {wrong[0]!r}; it has {', '.join(vectors)}")
    return chosen


def with_kind(source: str) -> str:
    """The source with its kind: a file or folder alone is told by its contents, what else there is stays as it is.

    Raises Refused for a file that is not there or of no kind.
    """
    kind, place, text = parts(source)
    path = Path(place).expanduser()
    suffix = path.suffix.lower()
    if kind:
        return source
    if path.is_dir():
        if not (path / "meta" / "info.json").is_file():
            return source
        return f"lerobot:{place}{text}"
    if suffix not in (*HDF5, ".npz"):
        return source
    if not path.is_file():
        raise Refused(f"{source}: there is no such file")
    kind = _kind_of_hdf5(source, path) if suffix in HDF5 else _kind_of_archive(source, path)
    if text and kind not in OPTIONS:
        raise Refused(f"{source}: {kind} files have no options; leave {text} out")
    return f"{kind}:{place}{text}"


def _kind_of_hdf5(source: str, path: Path) -> str:
    """D4RL's arrays lie at the top, robomimic's demonstrations in the group `data`."""
    try:
        with h5py.File(path, "r") as file:
            names = list(file)
            if isinstance(file.get("observations"), h5py.Dataset):
                return "d4rl"
            if isinstance(file.get("data"), h5py.Group):
                return "robomimic"
    except Exception as error:  # h5py raises whatever a damaged file makes it raise
        raise Refused(f"{source} cannot be read as HDF5 (truncated or another format): {one_line(error)}") from error
    held = ", ".join(sorted(names)) or "nothing"
    raise Refused(
        f"{source} is laid out neither as D4RL's files (observations, actions, rewards, terminals) nor as robomimic's "
        f"(data/demo_0): it has {held}"
    )


def _kind_of_archive(source: str, path: Path) -> str:
    """The terminals of D4RL's layout end the task, those of OGBench's an episode: what could be either is asked for."""
    try:
        with zipfile.ZipFile(path) as file:
            names = {name.removesuffix(".npy") for name in file.namelist()}
    except Exception as error:  # zipfile raises whatever a damaged file makes it raise
        told = f"{source} cannot be read as a NumPy archive (damaged or foreign): {one_line(error)}"
        raise Refused(told) from error
    if names & {"masks", "qpos"} and not names & {"timeouts", "next_observations"}:
        raise Refused(
            f"{source} may be of D4RL's layout, whose terminals end the task, or of OGBench's, whose terminals end an "
            f"episode: name it npz:{path} or ogbench:{path}"
        )
    return "npz"
