"""What a figure says of itself: the same bytes from the same inputs, read back from every format."""

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, create_model

from medshift.cli import parser
from medshift.errors import DataError
from medshift.repro import provenance
from medshift.repro.parameters import Parameters, TradeoffParameters, check
from medshift.repro.provenance import (
    PICTURES,
    command_of,
    hardware,
    read_sidecar,
    read_stamp,
    save_figure,
    save_table,
    versions,
)
from medshift.repro.values import parse_pairs
from medshift.viz.theme import use_theme

STAMP = {
    "notebook": "04_tau_tradeoff",
    "parameters": {"profile": "smoke", "overrides": "größe=3 (τ) \\ \"'", "tau_grid": [0.1, 0.2]},
    "seeds": [0],
    "stages": {"views": "40506d367ad8"},
    "facts": {"data set": "骨 <&> ü", "data set's SHA-256": "3b34"},
}


@pytest.fixture(autouse=True)
def theme() -> Iterator[None]:
    use_theme()
    yield
    plt.close("all")


def saved(folder: Path, stamp: dict[str, Any] = STAMP, caption: str = "Caption: é, τ, 骨") -> dict[str, Path]:
    figure, axis = plt.subplots(figsize=(1.5, 1))
    axis.plot([0, 1], label="τ")
    axis.legend()
    return save_figure(figure, folder, "04_line", stamp, {"caption": caption})


def test_the_same_figure_and_stamp_are_the_same_bytes(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "a"), saved(tmp_path / "b")
    for suffix in PICTURES:
        assert one[suffix].read_bytes() == other[suffix].read_bytes(), suffix
    changed = saved(tmp_path / "c", STAMP | {"seeds": [1]})
    for suffix in PICTURES:
        assert one[suffix].read_bytes() != changed[suffix].read_bytes(), suffix


def test_every_format_carries_the_stamp_and_the_sidecar_the_rest(tmp_path: Path) -> None:
    paths = saved(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"04_line{s}" for s in (*PICTURES, ".json")}
    for suffix in PICTURES:
        assert read_stamp(paths[suffix]) == STAMP, suffix
        assert read_sidecar(paths[suffix])["caption"] == "Caption: é, τ, 骨"
    sidecar = json.loads(paths[".json"].read_text(encoding="utf-8"))
    assert sidecar["stamp"] == STAMP and {"commit", "versions", "caption"} <= set(sidecar)
    paths[".json"].unlink()
    assert read_sidecar(paths[".png"]) is None and read_stamp(paths[".png"]) == STAMP


@settings(max_examples=4)
@given(text=st.text(max_size=12), number=st.floats(allow_nan=False))
def test_any_values_are_read_back(tmp_path: Path, text: str, number: float) -> None:
    stamp = STAMP | {"parameters": {"text": text, "number": number}, "facts": {text: text}}
    paths = saved(tmp_path, stamp)
    assert [read_stamp(paths[suffix]) for suffix in PICTURES] == [stamp] * 3


def test_a_table_carries_its_stamp_beside_it(tmp_path: Path) -> None:
    paths = save_table("| τ |\n", "τ\n1\n", tmp_path, "04_numbers", STAMP, {"minutes": {}})
    assert read_stamp(paths[".md"]) == read_stamp(paths[".csv"]) == STAMP
    assert paths[".md"].read_text(encoding="utf-8") == "| τ |\n" and read_sidecar(paths[".csv"])["minutes"] == {}
    saved(tmp_path)  # a figure of the same name would have a sidecar of its own
    assert paths[".json"].name == "04_numbers.table.json"
    paths[".json"].unlink()
    with pytest.raises(DataError, match="no stamp"):
        read_stamp(paths[".csv"])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    use_theme()
    paths = saved(tmp_path_factory.mktemp("whole"))
    return {suffix: paths[suffix].read_bytes() for suffix in PICTURES}


@settings(max_examples=40)
@given(suffix=st.sampled_from(PICTURES), share=st.floats(0, 0.99), flips=st.integers(0, 3), at=st.randoms())
def test_a_damaged_figure_has_its_stamp_or_is_refused(
    tmp_path: Path, pictures: dict[str, bytes], suffix: str, share: float, flips: int, at: Any
) -> None:
    blob = bytearray(pictures[suffix][: int(share * len(pictures[suffix]))])
    for _ in range(flips if blob else 0):
        blob[at.randrange(len(blob))] = at.randrange(256)
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(blob)
    try:
        assert isinstance(read_stamp(path), dict)
        assert flips or read_stamp(path) == STAMP
    except DataError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("suffix", PICTURES)
@pytest.mark.parametrize("share", [0, 0.02, 0.1])
def test_a_figure_cut_off_before_its_stamp_is_refused(
    tmp_path: Path, pictures: dict[str, bytes], suffix: str, share: float
) -> None:
    path = tmp_path / f"cut{suffix}"
    end = min(pictures[suffix].find(b"04_tau_tradeoff") % len(pictures[suffix]), int(share * len(pictures[suffix])))
    path.write_bytes(pictures[suffix][:end])
    with pytest.raises(DataError, match="carries no stamp"):
        read_stamp(path)


