"""Published sets on their hosts: where they are, whether a host answers, and how they arrive, whole or not at all."""

from __future__ import annotations

import http.client
import os
import shutil
import ssl
import tempfile
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import rich.progress
from minari.storage.datasets_root_dir import get_dataset_path
from minari.storage.remotes import DEFAULT_REMOTE, get_cloud_storage

from common import recipes, tasks
from common.datasets import naming
from common.errors import Refused, one_line

HOST_SECONDS = 4.0
"""How long a dataset host may take to answer at all."""
D4RL_URL = "https://rail.eecs.berkeley.edu/datasets/offline_rl"
D4RL_FILES = {
    **{
        f"{body}-{quality}-v2": f"gym_mujoco_v2/{body}_{quality.replace('-', '_')}-v2.hdf5"
        for body in tasks.BODIES
        for quality in tasks.QUALITIES
    },
    **{
        f"{hand}-{kind}-v1": f"hand_dapg_v1/{hand}-{kind}-v1.hdf5"
        for hand in tasks.HANDS
        for kind in tasks.DEMONSTRATIONS
    },
    **{
        f"antmaze-{variant}-v2": (
            f"ant_maze_v2/Ant_maze_{maze}_noisy_multistart_{starts}_multigoal_{goals}_sparse_fixed.hdf5"
        )
        for variant, maze, starts, goals in (
            ("umaze", "u-maze", False, False), ("umaze-diverse", "u-maze", True, True),
            ("medium-play", "big-maze", True, False), ("medium-diverse", "big-maze", True, True),
            ("large-play", "hardest-maze", True, False), ("large-diverse", "hardest-maze", True, True),
        )
    },
}  # fmt: skip
"""D4RL's name of a set -> its file below the host's folder (d4rl/infos.py)."""
OGBENCH_URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
OGBENCH_FOLDER = Path("~/.ogbench/data")
"""OGBench's own folder, so that its downloads and ours are the same."""


def minari_remote() -> tuple[str, str]:
    """Where Minari's data sets are fetched from: the value of MINARI_REMOTE, and the host to ask."""
    remote = os.environ.get("MINARI_REMOTE", DEFAULT_REMOTE)
    hosts = {"hf": os.environ.get("HF_ENDPOINT", "https://huggingface.co"), "gcp": "https://storage.googleapis.com"}
    kind = remote.partition("://")[0]
    if kind not in hosts:
        raise Refused(f"MINARI_REMOTE is {remote!r}: expected hf://ORGANISATION or gcp://BUCKET")
    return remote, hosts[kind]


def fetch(source: str) -> None:
    """Download the data of "minari:ID", "d4rl:NAME" or "ogbench:NAME", unless they are here; of a file do nothing.

    As a whole or not at all. Raises Refused if they are out of reach.
    """
    kind, _, name = source.partition(":")
    if not can_be_downloaded(source) or is_here(source):
        return
    if kind == "minari":
        _download_minari(source, name)
    elif kind == "d4rl":
        _download(kind, name, D4RL_FILES[name], ".hdf5", h5py.is_hdf5)
    else:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise Refused(f"{source} is no name of an OGBench data set")
        _download(kind, name, f"{name}.npz", ".npz", zipfile.is_zipfile)


def can_be_downloaded(source: str) -> bool:
    """Whether the source names a published set, rather than a file or a recipe."""
    kind, _, name = source.partition(":")
    is_file = name.endswith(".npz") if kind == "ogbench" else name not in D4RL_FILES
    return kind == "minari" or (kind in ("d4rl", "ogbench") and not is_file)


def within_reach(source: str) -> bool:
    """Whether the host of a published set answers."""
    kind = source.partition(":")[0]
    return answers(host(kind), own_certificates=kind == "minari")


