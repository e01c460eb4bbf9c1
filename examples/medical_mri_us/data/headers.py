"""Headers of NRRD and MetaImage: how their voxels are stored, and where."""

from __future__ import annotations

__all__ = ["Stored", "files_of", "read_header", "read_voxels"]

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .foreign import beside, check_voxels, inflate, read_bytes
from .volumes import ImageError

TRACKED = re.compile(r"Seq_Frame\d+_\w*Transform")
"""The fields of PLUS that say where the tracked probe was in each frame."""

LONGEST = 2**20
"""The longest header that is read, in bytes."""

NRRD_TYPES = {
    kind: names
    for kind, *names in (
        ("i1", "signed char", "int8", "int8_t"),
        ("u1", "uchar", "unsigned char", "uint8", "uint8_t"),
        ("i2", "short", "short int", "signed short", "signed short int", "int16", "int16_t"),
        ("u2", "ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
        ("i4", "int", "signed int", "int32", "int32_t"),
        ("u4", "uint", "unsigned int", "uint32", "uint32_t"),
        ("i8", "longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
        ("u8", "ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
        ("f4", "float"),
        ("f8", "double"),
    )
}
"""The types of NRRD, by their names in NumPy."""

META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
"""The types of MetaImage, by their names in NumPy."""

SPACES = {
    "left-posterior-superior": "lps",
    "right-anterior-superior": "ras",
    "left-anterior-superior": "las",
}
"""The spaces of NRRD that are those of a patient, and their short names."""

ENCODINGS = {
    "raw": "raw",
    "gzip": "gzip",
    "gz": "gzip",
    "hex": "hex",
    "ascii": "text",
    "text": "text",
    "txt": "text",
}
"""The encodings of NRRD, by the names that are used here."""


@dataclass(frozen=True)
class Stored:
    """How and where voxels are stored."""

    shape: tuple[int, ...]
    """The number of voxels along each axis, the fastest first."""
    dtype: np.dtype[Any]
    """Their type and the order of their bytes."""
    encoding: str
    """``"raw"``, ``"gzip"`` (or zlib), ``"hex"`` or ``"text"``."""
    file: str | None
    """The name of the file that holds them; None if they follow the header."""
    start: int
    """The number of bytes in front of them; -1 if they are the last bytes."""
    lines: int = 0
    """The number of lines in front of these."""
    listed: bool = False
    """Whether they are pictures one after the other, which the last axis counts."""
    unplaced: str = ""
    """The reason why the header does not say where they lie in the patient, if it does not."""


def read_header(path: Path) -> tuple[Stored, bytes]:
    """Reads a header, and returns with it what follows it in the file.

    Raises:
        ImageError: If it is a sweep of pictures rather than a volume, or does not say where it
            lies.
        ValueError: If it is damaged, or voxels are stored in a way that is not read here.
        OSError: If the file cannot be read.
    """
    content = read_bytes(path)
    if not content:
        raise ValueError("it is empty")
    parse = _nrrd if path.suffix.lower() in (".nrrd", ".nhdr") else _meta
    stored, end = parse(content)
    if stored.listed:
        raise ImageError(
            f"{path} cannot be used: it is a sweep, whose pictures are not the slices of a "
            "volume; reconstruct a volume from them first, as PLUS and 3D Slicer do."
        )
    if stored.unplaced:
        raise ImageError(
            f"{path} does not say how it lies in space ({stored.unplaced}); write its header "
            "again."
        )
    return stored, content[end:] if stored.file is None else b""


def files_of(path: Path) -> list[Path]:
    """Returns the files of a volume: its header, and the one with the voxels if that is another.

    Raises:
        ValueError: As `read_header`.
        OSError: If the file cannot be read.
    """
    stored, _ = read_header(path)
    return [path] if stored.file is None else [path, beside(path, stored.file)]


def read_voxels(path: Path) -> np.ndarray:
    """Reads the voxels of a NRRD or MetaImage file, as stored, in one row, the first axis fastest.

    What is compressed has its checksum verified, and all voxels that the header claims are there.

    Raises:
        ValueError: If voxels are damaged, missing or left over.
        OSError: If a file cannot be read.
    """
    stored, content = read_header(path)
    if stored.file is not None:
        content = read_bytes(beside(path, stored.file))
    for _ in range(stored.lines):
        content = content[content.index(b"\n") + 1 :]
    size = check_voxels(stored.shape) * stored.dtype.itemsize
    if stored.encoding == "text":
        numbers = np.array(content.decode("ascii").split(), np.float64)
        if numbers.size * stored.dtype.itemsize != size:
            raise ValueError(f"its header says other than {numbers.size} voxels, which it holds")
        return numbers
    if stored.encoding == "gzip":
        content = inflate(content, size)
    elif stored.encoding == "hex":
        content = bytes.fromhex(content.decode("ascii"))
    start = len(content) - size if stored.start == -1 else stored.start
    if start < 0 or len(content) - start != size:
        raise ValueError(f"its header says {size} bytes of voxels, but it holds {len(content)}")
    return np.frombuffer(content, stored.dtype, offset=start)


def _nrrd(content: bytes) -> tuple[Stored, int]:
    if not content.startswith(b"NRRD000"):
        raise ValueError("it does not begin as NRRD does")
    lines, end = _lines(content, lambda line: not line)
    fields: dict[str, str] = {}
    keys = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not line or line.startswith("#"):
            continue
        if value.startswith("="):
            keys.append(name)
            continue
        if not colon:
            raise ValueError(f"its header has a line without a colon, {line:.40}")
        _put(fields, name.strip().lower().replace(" ", ""), value.strip())
    kinds = {name: kind for kind, names in NRRD_TYPES.items() for name in names}
    encoding = _choose(fields, "encoding", ENCODINGS, str.lower)
    kind = _choose(fields, "type", kinds, str.lower)
    orders = {"little": "<", "big": ">"}
    if kind[1] != "1" and encoding != "text":
        kind = _choose(fields, "endian", orders, str.lower) + kind
    start, count = int(fields.get("byteskip", 0)), int(fields.get("lineskip", 0))
    if (start or count) and encoding != "raw":
        raise ValueError("what lies in front of its voxels is skipped in raw files alone")
    if start < -1 or count < 0:
        raise ValueError(f"its header skips {start} bytes and {count} lines")
    file = fields.get("datafile")
    shape = _shape(fields, "sizes")
    listed = _listed(fields.get("kinds", ""), keys)
    space = fields.get("space")
    unplaced = "" if "spacedirections" in fields else "it has no space directions"
    if (space or "").lower() not in (*SPACES, *SPACES.values()):
        unplaced = f"its space is {space!r}, none of {', '.join(SPACES)}"
        unplaced = unplaced if space else "it has no space"
    dtype = np.dtype(kind)
    stored = Stored(shape, dtype, encoding, _single(file), start, count, listed, unplaced)
    return stored, end


def _meta(content: bytes) -> tuple[Stored, int]:
    lines, end = _lines(content, lambda line: line.partition("=")[0].strip() == "ElementDataFile")
    fields: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if line.strip():
            if not equals:
                raise ValueError(f"its header has a line that sets nothing, {line:.40}")
            _put(fields, name.strip(), value.strip())
    file = fields.get("ElementDataFile")
    if file is None:
        raise ValueError("its header does not say where voxels are, as ElementDataFile")
    if not _flag(fields, "BinaryData", "True"):
        raise ValueError("its voxels are text, which is not read")
    orders = [n for n in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB") if n in fields]
    order = ">" if orders and _flag(fields, orders[0]) else "<"
    dtype = np.dtype(order + _choose(fields, "ElementType", META_TYPES))
    encoding = "gzip" if _flag(fields, "CompressedData") else "raw"
    start = int(fields.get("HeaderSize", 0))
    inside = file.upper() == "LOCAL"
    if start < -1 or (start and encoding != "raw") or (start > 0 and inside):
        raise ValueError(f"its header skips {start} bytes")
    name = None if inside else _single(file)
    listed = _listed(fields.get("Kinds", ""), fields)
    turned = any(field in fields for field in ("TransformMatrix", "Rotation", "Orientation"))
    unplaced = "" if turned else "it has no TransformMatrix"
    shape = _shape(fields, "DimSize")
    return Stored(shape, dtype, encoding, name, start, listed=listed, unplaced=unplaced), end


def _listed(kinds: str, names: Iterable[str]) -> bool:
    """Whether the third of three axes is a list by its kind, or frames have transforms."""
    own = sum(1 for name in names if TRACKED.fullmatch(name.strip()))
    return own > 1 or kinds.lower().split()[2:] in (["list"], ["time"])


def _lines(content: bytes, is_last: Callable[[str], bool]) -> tuple[list[str], int]:
    """The lines of a header, and where it ends."""
    lines: list[str] = []
    end = 0
    while end < len(content):
        stop = content.find(b"\n", end, LONGEST)
        if stop < 0 and len(content) > LONGEST:
            raise ValueError(f"its header does not end within {LONGEST} bytes")
        stop = len(content) if stop < 0 else stop
        lines.append(content[end:stop].decode("utf-8", "replace").rstrip("\r"))
        end = min(stop + 1, len(content))
        if is_last(lines[-1]):
            break
    return lines, end


def _put(fields: dict[str, str], name: str, value: str) -> None:
    """Notes a field. One that stands twice is refused, as readers differ in which they take."""
    if name in fields:
        raise ValueError(f"its header says {name!r} twice")
    fields[name] = value


def _choose(
    fields: Mapping[str, str],
    name: str,
    known: Mapping[str, str],
    spelled: Callable[[str], str] = str,
) -> str:
    value = spelled(fields.get(name, ""))
    if value not in known:
        raise ValueError(f"its {name} is {value!r}, which is not among {', '.join(known)}")
    return known[value]


def _shape(fields: Mapping[str, str], name: str) -> tuple[int, ...]:
    shape = tuple(int(n) for n in fields.get(name, "").split())
    if not shape or min(shape) < 1:
        raise ValueError(f"its {name} are {fields.get(name)!r}, but should be positive integers")
    return shape


def _flag(fields: Mapping[str, str], name: str, default: str = "False") -> bool:
    return fields.get(name, default)[:1] in ("T", "t", "1")


def _single(file: str | None) -> str | None:
    """The name of a data file; lists and patterns of several are refused."""
    if file is not None and (file.split(" ")[0] == "LIST" or "%" in file):
        raise ValueError(f"its voxels are in several files, {file!r}; save one volume per file")
    return file
