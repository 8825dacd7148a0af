"""InVesalius projects (.inv3) and Debian packages that hold one, read in memory without trusting them.

Nothing is unpacked to disk and nothing is unpickled. Every member must be a plain file with a name inside the
archive, and all that is unpacked must stay below a limit set by the size of the archive.
"""

import gzip
import io
import lzma
import plistlib
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Protocol
from xml.parsers.expat import ExpatError

import numpy as np

from medshift.errors import DataError

MAX_BYTES = 2**31  # a head CT of 512 x 512 x 1000 voxels with two masks; also the most that is held in memory
MAX_RATIO = 100  # of unpacked to packed bytes: a CT reaches 3, a masked one 20, a decompression bomb 1000
FREE_BYTES = 2**26  # below this the ratio does not matter
XZ_MEMORY = 2**28  # four times what `xz -9` asks for
AR_MAGIC, AR_HEADER = b"!<arch>\n", 60
DAMAGE = (
    tarfile.TarError,
    EOFError,
    OSError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OverflowError,
    RecursionError,
)


class Readable(Protocol):
    """What `tarfile` needs of a stream."""

    def read(self, size: int, /) -> bytes: ...


def project_bytes(path: Path) -> bytes:
    """The bytes of an .inv3 file, or of the only one inside a .deb package.

    Raises:
        DataError: The file is missing, damaged or hostile, or the package holds not exactly one project.
    """
    if path.suffix != ".deb":
        return _file_bytes(path)
    members = _members(_package_data(_file_bytes(path), path), path, lambda name: name.endswith(".inv3"))
    if len(members) != 1:
        raise DataError(f"{path}: the package holds {len(members)} .inv3 files; expected one, so name an .inv3 file.")
    return next(iter(members.values()))


