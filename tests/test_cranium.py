"""The head CT: got by apt, verified, kept whole or not at all; cleaned, placed and landmarked as the pictures say."""

import hashlib
import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from ct_files import ball, package, project
from scipy import ndimage

from medshift.data import ct as module
from medshift.data.cranium import LANDMARKS, cranium, load
from medshift.data.ct import FILE, fetch
from medshift.errors import DataError

KEPT = Path(os.environ.get("MEDSHIFT_CACHE") or Path.home() / ".cache" / "medshift") / FILE
NEEDS_CT = (lambda test: test) if KEPT.is_file() else pytest.mark.slow  # slow where it has to be downloaded
SPACING = (5.0, 4.5, 4.0)


@pytest.fixture(autouse=True)
def no_ct_of_the_user(monkeypatch):
    monkeypatch.delenv("MEDSHIFT_CT", raising=False)


@pytest.fixture
def small_ct(monkeypatch) -> bytes:
    """A small project that takes the place of Debian's CT, hash and all."""
    blob = project(ball(centre_mm=(-60.0, 0.0, 0.0))[:, ::-1], SPACING[::-1])
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(blob).hexdigest())
    return blob


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """Returns a function that puts an apt-get of our own, a shell script, in the place of the real one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(script: str) -> Path:
        program = folder / "apt-get"
        program.write_text(f'#!/bin/sh\nPATH=/usr/bin:/bin\necho "$@" >> {tmp_path}/calls\n{script}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return tmp_path / "calls"

    return install


def _delivers(tmp_path: Path, blob: bytes) -> str:
    (tmp_path / "archive.deb").write_bytes(package({FILE: blob}))
    return f'case "$*" in *download*) cp {tmp_path}/archive.deb ./invesalius-examples_1_all.deb;; esac'


def test_fetch_verifies_keeps_and_leaves_nothing_else(tmp_path, small_ct, apt):
    calls = apt(_delivers(tmp_path, small_ct))
    cache = tmp_path / "a" / "cache"
    path = fetch(cache)
    assert path == cache / FILE and path.read_bytes() == small_ct
    assert list(cache.iterdir()) == [path]
    assert fetch(cache) == path
    assert len(calls.read_text().splitlines()) == 1  # the system's package lists did, and the second call kept quiet


def test_stale_lists_are_renewed_in_a_private_folder(tmp_path, small_ct, apt):
    calls = apt(f'case "$*" in *download*Lists*|*Lists*download*) {_delivers(tmp_path, small_ct)};; esac')
    cache = tmp_path / "cache"
    assert fetch(cache).read_bytes() == small_ct
    first, update, second = calls.read_text().splitlines()
    assert "download" in first and "State::Lists" not in first
    assert "update" in update and f"Dir::State::Lists={cache}" in update and f"Dir::Cache={cache}" in update
    assert "download" in second and f"Dir::State::Lists={cache}" in second


def test_cache_folder_of_the_environment(tmp_path, small_ct, apt, monkeypatch):
    apt(_delivers(tmp_path, small_ct))
    monkeypatch.setenv("MEDSHIFT_CACHE", str(tmp_path / "mine"))
    assert fetch() == tmp_path / "mine" / FILE


def test_processes_may_fetch_at_the_same_time(tmp_path, small_ct, apt):
    apt("sleep 0.2\n" + _delivers(tmp_path, small_ct))
    results: list[Path | Exception] = []

    def run() -> None:
        try:
            results.append(fetch(tmp_path / "cache"))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "cache" / FILE] * 4
    assert (tmp_path / "cache" / FILE).read_bytes() == small_ct


def test_another_file_in_the_package_is_not_kept(tmp_path, small_ct, apt):
    apt(_delivers(tmp_path, small_ct + b"x"))
    with pytest.raises(DataError, match=f"expected {hashlib.sha256(small_ct).hexdigest()}.*MEDSHIFT_CT"):
        fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_cache_is_an_error_that_says_what_to_delete(tmp_path, small_ct):
    (tmp_path / FILE).write_bytes(small_ct[:-1])
    with pytest.raises(DataError, match=rf"SHA-256 .* expected .*Delete {tmp_path / FILE}"):
        fetch(tmp_path)


def test_no_apt(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="no apt-get.*MEDSHIFT_CT"):
        fetch(tmp_path / "cache")


def test_offline(tmp_path, apt):
    apt('echo "W: noise"; echo "E: Failed to fetch http://x" >&2; echo "bye"; exit 100')
    with pytest.raises(DataError, match=r"cannot download .*\(E: Failed to fetch http://x\).*network.*MEDSHIFT_CT"):
        fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_apt_that_hangs(tmp_path, apt, monkeypatch):
    monkeypatch.setattr(module, "APT_SECONDS", 0.2)
    apt("sleep 3")
    with pytest.raises(DataError, match="no answer within 0.2 s"):
        fetch(tmp_path / "cache")


def test_a_cache_that_cannot_be_written(tmp_path, small_ct, apt):
    apt(_delivers(tmp_path, small_ct))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="MEDSHIFT_CACHE"):
        fetch(tmp_path / "file" / "cache")


@pytest.mark.parametrize("kind", ["inv3", "deb"])
def test_debian_s_ct_is_known_by_its_bytes_wherever_it_lies(tmp_path, small_ct, monkeypatch, kind):
    path = tmp_path / f"renamed.{kind}"
    path.write_bytes(small_ct if kind == "inv3" else package({"x.inv3": small_ct}))
    monkeypatch.setenv("MEDSHIFT_CT", str(path))
    head = cranium()
    assert head.source == "cranium" and head.landmarks == LANDMARKS and head.cut == ("inferior",)


def test_a_ct_of_the_user_takes_its_place_without_landmarks(tmp_path, small_ct, monkeypatch):
    path = tmp_path / "mine.inv3"
    path.write_bytes(project(ball()[:, ::-1], SPACING[::-1]))
    monkeypatch.setenv("MEDSHIFT_CT", str(path))
    monkeypatch.setattr(module, "fetch", lambda cache=None: pytest.fail("fetched Debian's"))
    for head in (cranium(), load(path)):
        assert head.source == "user" and head.landmarks == {} and head.name == "mine.inv3"


def test_a_ct_of_the_user_that_is_missing_is_never_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSHIFT_CT", str(tmp_path / "gone.nii"))
    monkeypatch.setattr(module, "fetch", lambda cache=None: pytest.fail("fetched Debian's"))
    with pytest.raises(DataError, match="gone.nii: no such file"):
        cranium()


def _real_ct(cache: Path | None = None):
    try:
        return load(fetch(cache))
    except DataError as error:
        if "has SHA-256" in str(error):
            raise
        pytest.skip(f"the head CT cannot be had: {error}")


@pytest.fixture(scope="module")
def head():
    return _real_ct()


@pytest.fixture(scope="module")
def bone(head) -> np.ndarray:
    return head.density[1].numpy() > 350 / 1560


def _coordinates(head) -> list[np.ndarray]:
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(head.shape, head.spacing, strict=True)]
    return np.meshgrid(*axes, indexing="ij")


@pytest.mark.slow
def test_apt_really_delivers_it(tmp_path):
    assert _real_ct(tmp_path).source == "cranium"


@NEEDS_CT
def test_ct_is_the_one_described(head):
    assert head.shape == (108, 256, 256) and head.source == "cranium" and head.cut == ("inferior",)
    assert head.spacing == pytest.approx((1.5, 0.957, 0.957), abs=1e-3)
    brain = head.density[:, 70, 90:170, 90:170].flatten(1).median(1).values
    assert float(brain[0] + 2.56 * brain[1]) == pytest.approx(1.03, abs=0.02)  # 30 HU


@NEEDS_CT
def test_head_holder_is_removed(head):
    """It is a shell of plastic behind the head: at its sides and behind the occiput nothing may be left."""
    z, y, x = _coordinates(head)
    outside = (y > 114) | ((np.abs(x) > 100) & (y > 40))
    density = head.density.sum(0).numpy()
    assert not density[outside].any()
    assert (density > 0.7).sum() * np.prod(head.spacing) > 3.0e6  # mm3: the head stays


@NEEDS_CT
def test_nose_is_in_front_vertex_above_teeth_below(head, bone):
    z, y, x = _coordinates(head)
    skin = head.density.sum(0).numpy() > 0.7
    assert y[skin].min() < -105 and z[skin][y[skin].argmin()] < -30 and abs(x[skin][y[skin].argmin()]) < 10
    assert not skin[-1].any() and bone[0].any()
    teeth = head.density[1].numpy() > 1.3
    assert z[teeth].mean() < -60 and y[teeth].mean() < -40


BONY = sorted(LANDMARKS.keys() - {"orbit_right", "orbit_left", "sella"})


@NEEDS_CT
@pytest.mark.parametrize("name", BONY)
def test_landmark_lies_on_the_surface_of_bone(head, bone, name):
    z, y, x = _coordinates(head)
    surface = bone & ~ndimage.binary_erosion(bone)
    distance = np.linalg.norm(np.stack([x[surface], y[surface], z[surface]], -1) - LANDMARKS[name], axis=-1).min()
    assert distance < 2.0


@NEEDS_CT
@pytest.mark.parametrize(
    ("name", "direction", "reach_mm"),
    [
        ("vertex", (0, 0, 1), 40),
        ("glabella", (0, -1, 0), 6),
        ("opisthocranion", (0, 1, 0), 6),
        ("zygion_right", (-1, 0, 0), 12),
        ("zygion_left", (1, 0, 0), 12),
        ("mastoid_right", (0, 0, -1), 6),
        ("mastoid_left", (0, 0, -1), 6),
    ],
)
def test_extreme_landmarks_are_extreme(head, bone, name, direction, reach_mm):
    z, y, x = _coordinates(head)
    offset = np.stack([x[bone], y[bone], z[bone]], -1) - LANDMARKS[name]
    near = np.linalg.norm(offset, axis=-1) < reach_mm
    assert abs((offset[near] @ np.array(direction)).max()) < 2.0


@NEEDS_CT
@pytest.mark.parametrize("name", ["orbit_right", "orbit_left"])
def test_eyeballs_are_balls_of_vitreous(head, name):
    z, y, x = _coordinates(head)
    distance = np.sqrt(sum((c - p) ** 2 for c, p in zip((x, y, z), LANDMARKS[name], strict=True)))
    density = (head.density[0] + 2.56 * head.density[1]).numpy()
    assert density[distance < 8].mean() == pytest.approx(1.015, abs=0.01) and density[distance < 8].min() > 0.95
    shell = (distance > 13) & (distance < 17)
    assert density[shell].std() > 3 * density[distance < 8].std()  # fat and bone lie around it


@NEEDS_CT
def test_sella_is_a_soft_hollow_with_bone_below_and_behind(head):
    x, y, z = LANDMARKS["sella"]
    i, j, k = round(x / 0.957 + 127.5), round(y / 0.957 + 127.5), round(z / 1.5 + 53.5)
    density = (head.density[0] + 2.56 * head.density[1]).numpy()
    assert density[k, j, i] == pytest.approx(1.02, abs=0.03)
    assert density[k - 5 : k, j, i].max() > 1.08  # the floor is thinner than a slice
    assert density[k, j : j + 9, i].max() > 1.2  # dorsum sellae


def test_landmarks_are_paired_and_ordered():
    assert len(LANDMARKS) >= 12
    pairs = {name.removesuffix("_left") for name in LANDMARKS if name.endswith("_left")}
    assert len(pairs) == 5
    middle = LANDMARKS["nasion"][0]
    for name in pairs:
        right, left = np.array(LANDMARKS[f"{name}_right"]), np.array(LANDMARKS[f"{name}_left"])
        assert right[0] < middle < left[0] and abs(right[0] + left[0] - 2 * middle) < 8
        assert np.abs(right - left)[1:].max() < 8
    height = [LANDMARKS[n][2] for n in ("mastoid_left", "porion_left", "orbit_left", "glabella", "bregma", "vertex")]
    assert height == sorted(height)
    depth = [LANDMARKS[n][1] for n in ("nasion", "orbit_left", "sella", "porion_left", "inion", "opisthocranion")]
    assert depth == sorted(depth)
