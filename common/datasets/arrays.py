"""Files as arrays of numbers and nothing else: HDF5, and NumPy's archives. No pickle is loaded.

What the headers say is looked at first: arrays that are missing or of different lengths, and those that the memory
cannot take, are refused before any is read.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import h5py
import numpy as np

from common.datasets import memory
from common.errors import Refused, one_line

_LARGE = 1 << 26
"""Bytes of an array that is worth a look at the memory by itself."""


class Header(NamedTuple):
    """What a file says of an array."""

    shape: tuple[int, ...]
    """At least one-dimensional"""
    dtype: np.dtype

    @property
    def width(self) -> int:
        """Numbers per row."""
        return math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Bytes."""
        return self.shape[0] * self.width * self.dtype.itemsize


Estimate = Callable[[Mapping[str, Header]], int]
"""Headers of the arrays that will be read -> bytes that it takes."""


def all_bytes(headers: Mapping[str, Header]) -> int:
    """Those of the arrays themselves."""
    return sum(header.size for header in headers.values())


def hdf5(
    source: str,
    path: Path,
    needed: Collection[str],
    optional: Collection[str] = (),
    estimate: Estimate = all_bytes,
    again: str = "",
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of an HDF5 file under these names, and which of them were created and never written.

    These hold their fill value. `again` says how a damaged file may be had again.
    """
    try:
        with h5py.File(path, "r") as file:
            there = {key: file[key] for key in (*needed, *optional) if isinstance(file.get(key), h5py.Dataset)}
            check_keys(source, needed, there, file)
            for dataset in there.values():
                check_readable(source, path, dataset)
            headers = {key: header_of(dataset) for key, dataset in there.items()}
            check_lengths(source, {key: header.shape[0] for key, header in headers.items()})
            memory.check(source, estimate(headers))
            unwritten = [key for key, dataset in there.items() if is_unwritten(dataset)]
            return {key: np.atleast_1d(dataset[()]) for key, dataset in there.items()}, unwritten
    except (Refused, MemoryError):
        raise
    except Exception as error:  # h5py raises whatever a damaged file makes it raise
        told = f"{source} cannot be read as HDF5 (truncated or another format): {one_line(error)}{again}"
        raise Refused(told) from error


def header_of(dataset: h5py.Dataset) -> Header:
    """Shape and type of an HDF5 array; an element that is itself an array adds its dimensions."""
    if dataset.shape is None:
        raise ValueError(f"{dataset.name} is empty: it has no shape")
    return Header((*dataset.shape, *dataset.dtype.shape) or (1,), dataset.dtype.base)


def array_of(source: str, dataset: h5py.Dataset) -> np.ndarray:
    """One HDF5 array of many, at least one-dimensional."""
    size = header_of(dataset).size
    if size > _LARGE:
        memory.check(f"{source}: {dataset.name}", size)
    return np.atleast_1d(dataset[()])


def is_unwritten(dataset: h5py.Dataset) -> bool:
    """Whether an array was created and no part of it was written."""
    return dataset.size > 0 and dataset.id.get_storage_size() == 0 and not dataset.is_virtual


def check_readable(source: str, path: Path, dataset: h5py.Dataset) -> None:
    """Refuse what is sound, but cannot be read here: other files' parts that are missing, filters that h5py lacks.

    HDF5 gives zeros for the missing parts of a virtual array, without a word.
    """
    if dataset.is_virtual:
        names = {part.file_name for part in dataset.virtual_sources()}
        missing = sorted(
            name for name in names if "%" not in name and name != "." and not (path.parent / name).exists()
        )
        if missing:
            raise Refused(f"{source}: {dataset.name} is a view of {missing[0]}, which is not there")
    plan = dataset.id.get_create_plist()
    for number, _, _, name in (plan.get_filter(index) for index in range(plan.get_nfilters())):
        if not h5py.h5z.filter_avail(number):
            raise Refused(
                f"{source}: {dataset.name} is compressed with filter {number} ({name.decode(errors='replace')}), which "
                f"h5py has not: write the file anew with one that it has, such as `h5repack -f GZIP=4 {path.name} NEW`"
            )


def archive(
    source: str,
    path: Path,
    needed: Collection[str],
    optional: Collection[str] = (),
    estimate: Estimate = all_bytes,
    again: str = "",
) -> dict[str, np.ndarray]:
    """The arrays of a .npz file under these names, each at least one-dimensional; nothing that needs a pickle."""
    try:
        with zipfile.ZipFile(path) as file:
            members = {member.filename.removesuffix(".npy"): member for member in file.infolist()}
            check_keys(source, needed, members, members)
            headers = {}
            for key in (*needed, *optional):
                if key in members:
                    with file.open(members[key]) as stream:
                        headers[key] = _npy_header(key, stream, members[key].file_size)[0]
            check_lengths(source, {key: header.shape[0] for key, header in headers.items()})
            memory.check(source, estimate(headers))
            arrays = {}
            for key in headers:
                with file.open(members[key]) as stream:
                    header, shape, is_fortran = _npy_header(key, stream, members[key].file_size)
                    # Read by its own size, never by the size its header claims.
                    array = np.frombuffer(stream.read(), header.dtype)
                arrays[key] = np.atleast_1d(array.reshape(shape, order="F" if is_fortran else "C"))
            return arrays
    except (Refused, MemoryError):
        raise
    except Exception as error:  # zipfile and zlib raise whatever a damaged file makes them raise
        told = f"{source} cannot be read as a NumPy archive (damaged or foreign): {one_line(error)}{again}"
        raise Refused(told) from error


def _npy_header(key: str, stream: BinaryIO, size: int) -> tuple[Header, tuple[int, ...], bool]:
    """The header of an array of an archive, its own shape, and whether columns come first; `size` is the member's."""
    version = np.lib.format.read_magic(stream)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if version[0] not in read:
        raise ValueError(f"{key} is in version {version} of NumPy's format")
    shape, is_fortran, dtype = read[version[0]](stream)
    if dtype.hasobject:
        raise ValueError(f"{key} holds Python objects, which are not loaded")
    header = Header(shape or (1,), dtype)
    if header.size > size:
        raise ValueError(f"{key} claims {header.size:,} bytes and has {size:,}")
    return header, shape, is_fortran


def existing_file(source: str, path: Path, remedy: str) -> Path:
    """The path, if there is a file that may be read."""
    if not path.is_file():
        raise Refused(f"{source}: there is no such file; {remedy}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise Refused(f"{source} cannot be opened: {error.strerror}") from error
    return path


def check_keys(source: str, needed: Collection[str], present: Collection[str], everything: Collection[str]) -> None:
    """Refuse a file that lacks an array."""
    missing = [key for key in needed if key not in present]
    if missing:
        found = ", ".join(sorted(map(str, everything))) or "nothing"
        raise Refused(f"{source} has other keys than it should: no {' and '.join(missing)} in it (it has {found})")


def check_lengths(source: str, rows: Mapping[str, int]) -> None:
    """Refuse arrays whose lengths, by their names, differ from the first's."""
    first, *others = rows
    for key in others:
        if rows[key] != rows[first]:
            told = f"{rows[key]:,} rows of {key} for {rows[first]:,} of {first}"
            raise Refused(f"{source}: {told}; the file is damaged or foreign")