def read_project(blob: bytes, path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """The CT of an InVesalius project.

    Args:
        blob: The bytes of the .inv3 file, a tar archive, gzipped or not.
        path: Names the file in errors.

    Returns:
        The matrix as stored, (slices, rows, columns) int16 [HU], and its spacing in the same order [mm].

    Raises:
        DataError: The archive is damaged or hostile, a member is missing, or the two do not agree.
    """
    stream: Readable = gzip.GzipFile(fileobj=io.BytesIO(blob)) if blob[:2] == b"\x1f\x8b" else io.BytesIO(blob)
    limited = _Limited(stream, len(blob), path)
    found = _members(limited, path, lambda name: PurePosixPath(name).name in ("main.plist", "matrix.dat"))
    members: dict[str, bytes] = {}
    for name, data in found.items():
        short = PurePosixPath(name).name
        if short in members:
            raise DataError(f"{path}: the archive holds two members {short}; save one InVesalius project a file.")
        members[short] = data
    if missing := {"main.plist", "matrix.dat"} - members.keys():
        raise DataError(
            f"{path}: the archive holds no {' and no '.join(sorted(missing))}; expected an InVesalius "
            "project, so save it again with InVesalius."
        )
    shape, dtype, spacing = _description(members["main.plist"], path)
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(members["matrix.dat"]) != expected:
        raise DataError(
            f"{path}: matrix.dat has {len(members['matrix.dat'])} bytes where main.plist says {expected} "
            f"(shape {shape}, {dtype.name}); get the file again or save the project again."
        )
    return np.frombuffer(members["matrix.dat"], dtype).reshape(shape), spacing


def _description(plist: bytes, path: Path) -> tuple[tuple[int, int, int], np.dtype, tuple[float, float, float]]:
    """Shape, type and spacing (z, y, x) [mm] by main.plist, which gives the spacing as (x, y, z)."""
    try:
        project = plistlib.loads(plist, fmt=plistlib.FMT_XML)
        matrix = project["matrix"]
        depth, height, width = (int(n) for n in matrix["shape"])
        dtype = np.dtype({"int16": "<i2"}[matrix["dtype"]])
        modality = project.get("modality", "CT")
    except (plistlib.InvalidFileException, ExpatError, KeyError, TypeError, AttributeError, *DAMAGE) as error:
        raise DataError(
            f"{path}: main.plist does not describe an int16 matrix of three dimensions ({error!r}); save the "
            "project again with InVesalius."
        ) from error
    if min(depth, height, width) < 1:
        raise DataError(f"{path}: main.plist says shape {(depth, height, width)}; expected three positive sizes.")
    if modality != "CT":
        raise DataError(f"{path}: the project is of modality {modality!r}; expected a CT.")
    try:
        x, y, z = (float(s) for s in project["spacing"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: main.plist has no spacing of three numbers, so sizes in mm are unknown; add it or use "
            "another file."
        ) from error
    return (depth, height, width), dtype, (z, y, x)


def _file_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{path}: {size} bytes; expected at most {MAX_BYTES}, so crop the CT to the head.")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions.") from error


def _package_data(blob: bytes, path: Path) -> "Readable":
    """The stream of a Debian package's data.tar; the package is an `ar` archive of three members."""
    if not blob.startswith(AR_MAGIC):
        raise DataError(f"{path}: not a Debian package (no `ar` header); get it again or name an .inv3 file.")
    start = len(AR_MAGIC)
    while start + AR_HEADER <= len(blob):
        header = blob[start : start + AR_HEADER]
        digits = header[48:58].strip()
        if header[58:] != b"`\n" or not digits.isdigit():
            break
        start, size = start + AR_HEADER, int(digits)
        name = header[:16].decode("latin-1").strip().rstrip("/")
        if start + size > len(blob):
            break
        if name.startswith("data.tar"):
            return _Limited(_opened(name, blob[start : start + size], path), len(blob), path)
        start += size + size % 2
    raise DataError(f"{path}: the package is truncated or damaged; download it again.")


def _opened(name: str, data: bytes, path: Path) -> "Readable":
    if name == "data.tar":
        return io.BytesIO(data)
    if name == "data.tar.gz":
        return gzip.GzipFile(fileobj=io.BytesIO(data))
    if name == "data.tar.xz":
        return _Xz(data)
    raise DataError(f"{path}: {name} is compressed in a way not read here; run `dpkg-deb -x` and name its .inv3 file.")


def _members(stream: Readable, path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The wanted members of a tar stream by name; every member is checked, wanted or not."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                _check_member(member, path)
                if member.isfile() and wanted(member.name):
                    if member.name in found:
                        raise DataError(f"{path}: two members are called {member.name!r}; get the file again.")
                    content = archive.extractfile(member)
                    found[member.name] = content.read() if content else b""
                    if len(found[member.name]) != member.size:
                        raise EOFError(f"{member.name} is cut short")
        while stream.read(2**16):  # the checksum of the compressed stream stands behind the archive's end
            pass
    except DAMAGE as error:
        raise DataError(f"{path}: the archive is truncated or damaged ({error}); get the file again.") from error
    return found


def _check_member(member: tarfile.TarInfo, path: Path) -> None:
    """Refuse what an honest project never holds, although nothing is unpacked to disk."""
    pure = PurePosixPath(member.name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in member.name or "\0" in member.name:
        raise DataError(f"{path}: member {member.name!r} points outside the archive; do not trust this file.")
    if not (member.isdir() or member.isfile()) or member.issparse():
        raise DataError(f"{path}: member {member.name!r} is a link, a device or sparse; do not trust this file.")
    if not 0 <= member.size <= MAX_BYTES:
        raise DataError(
            f"{path}: member {member.name!r} claims {member.size} bytes; expected at most {MAX_BYTES}. Do "
            "not trust this file, or crop the CT to the head."
        )


class _Limited:
    """A stream that refuses to unpack far more than an archive of this size can honestly hold."""

    def __init__(self, stream: Readable, packed: int, path: Path) -> None:
        self.stream, self.path = stream, path
        self.limit = min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * packed))
        self.count = 0

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes.

        Raises:
            DataError: more came out than the limit.
        """
        data = self.stream.read(size)
        self.count += len(data)
        if self.count > self.limit:
            raise DataError(
                f"{self.path}: unpacks to more than {self.limit} bytes, as a decompression bomb would; do "
                "not trust this file, or crop the CT to the head."
            )
        return data


class _Xz:
    """An xz stream whose decoder claims at most `XZ_MEMORY`, which `lzma.LZMAFile` cannot promise."""

    def __init__(self, data: bytes) -> None:
        self.source = io.BytesIO(data)
        self.decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)

    def read(self, size: int, /) -> bytes:
        while not self.decoder.eof:
            fresh = self.source.read(2**16) if self.decoder.needs_input else b""
            if self.decoder.needs_input and not fresh:
                raise EOFError("the xz stream ends early")
            if data := self.decoder.decompress(fresh, size):
                return data
        return b""
