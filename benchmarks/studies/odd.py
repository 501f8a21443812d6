"""Sound data files that are unusual: the numbers of a plain file in another layout, for fuzz.py.

Every oddity is drawn by itself, array by array, so that most files have several. No number changes: types are only
exchanged for those that hold the array exactly.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np

Arrays = dict[str, np.ndarray]
_TYPES = ("f2", "f4", "f8", "g", "i1", "u1", "i2", "i4", "i8", "?")
"""What an array may be stored as, in either byte order."""


def write(path: Path, rows: Arrays | None, rng: np.random.Generator) -> list[str]:
    """Write these arrays oddly; without any, those of the HDF5 file that is there. What was done, in words."""
    done: list[str] = []
    if path.suffix == ".npz":
        _write_npz(path, {name: _retyped(name, array, rng, done) for name, array in rows.items()}, rng, done)
        return done
    if path.suffix == ".parquet":
        _write_parquet(path, rows, rng, done)
        return done
    if path.suffix == ".json":
        _rewrite_json(path, rng, done)
        return done
    if rows is None:
        return _rewrite(path, rng)
    with h5py.File(path, "w", libver=_one(rng, ["earliest", "latest"]), track_order=bool(rng.integers(2))) as file:
        for name in _shuffled(list(rows), rng):
            _create(file, name, _retyped(name, rows[name], rng, done), rng, done)
        _clutter(file, rng, done)
    return done


def _rewrite(path: Path, rng: np.random.Generator) -> list[str]:
    """Arrays of a Minari file, whose episodes keep their places: a few of them, since there are many."""
    done: list[str] = []
    with h5py.File(path, "a") as file:
        episodes = [file[name] for name in file]
        for episode in (episodes[number] for number in rng.permutation(len(episodes))[:3]):
            for name in ("observations", "actions", "rewards", "terminations", "truncations"):
                array = episode[name][()]
                del episode[name]
                _create(episode, name, _retyped(name, array, rng, done), rng, done)
            _clutter(episode, rng, done)
        _clutter(file, rng, done)
    return done


def _retyped(name: str, array: np.ndarray, rng: np.random.Generator, done: list[str]) -> np.ndarray:
    """The same numbers in another type, byte order, order of dimensions or, one a row, as a column."""
    if array.dtype == np.uint8 and array.ndim == 4:
        return array  # images are bytes
    if rng.integers(2):
        fitting = []
        for dtype in _TYPES:
            with np.errstate(all="ignore"):
                same = np.array_equal(array.astype(dtype).astype(array.dtype), array)
            if same and not (dtype == "?" and array.dtype.kind == "f" and array.ndim > 1):
                fitting.append(dtype)
        dtype = np.dtype(_one(rng, fitting)).newbyteorder(_one(rng, ["<", ">"]))
        array = array.astype(dtype)
        done.append(f"{name} as {dtype.str}")
    if array.ndim == 1 and rng.integers(2):
        array = array[:, None]
        done.append(f"{name} as a column")
    if array.ndim > 1 and rng.integers(2):
        array = np.asfortranarray(array)
        done.append(f"{name} by columns")
    return array


def _create(group: h5py.Group, name: str, array: np.ndarray, rng: np.random.Generator, done: list[str]) -> None:
    """An array of an HDF5 file, stored in one of the ways that there are."""
    ways = ["plain", "chunked", "compressed", "resizable", "compact", "linked", "rows of arrays", "view", "attributes"]
    if len(np.unique(array)) == 1:
        ways += ["never written", "never written"]
    way = _one(rng, ways)
    done.append(f"{name}: {way}")
    chunks = tuple(int(rng.integers(1, size + 1)) for size in array.shape)
    match way:
        case "plain":
            group[name] = array
        case "chunked":
            group.create_dataset(name, data=array, chunks=chunks, fletcher32=bool(rng.integers(2)))
        case "compressed":
            kind, shuffle = _one(rng, ["gzip", "lzf"]), bool(rng.integers(2))
            group.create_dataset(name, data=array, chunks=chunks, compression=kind, shuffle=shuffle)
        case "resizable":
            group.create_dataset(name, data=array, maxshape=(None,) * array.ndim)
        case "compact":
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_layout(h5py.h5d.COMPACT if array.nbytes < 60_000 else h5py.h5d.CONTIGUOUS)
            space, kind = h5py.h5s.create_simple(array.shape), h5py.h5t.py_create(array.dtype, logical=True)
            links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
            links.set_create_intermediate_group(True)
            h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, plan, links))[...] = array
        case "linked":
            group[f"kept/elsewhere/{name}"] = array
            group[name] = h5py.SoftLink(f"{group.name.rstrip('/')}/kept/elsewhere/{name}")
        case "rows of arrays":
            row = np.dtype((array.dtype, array.shape[1:])) if array.ndim > 1 else array.dtype
            group.create_dataset(name, array.shape[:1], row)[...] = array
        case "view":
            source = group.create_dataset(f"kept/{name}", data=array)
            layout = h5py.VirtualLayout(array.shape, array.dtype)
            layout[...] = h5py.VirtualSource(source)
            group.create_virtual_dataset(name, layout)
        case "attributes":
            group[name] = array
            group[name].attrs["unit"] = "N m"
            group[name].attrs["history"] = np.arange(100)
        case "never written":
            group.create_dataset(
                name, array.shape, array.dtype, fillvalue=array.flat[0], chunks=_one(rng, [None, chunks])
            )


def _clutter(group: h5py.Group, rng: np.random.Generator, done: list[str]) -> None:
    """Things beside the arrays that no reader should mind."""
    things = {
        "a string": lambda: group.create_dataset("note", data="größte Übung ∑"),
        "strings": lambda: group.create_dataset("names", data=["a", "bc"], dtype=h5py.string_dtype()),
        "a scalar": lambda: group.create_dataset("step", data=np.float64(3.5)),
        "nothing": lambda: group.create_dataset("nothing", data=h5py.Empty("f4")),
        "compounds": lambda: group.create_dataset("table", data=np.zeros(3, [("x", "f4"), ("y", "i8")])),
        "a dangling link": lambda: group.__setitem__("dangling", h5py.SoftLink("/nowhere")),
        "infos": lambda: group.create_dataset("infos/qpos", data=np.zeros((5, 2))),
        "attributes": lambda: group.attrs.__setitem__("author", "Zoë"),
    }
    for name, add in things.items():
        if rng.random() < 0.2:
            taken = {"infos": "infos", "a string": "note", "strings": "names", "a scalar": "step", "nothing": "nothing",
                     "compounds": "table", "a dangling link": "dangling"}.get(name)  # fmt: skip
            if taken is None or group.get(taken, getlink=True) is None:
                add()
                done.append(f"beside: {name}")


def _write_npz(path: Path, rows: Arrays, rng: np.random.Generator, done: list[str]) -> None:
    """An archive whose members are compressed, ordered and described in any way that NumPy reads."""
    extra = {"note": np.array("größte Übung ∑"), "step": np.float64(3.5), "objects": np.array([{"a": 1}, None], object)}
    rows |= {name: value for name, value in extra.items() if rng.random() < 0.3}
    with zipfile.ZipFile(path, "w") as file:
        for name in _shuffled(list(rows), rng):
            kind = _one(rng, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
            version = _one(rng, [(1, 0), (2, 0)])
            done.append(f"{name}: compressed by {kind}, header {version[0]}")
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.asanyarray(rows[name]), version)
            suffix = _one(rng, [".npy", ".npy", ".npy", ""])
            file.writestr(f"{name}{suffix}", stream.getvalue(), kind)
        if rng.integers(2):
            file.writestr("README.txt", "no array")
            done.append("beside: a text")


def _write_parquet(path: Path, rows: Arrays, rng: np.random.Generator, done: list[str]) -> None:
    """A table whose columns are typed, nested, compressed and ordered in any way that Parquet has, beside others."""
    import pyarrow
    import pyarrow.parquet

    columns = {}
    for name in _shuffled(list(rows), rng):
        array = rows[name]
        fitting = [
            kind for kind in _TYPES if kind != "g" and np.array_equal(array.astype(kind).astype(array.dtype), array)
        ]
        if array.dtype.kind == "i":
            fitting = [kind for kind in fitting if kind[0] == "i"]
        kind = str(_one(rng, fitting))
        flat = pyarrow.array(array.astype(kind).reshape(-1))
        way = "scalars"
        if array.ndim > 1:
            way = str(_one(rng, ["list", "large_list", "fixed"]))
            width, ends = array.shape[1], np.arange(0, array.size + 1, array.shape[1])
            match way:
                case "list":
                    flat = pyarrow.ListArray.from_arrays(ends.astype(np.int32), flat)
                case "large_list":
                    flat = pyarrow.LargeListArray.from_arrays(ends, flat)
                case "fixed":
                    flat = pyarrow.FixedSizeListArray.from_arrays(flat, width)
        done.append(f"{name} as {way} of {kind}")
        columns[name] = flat
    count = len(rows["action"])
    extra = {
        "task": ["größte Übung ∑"] * count,
        "observation.image": [{"bytes": b"png", "path": None}] * count,
        "observation.words": [["a"]] * count,
        "nothing": pyarrow.nulls(count),
    }
    columns |= {name: value for name, value in extra.items() if rng.random() < 0.3}
    written = {
        "compression": _one(rng, ["none", "snappy", "gzip", "zstd", "brotli", "lz4"]),
        "row_group_size": int(rng.integers(1, count + 1)),
        "use_dictionary": bool(rng.integers(2)),
        "data_page_version": _one(rng, ["1.0", "2.0"]),
        "data_page_size": int(rng.integers(1, 5000)),
        "write_page_checksum": bool(rng.integers(2)),
        "write_statistics": bool(rng.integers(2)),
    }
    done.append(str(written))
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **written)


def _rewrite_json(path: Path, rng: np.random.Generator, done: list[str]) -> None:
    """LeRobot's info.json with other things in it, in another order."""
    about = json.loads(path.read_text())
    about |= {"robot_type": "größte", "fps": 30, "splits": {"train": "0:4"}, "video_path": None}
    features = about["features"] | {
        "observation.images.top": {"dtype": "video", "shape": [480, 640, 3], "names": ["a"], "info": {"video.fps": 30}},
        "task_index": {"dtype": "int64", "shape": [1], "names": None},
    }
    about["features"] = {name: features[name] for name in _shuffled(list(features), rng)}
    about = {name: about[name] for name in _shuffled(list(about), rng)}
    indent = _one(rng, [None, 1, 4])
    done.append(f"other features, indented by {indent}")
    path.write_text(json.dumps(about, indent=indent, ensure_ascii=bool(rng.integers(2))))


def _one(rng: np.random.Generator, choices: list) -> object:
    return choices[rng.integers(len(choices))]


def _shuffled(names: list[str], rng: np.random.Generator) -> list[str]:
    return [names[number] for number in rng.permutation(len(names))]
