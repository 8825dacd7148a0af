"""Archives: what is honest is read bit for bit, everything else is one clear error."""

import gzip
import lzma
import struct
import tarfile

import numpy as np
import pytest
from ct_files import member, package, plist, project, tar
from hypothesis import given, settings
from hypothesis import strategies as st

from medshift.data import archives
from medshift.data.archives import project_bytes, read_project
from medshift.errors import DataError

MATRIX = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
GOOD = [member("t/main.plist", plist(MATRIX.shape)), member("t/matrix.dat", MATRIX.tobytes())]


@pytest.mark.parametrize("compression", ["gz", ""])
def test_project_round_trip(tmp_path, compression):
    matrix, spacing = read_project(project(MATRIX, (0.9, 0.8, 1.5), compression), tmp_path / "a.inv3")
    assert np.array_equal(matrix, MATRIX)
    assert spacing == (1.5, 0.8, 0.9)


@pytest.mark.parametrize("compression", ["xz", "gz", ""])
def test_package_gives_the_project_inside(tmp_path, compression):
    path, blob = tmp_path / "a.deb", project(MATRIX)
    path.write_bytes(package({"changelog": b"x" * 7, "a.inv3": blob}, compression))
    assert project_bytes(path) == blob


HOSTILE = {
    "parent": member("../x", b"1"),
    "inner parent": member("t/../../x", b"1"),
    "absolute": member("/etc/x", b"1"),
    "backslash": member("..\\x", b"1"),
    "symbolic link": member("t/x", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": member("t/x", type=tarfile.LNKTYPE, linkname="t/main.plist"),
    "character device": member("t/x", type=tarfile.CHRTYPE),
    "block device": member("t/x", type=tarfile.BLKTYPE),
    "pipe": member("t/x", type=tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_members_are_refused_by_name(tmp_path, kind):
    path = tmp_path / "evil.inv3"
    info, _ = HOSTILE[kind]
    with pytest.raises(DataError, match="do not trust") as caught:
        read_project(tar([*GOOD, HOSTILE[kind]]), path)
    assert str(path) in str(caught.value) and repr(info.name) in str(caught.value)


def test_hostile_member_of_a_package_is_refused(tmp_path):
    path = tmp_path / "evil.deb"
    path.write_bytes(package({"../../../x.inv3": project(MATRIX)}))
    with pytest.raises(DataError, match="outside the archive"):
        project_bytes(path)


def test_a_link_named_as_the_matrix_is_refused(tmp_path):
    link = member("t/matrix.dat", type=tarfile.SYMTYPE, linkname="/dev/zero")
    with pytest.raises(DataError, match="link"):
        read_project(tar([GOOD[0], link]), tmp_path / "a.inv3")


@pytest.mark.parametrize("factor", [0.5, 100])
def test_matrix_of_another_size_than_stated(tmp_path, factor):
    data = bytes(int(MATRIX.nbytes * factor))
    with pytest.raises(DataError, match=f"{len(data)} bytes where main.plist says {MATRIX.nbytes}"):
        read_project(tar([GOOD[0], member("t/matrix.dat", data)]), tmp_path / "a.inv3")


@pytest.mark.parametrize("kind", ["inv3", "deb"])
def test_a_bomb_is_stopped_at_the_limit(tmp_path, monkeypatch, kind):
    """100 times what an archive of this size may unpack to; what is read must stop near the limit."""
    monkeypatch.setattr(archives, "FREE_BYTES", 2**16)
    read = 0
    plain = archives._Limited.read

    def counted(self, size):
        nonlocal read
        data = plain(self, size)
        read += len(data)
        return data

    monkeypatch.setattr(archives._Limited, "read", counted)
    bomb = tar([GOOD[0], member("t/matrix.dat", bytes(100 * 2**16))])
    path = tmp_path / f"bomb.{kind}"
    with pytest.raises(DataError, match="decompression bomb"):
        if kind == "deb":
            path.write_bytes(package({"x.inv3": bytes(100 * 2**16)}))
            project_bytes(path)
        else:
            read_project(bomb, path)
    assert read <= 2 * max(2**16, archives.MAX_RATIO * len(bomb))


def test_a_stated_size_beyond_memory_is_refused_before_reading(tmp_path):
    header = tarfile.TarInfo("t/matrix.dat")
    header.size = 2**40
    blob = gzip.compress(header.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(DataError, match="claims 1099511627776 bytes"):
        read_project(blob, tmp_path / "a.inv3")


def test_an_xz_stream_that_claims_too_much_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "XZ_MEMORY", 2**16)
    path = tmp_path / "a.deb"
    path.write_bytes(package({"a.inv3": project(MATRIX)}))
    with pytest.raises(DataError, match="damaged"):
        project_bytes(path)


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), kind=st.sampled_from(["inv3", "deb"]))
def test_every_truncation_is_an_error(tmp_path_factory, share, kind):
    path = tmp_path_factory.mktemp("cut") / f"cut.{kind}"
    blob = project(MATRIX) if kind == "inv3" else package({"a.inv3": project(MATRIX)})
    path.write_bytes(blob[: int(share * len(blob))])
    with pytest.raises(DataError, match="cut"):
        read_project(project_bytes(path), path)


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255), compression=st.sampled_from(["gz", ""]))
def test_a_flipped_byte_never_gives_anything_but_a_volume_or_a_data_error(tmp_path_factory, place, value, compression):
    blob = bytearray(project(MATRIX, compression=compression))
    blob[int(place * len(blob))] ^= value
    try:
        matrix, spacing = read_project(bytes(blob), tmp_path_factory.getbasetemp() / "flipped.inv3")
    except DataError as error:
        assert "flipped.inv3" in str(error)
    else:
        assert matrix.dtype == np.dtype("<i2") and len(spacing) == 3


