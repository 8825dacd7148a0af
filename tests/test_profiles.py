"""Profiles: every file loads, and a wrong setting is refused before anything runs."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medshift.errors import ParameterError
from medshift.repro.profiles import PROFILES, Profile, load_profile, profile_folder, require_data, resolve
from medshift.repro.run import parse_overrides


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_loads(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name and sorted(set(profile.tradeoff.taus)) == profile.tradeoff.taus
    assert all(0 <= tau <= 1 for tau in profile.tradeoff.taus)
    assert set(profile.tradeoff.views) <= set(profile.views.model_fields_set)
    parts = profile.train.accumulation
    assert parts == "auto" or profile.train.batch % parts == 0


def test_the_files_are_the_profiles() -> None:
    assert {path.stem for path in profile_folder().glob("*.yaml")} == set(PROFILES)
    for path in profile_folder().glob("*.yaml"):
        assert path.read_text().startswith("# "), f"{path.name} says first what it is for"
        assert yaml.safe_load(path.read_text())["name"] == path.stem


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.image": "3"}, "no setting 'train.image'"),
        ({"train.images": "lots"}, r"train\.images.*got 'lots'"),
        ({"train.images": "0"}, r"train\.images"),
        ({"train.images": ""}, r"train\.images"),
        ({"size": "7"}, "size"),
        ({"source": "elsewhere"}, "source"),
        ({"kl.widths": "[8]"}, r"kl\.widths"),
        ({"kl.widths": "[8, x]"}, r"kl\.widths\.1"),
        ({"tradeoff.taus": "[0.1]"}, r"tradeoff\.taus"),
        ({"nothing.at.all": "0"}, "no setting"),
        ({"size.more": "0"}, "no setting"),
        ({"": "0"}, "no setting"),
    ],
)
def test_wrong_settings_are_refused(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        load_profile("smoke", overrides)
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_is_refused_by_name() -> None:
    with pytest.raises(ParameterError, match="No profile is called 'smok'; the profiles are auto, smoke"):
        load_profile("smok")


def test_settings_reach_the_profile_and_nothing_else() -> None:
    changed = load_profile("smoke", parse_overrides("train.images=32 kl.widths=[8,8] train.learning_rate=1e-4"))
    # YAML reads 1e-4 as text; it must arrive as the number.
    assert changed.train.learning_rate == pytest.approx(1e-4)
    assert changed.train.images == 32 and changed.kl.widths == [8, 8]
    same = {"images", "learning_rate"}
    assert changed.train.model_dump(exclude=same) == load_profile("smoke").train.model_dump(exclude=same)
    assert load_profile("smoke", {"codec.folder": "models/vae"}).codec.folder == "models/vae"
    assert load_profile("smoke") == load_profile("smoke", {}) != changed


@given(images=st.integers(1, 10**9), rate=st.floats(1e-12, 1, exclude_min=True))
def test_a_setting_arrives_as_the_number_that_was_written(images: int, rate: float) -> None:
    made = load_profile("smoke", parse_overrides(f"train.images={images} train.learning_rate={rate!r}"))
    assert made.train.images == images and made.train.learning_rate == rate


def test_a_profile_cannot_be_changed_once_made() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_profile("smoke").size = 3  # type: ignore[misc]
    assert set(Profile.model_fields) == set(load_profile("smoke").model_dump())


def test_auto_is_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for there, name in ((True, "gpu"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert resolve("auto") == name and resolve("smoke") == "smoke"


def test_only_profiles_of_folders_need_one(tmp_path: Path) -> None:
    require_data(load_profile("smoke"), "")
    require_data(load_profile("paper"), str(tmp_path))
    with pytest.raises(ParameterError, match="one sub-folder"):
        require_data(load_profile("paper"), "")
