"""The plan of a profile: what decides each stage, and what each reads."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medshift.errors import DataError, ParameterError
from medshift.repro.keys import PACKAGE
from medshift.repro.pipeline import TRAINING, plans, train_plan
from medshift.repro.profiles import PROFILES, load_profile
from medshift.repro.stage import Plan

SMOKE = load_profile("smoke")


def keys(**changes: Any) -> dict[str, str]:
    return {name: plan.key for name, plan in plans(SMOKE, **changes).items()}


def build_of(module: str) -> tuple[set[str], dict[str, Any]]:
    """Arguments that a stage's build needs, and the defaults of the others, read from its source."""
    path = PACKAGE.parent / Path(*module.split(".")).with_suffix(".py")
    function = next(
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == "build"
    )
    given = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    held = {arg.arg: None if default is None else (ast.literal_eval(default),) for arg, default in given}
    return {n for n, d in held.items() if d is None}, {n: d[0] for n, d in held.items() if d is not None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folders of images: two domains of ten."""
    rng = np.random.default_rng(0)
    for domain in ("first", "second"):
        (tmp_path / "mine" / domain).mkdir(parents=True)
        for i in range(10):
            image = rng.integers(0, 255, (32, 32), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "mine" / domain / f"{i}.png")
    return tmp_path / "mine"


@pytest.mark.parametrize("name", [name for name in PROFILES if name != "paper"])
def test_every_plan_fits_the_build_it_names(name: str) -> None:
    for plan in plans(load_profile(name, {"source": "phantom"})).values():
        needed, optional = build_of(plan.module)
        assert needed <= set(plan.arguments) <= needed | set(optional), plan.name


def test_stages_read_what_they_say_they_read() -> None:
    """Each `job.inputs[name]` of a build is an input of its plan."""
    for plan in plans(load_profile("smoke", {"codec.kind": "kl"})).values():
        path = PACKAGE.parent / Path(*plan.module.split(".")).with_suffix(".py")
        read = {
            node.slice.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "job.inputs"
        }
        assert read == set(plan.inputs), plan.name


def test_the_names_of_the_plans_and_their_inputs() -> None:
    made = plans(SMOKE)
    assert list(made) == ["views", "autoencoder", "codec", "network", "tradeoff"]
    assert all(plan.name == name for name, plan in made.items())
    assert made["network"].inputs == {"views": made["views"], "codec": made["codec"]}
    assert set(made["codec"].inputs) == {"views"}  # patches need no autoencoder
    learned = plans(load_profile("smoke", {"codec.kind": "kl"}))
    assert learned["codec"].inputs["autoencoder"] == learned["autoencoder"]


def test_a_setting_reaches_the_stages_behind_it_and_no_other() -> None:
    base = keys()

    def changed(overrides: dict[str, str] | None = None, **changes: Any) -> set[str]:
        made = plans(load_profile("smoke", overrides or {}), **changes)
        return {name for name, plan in made.items() if plan.key != base[name]}

    assert changed() == set()
    assert changed({"train.images": "641"}) == {"network", "tradeoff"}
    assert changed({"kl.images": "65"}) == {"autoencoder"}
    assert changed({"codec.factor": "4"}) == {"codec", "network", "tradeoff"}
    assert changed({"tradeoff.headline": "5"}) == changed(guidance=2.0) == changed(tau_grid=[0.1, 0.2]) == {"tradeoff"}
    assert changed({"views.T3": "9"}) == set(base) == changed(seed=1)
    assert changed(tau_grid=[]) == changed(guidance=1.0, images=32, head=2, tau=0.5) == set()
    assert changed(tau_grid=SMOKE.tradeoff.taus) == set(), "the profile's own values are no other study"


def test_an_ablation_that_changes_nothing_is_the_profiles_own_training() -> None:
    base = plans(SMOKE)
    assert train_plan(SMOKE, base, seed=0).key == base["network"].key
    assert train_plan(SMOKE, base, seed=0, **TRAINING).key == base["network"].key
    for name, value in {"width": 0.5, "images": 64, "sigma_min": 0.1, "codec": "kl", "codec_factor": 4}.items():
        other = train_plan(SMOKE, base, seed=0, **{name: value})
        assert other.key != base["network"].key and other.name == "network", name
    assert "autoencoder" in train_plan(SMOKE, base, seed=0, codec="kl").inputs["codec"].inputs
    assert train_plan(SMOKE, base, seed=0, codec_factor=4).inputs["codec"].arguments["factor"] == 4


def test_what_an_ablation_leaves_out_is_the_default_of_the_build() -> None:
    """TRAINING's neutral values are not handed on, so the build has to mean the same without them.

    Where they say 0 for the profile's own, the profile's is handed on; an echo of one is no echo.
    """
    _, defaults = build_of("medshift.stages.network")
    own = {name: value for name, value in TRAINING.items() if name in defaults and name != "echo"}
    assert own == {name: defaults[name] for name in own} and len(own) == 4


def test_an_echo_is_the_profiles_unless_an_ablation_says_another() -> None:
    plain, echoed = load_profile("smoke"), load_profile("smoke", {"train.echo": "2"})
    base = plans(plain)
    assert "echo" not in base["network"].arguments and plans(echoed)["network"].arguments["echo"] == 2
    assert train_plan(echoed, base, seed=0, echo=0).arguments["echo"] == 2
    assert train_plan(echoed, base, seed=0, echo=1).key == base["network"].key
    assert train_plan(plain, base, seed=0, echo=4).arguments["echo"] == 4


def test_a_users_folders_are_known_by_names_sizes_and_times(folder: Path) -> None:
    from medshift.stages.images import folder_set

    profile = load_profile("smoke", {"source": "folders"})

    def key() -> str:
        folder_set.cache_clear()
        return plans(profile, data=str(folder))["views"].key

    first = key()
    assert key() == first and plans(profile, data=str(folder))["views"].name == "folders"
    moved = folder.rename(folder.with_name("elsewhere"))
    folder_set.cache_clear()
    assert plans(profile, data=str(moved))["views"].key == first, "where the folder lies decides nothing"
    moved.rename(folder)
    path = folder / "first" / "0.png"
    os.utime(path, ns=(1, 1))
    assert key() != first
    again = key()
    path.unlink()
    assert key() != again


def test_a_profile_of_folders_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="trains on your own images"):
        plans(load_profile("paper"))
    with pytest.raises(DataError, match="nowhere"):
        plans(load_profile("smoke", {"source": "folders"}), data=str(tmp_path / "nowhere"))


def test_the_ct_decides_the_views(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profile = load_profile("smoke", {"source": "auto"})
    monkeypatch.setenv("MEDSHIFT_OFFLINE", "1")
    monkeypatch.setenv("MEDSHIFT_CACHE", str(tmp_path))
    monkeypatch.delenv("MEDSHIFT_CT", raising=False)
    assert plans(profile)["views"].key == plans(SMOKE)["views"].key  # auto falls back to the phantom
    ct = tmp_path / "head.nii"
    found = set()
    for content in (b"one", b"two"):
        ct.write_bytes(content)
        monkeypatch.setenv("MEDSHIFT_CT", str(ct))
        found.add(plans(profile)["views"].key)
    assert len(found) == 2 and keys()["views"] not in found


def test_plans_are_made_without_torch() -> None:
    code = (
        "import sys; from medshift.repro.pipeline import plans; from medshift.repro.profiles import load_profile; "
        "print(plans(load_profile('smoke'))['tradeoff'].key); sys.exit('torch' in sys.modules)"
    )
    seeds = ({"PYTHONHASHSEED": seed} for seed in ("1", "2"))
    runs = [
        subprocess.run([sys.executable, "-c", code], env=os.environ | seed, capture_output=True, text=True)
        for seed in seeds
    ]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert {run.stdout.strip() for run in runs} == {plans(SMOKE)["tradeoff"].key}


def test_a_plan_names_modules_that_are_stages() -> None:
    for plan in plans(SMOKE).values():
        assert isinstance(plan, Plan) and plan.module == f"medshift.stages.{plan.name}" and plan.label