@settings(max_examples=60, deadline=None)
@given(blob=st.binary(max_size=400), start=st.sampled_from([b"", b"\x1f\x8b\x08", b"!<arch>\n"]))
def test_noise_is_a_data_error(tmp_path_factory, blob, start):
    for kind in ("inv3", "deb"):
        path = tmp_path_factory.getbasetemp() / f"noise.{kind}"
        path.write_bytes(start + blob)
        with pytest.raises(DataError, match="noise"):
            read_project(project_bytes(path), path)


@pytest.mark.parametrize("missing", [0, 1])
def test_missing_members_are_named(tmp_path, missing):
    name = GOOD[missing][0].name.removeprefix("t/")
    with pytest.raises(DataError, match=f"no {name}"):
        read_project(tar([GOOD[1 - missing]]), tmp_path / "a.inv3")


@pytest.mark.parametrize("twin", ["t/matrix.dat", "u/matrix.dat"])
def test_two_matrices_are_refused(tmp_path, twin):
    with pytest.raises(DataError, match="two members"):
        read_project(tar([*GOOD, member(twin, MATRIX.tobytes())]), tmp_path / "a.inv3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": None}, "no spacing"),
        ({"spacing": [1.0, 1.0]}, "no spacing"),
        ({"matrix": None}, "does not describe"),
        ({"matrix": {"dtype": "object", "shape": [4, 5, 6]}}, "does not describe"),
        ({"matrix": {"dtype": "int16", "shape": [4, 30]}}, "does not describe"),
        ({"matrix": {"dtype": "int16", "shape": [-4, -5, 6]}}, "positive"),
        ({"matrix": {"dtype": "int16", "shape": [2**40, 2**40, 2**40]}}, "bytes where main.plist says"),
        ({"modality": "MRI"}, "expected a CT"),
    ],
)
def test_plists_that_describe_no_ct(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_project(project(MATRIX, **changes), tmp_path / "a.inv3")


def test_a_plist_with_entities_is_refused(tmp_path):
    evil = plist(MATRIX.shape).replace(b"<plist", b'<!DOCTYPE p [<!ENTITY a "b">]><plist', 1)
    with pytest.raises(DataError, match="does not describe"):
        read_project(tar([member("main.plist", evil), GOOD[1]]), tmp_path / "a.inv3")


@pytest.mark.parametrize("files", [{"readme": b"x"}, {"a.inv3": b"x", "b.inv3": b"y"}])
def test_a_package_must_hold_one_project(tmp_path, files):
    path = tmp_path / "a.deb"
    path.write_bytes(package(files))
    with pytest.raises(DataError, match="expected one"):
        project_bytes(path)


def test_a_package_of_another_compression_says_what_to_do(tmp_path):
    path = tmp_path / "a.deb"
    path.write_bytes(package({"a.inv3": b""}).replace(b"data.tar.xz ", b"data.tar.zst"))
    with pytest.raises(DataError, match="dpkg-deb -x"):
        project_bytes(path)


def test_a_pickle_in_the_archive_is_never_loaded(tmp_path):
    """Member bytes that would run code under pickle are only ever a matrix of numbers."""
    evil = b"cbuiltins\nexit\n(I1\ntR."
    matrix = np.frombuffer(evil + bytes(len(evil) % 2), "<i2").reshape(1, 1, -1)
    assert np.array_equal(read_project(project(matrix), tmp_path / "a.inv3")[0], matrix)


def test_the_xz_reader_gives_what_was_packed():
    data = struct.pack("<1000i", *range(1000)) * 50
    stream, parts = archives._Xz(lzma.compress(data)), []
    while part := stream.read(777):
        assert len(part) <= 777
        parts.append(part)
    assert b"".join(parts) == data