def test_what_is_no_figure_of_the_companion_is_refused(tmp_path: Path) -> None:
    from PIL import Image, PngImagePlugin

    figure, _ = plt.subplots()
    for suffix in PICTURES:
        figure.savefig(tmp_path / f"other{suffix}")
    described = PngImagePlugin.PngInfo()
    described.add_text("Description", '{"title": "a list of numbers"}')
    Image.new("L", (4, 4)).save(tmp_path / "described.png", pnginfo=described)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "alone.csv").write_text("a\n1\n")
    (tmp_path / "list.csv").write_text("a\n1\n")
    (tmp_path / "list.table.json").write_text("[1]")
    (tmp_path / "other.jpg").write_bytes(b"")
    (tmp_path / "bare").write_bytes(b"")
    paths = [*tmp_path.iterdir(), tmp_path, tmp_path / "nowhere.png", tmp_path / "other.png" / "x.png"]
    assert len(paths) == 14
    for path in paths:
        if path.name != "list.table.json":
            with pytest.raises(DataError) as caught:
                read_stamp(path)
            assert str(path) in str(caught.value)


def test_a_damaged_sidecar_is_a_data_error(tmp_path: Path) -> None:
    path = saved(tmp_path)[".png"]
    for damage in ("", "{", "[1]", "5"):
        path.with_suffix(".json").write_text(damage)
        with pytest.raises(DataError, match=r"04_line\.json cannot be read"):
            read_sidecar(path)


# The command that makes a figure again


def parameters_of(command: str) -> tuple[str, dict[str, Any]]:
    """What the command line reads from a shell's line."""
    words = shlex.split(command)
    assert words[0] == "medshift"
    options = parser().parse_args(words[1:])
    return options.notebook, parse_pairs(options.parameter)


def stamp_of(parameters: Parameters) -> dict[str, Any]:
    """As JSON gives it back, like a figure's."""
    held = parameters.model_dump(exclude={"out_dir", "data", "device", "offline"})
    return json.loads(json.dumps({"notebook": "04_tau_tradeoff", "parameters": held}))


LINE = st.text(max_size=15) | st.sampled_from(
    [
        "1",
        "1e-4",
        "true",
        "no",
        "null",
        "~",
        "-x",
        "--out",
        "-1",
        "- a",
        "2024-01-31",
        "[a]",
        "a: b",
        "#",
        "=",
        "'",
        '"',
    ]
)


@given(
    profile=LINE, overrides=LINE, seed=st.integers(0, 2**31 - 1), guidance=st.floats(0, 20),
    grid=st.lists(st.floats(0, 1), min_size=2, max_size=5, unique=True).map(sorted) | st.just([]),
)  # fmt: skip
def test_the_command_gives_the_parameters_back(
    profile: str, overrides: str, seed: int, guidance: float, grid: list[float]
) -> None:
    values = {"profile": profile, "overrides": overrides, "seed": seed, "guidance": guidance, "tau_grid": grid}
    before = check(TradeoffParameters, values, "nb")
    notebook, read = parameters_of(command_of(stamp_of(before)))
    assert notebook == "notebooks/04_tau_tradeoff.ipynb"
    assert check(TradeoffParameters, read, "nb") == before


MINE: Any = create_model(
    "mine", __base__=Parameters, shift=(float, Field(0.0)), flag=(bool, Field(False)), words=(list, Field([]))
)


@given(
    shift=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    words=st.lists(LINE | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans(), max_size=4),
)
def test_the_command_of_a_notebook_of_ones_own_too(shift: float, flag: bool, words: list[Any]) -> None:
    before = check(MINE, {"shift": shift, "flag": flag, "words": words}, "mine")
    _, read = parameters_of(command_of(stamp_of(before)))
    after = check(MINE, read, "mine")
    assert after == before and [type(word) for word in after.words] == [type(word) for word in words]


def test_the_command_is_as_short_to_read_as_it_can_be() -> None:
    assert command_of(STAMP | {"parameters": {"profile": "smoke", "tau_grid": [0.1, 0.2], "overrides": ""}}) == (
        "medshift run notebooks/04_tau_tradeoff.ipynb -p profile smoke -p tau_grid '[0.1, 0.2]' -p overrides ''"
    )


# The machine


def test_the_commit_is_known_in_a_checkout_and_unknown_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    provenance.commit.cache_clear()
    assert provenance.commit() == {"id": "unknown"}

    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("a")
    git("add", "a")
    git("commit", "-m", "a")
    (tmp_path / "a").write_text("b")
    provenance.commit.cache_clear()
    found = provenance.commit()
    assert len(str(found["id"])) == 40 and found["changed files"] == ["a"]
    provenance.commit.cache_clear()


def test_versions_and_hardware_name_no_machine() -> None:
    import platform

    found = {**versions(["torch", "no_such_package"]), **hardware("cpu")}
    assert set(found) == {"python", "torch", "system", "cores", "device"} and found["cores"] >= 1
    assert platform.node() not in json.dumps(found)