def host(kind: str) -> str:
    """Where the published sets of a kind are downloaded from."""
    if kind == "d4rl":
        return (os.environ.get("D4RL_REMOTE") or D4RL_URL).rstrip("/")
    return minari_remote()[1] if kind == "minari" else OGBENCH_URL


def file_of(kind: str, name: str) -> Path:
    """The file of a source that is one, or its folder, on this machine or to be."""
    path = Path(naming.parts(f"{kind}:{name}")[1])
    if kind == "d4rl" and name in D4RL_FILES:
        path = Path(os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets", Path(D4RL_FILES[name]).name)
    elif can_be_downloaded(f"{kind}:{name}"):
        path = OGBENCH_FOLDER / f"{name}.npz"
    return path.expanduser()


def _download(kind: str, name: str, place: str, suffix: str, is_sound: Callable[[Path], bool]) -> None:
    """The file of a set from its place on the host; one that is not of its format does not stay."""
    source, path, url = f"{kind}:{name}", file_of(kind, name), f"{host(kind)}/{place}"
    offline = f"offline, put the file at {path}, or name one with --dataset {kind}:FILE{suffix}"
    if name.removesuffix("-v2") in recipes.names():
        offline += f", or data made here with --dataset recipe:{name.removesuffix('-v2')}"
    if not within_reach(source):
        raise Refused(f"{source} is not on this machine and {host(kind)} does not answer; {offline}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as temporary:
            part = Path(temporary) / path.name
            with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as file:
                total = int(response.headers.get("Content-Length") or 0) or None
                with rich.progress.wrap_file(response, total, description=name) as stream:
                    shutil.copyfileobj(stream, file, 1 << 20)
            if total is not None and part.stat().st_size != total:
                raise OSError(f"{part.stat().st_size:,} of {total:,} bytes arrived")
            if not is_sound(part):
                raise OSError(f"what arrived is no {suffix} file")
            part.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"{source} could not be downloaded from {url} ({one_line(error)}); {offline}") from error


def _download_minari(source: str, name: str) -> None:
    remote, address = minari_remote()
    offline = (
        f"offline, a copy in {get_dataset_path(name)} (MINARI_DATASETS_PATH chooses the folder), "
        "or a D4RL file (--dataset d4rl:FILE.hdf5) works"
    )
    if not within_reach(source):
        raise Refused(f"{source} is not on this machine and {address} does not answer; {offline}")
    target = get_dataset_path(name)
    try:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=get_dataset_path()) as temporary:
            get_cloud_storage().download_dataset(name, Path(temporary))
            if not (Path(temporary) / name / "data").is_dir():
                raise Refused(f"{source}: {remote} has no such data set; `minari list remote` shows what it has")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(Path(temporary) / name, target)
            except OSError:
                if not is_here(source):  # else another process has fetched them meanwhile
                    raise
    except Refused:
        raise
    except Exception as error:  # the client libraries of two clouds, and the disk
        raise Refused(f"{source} could not be downloaded from {remote} ({one_line(error)}); {offline}") from error


def is_here(source: str) -> bool:
    """Whether the data of a source that is no recipe are on this machine."""
    kind, _, name = source.partition(":")
    if kind == "lerobot":
        return file_of(kind, name).is_dir()
    return (get_dataset_path(name) / "data").is_dir() if kind == "minari" else file_of(kind, name).is_file()


def answers(url: str, seconds: float = HOST_SECONDS, own_certificates: bool = False) -> bool:
    """Whether a host answers at all, proxies respected. Minari itself would try for 23 seconds and fill the screen.

    With `own_certificates` what downloads has other ones than Python, which need not know the host's issuer.
    """
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
        except urllib.error.HTTPError:
            pass  # an answer, if not a friendly one
        except urllib.error.URLError as error:
            if not (own_certificates and isinstance(error.reason, ssl.SSLCertVerificationError)):
                return
        except (OSError, ValueError, http.client.HTTPException):
            return
        answered.set()

    # A thread, because no timeout bounds the look-up of a name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
