"""One environment said three times: pyproject.toml, requirements.lock, environment.yml; and who imports what."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.strip()]
PLATFORMS = [
    {"python_full_version": python, "python_version": python.rpartition(".")[0], "sys_platform": system,
     "platform_machine": machine, "implementation_name": "cpython", "platform_python_implementation": "CPython",
     "os_name": "nt" if system == "win32" else "posix", "platform_system": name}
    for python in ("3.11.9", "3.12.7")
    for system, name, machine in (
        ("linux", "Linux", "x86_64"), ("darwin", "Darwin", "arm64"), ("win32", "Windows", "AMD64")
    )
]  # fmt: skip


def locked(environment: dict[str, str]) -> dict[str, str]:
    """The versions the lock installs in one environment."""
    requirements = [Requirement(line) for line in LOCK]
    chosen = [r for r in requirements if r.marker is None or r.marker.evaluate(environment)]
    names = [canonicalize_name(r.name) for r in chosen]
    assert len(names) == len(set(names)), "a package is locked twice"
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r in chosen}


def wanted() -> list[Requirement]:
    """What the package and its dev extra ask for, extras of its own resolved."""
    extras = PROJECT["optional-dependencies"]
    dev = [line for line in extras["dev"] if not line.startswith("medshift")]
    lines = [*PROJECT["dependencies"], *extras["medical"], *extras["cluster"], *dev]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("environment", PLATFORMS, ids=lambda e: f"{e['sys_platform']}-{e['python_version']}")
def test_every_dependency_is_locked_within_its_range(environment):
    versions = locked(environment)
    for requirement in wanted():
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not locked; compile requirements.lock again"
        assert requirement.specifier.contains(version), f"{requirement} does not admit the locked {version}"


def test_the_lock_pins_every_line_and_names_no_place():
    for line in LOCK:
        requirement = Requirement(line)
        assert requirement.url is None and "/" not in line and not line.startswith("-"), line
        assert [s.operator for s in requirement.specifier] == ["=="], line


def test_no_index_address_is_committed():
    for name in ("pyproject.toml", "requirements.lock", "environment.yml", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"index-url|extra-index|find-links|https?://|file://", text), name


def test_environment_yml_installs_the_same_lock_on_an_admitted_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    python = next(d.partition("=")[2] for d in plain if d.startswith("python="))
    assert Version(python) in SpecifierSet(PROJECT["requires-python"]) and python in ("3.11", "3.12")
    assert sorted(plain) == ["pip", f"python={python}"], "everything else comes from the lock"
    assert pip == ["-r requirements.lock", "-e ."]


def test_torch_and_torchvision_are_builds_for_each_other():
    """torch 2.N goes with torchvision 0.(N+15); torchvision's own metadata must admit the locked torch."""
    for environment in PLATFORMS:
        versions = locked(environment)
        torch, vision = Version(versions["torch"]), Version(versions["torchvision"])
        assert (torch.major, vision.major, vision.minor) == (2, 0, torch.minor + 15)
    needs = [Requirement(r) for r in importlib.metadata.requires("torchvision") or []]
    own = next(r for r in needs if r.name == "torch")
    assert own.specifier.contains(versions["torch"])


def test_the_torch_that_breaks_is_refused():
    torch = next(r for r in wanted() if r.name == "torch")
    assert not torch.specifier.contains("2.13.0")
    assert torch.specifier.contains("2.11.0") and torch.specifier.contains(locked(PLATFORMS[0])["torch"])


def test_the_versions_installed_are_those_locked():
    versions = locked({name: str(value) for name, value in default_environment().items()})
    for name in ("torch", "torchvision", "diffusers", "numpy", "safetensors"):
        assert importlib.metadata.version(name).partition("+")[0] == versions[name]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("medshift", include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("medshift.flow", {"torch", "jaxtyping", "medshift.errors"}),
        ("medshift.guidance", {"torch", "jaxtyping", "medshift.errors", "medshift.flow"}),
        ("medshift.ode", {"torch", "jaxtyping", "torchdiffeq", "medshift.errors", "medshift.flow"}),
    ],
)
def test_the_core_imports_little(graph, module, allowed):
    """The allow-list that import-linter's deny-lists cannot say."""
    found = {m for m in graph.find_modules_directly_imported_by(module) if m not in sys.stdlib_module_names}
    assert found <= allowed, f"{module} imports {found - allowed}"


@pytest.mark.parametrize(
    ("package", "importers"),
    [
        ("diffusers", {"medshift.network", "medshift.codec"}),
        ("torchdiffeq", {"medshift.ode"}),
        (
            "stlpips_pytorch",
            {
                "medshift.baselines.hierarchy_flow",
                "medshift.codec_training",
                "medshift.metrics.features",
                "medshift.metrics.perceptual",
            },
        ),
    ],
)
def test_a_library_lives_in_its_room(graph, package, importers):
    found = graph.find_modules_that_directly_import(package)
    assert found and found <= importers


@pytest.mark.parametrize("module", ["medshift", "medshift.cli", "medshift.repro"])
def test_the_command_line_answers_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_nothing_of_repro_imports_torch_at_module_level():
    code = """
import importlib, pkgutil, sys
import medshift.repro
for module in pkgutil.iter_modules(medshift.repro.__path__):
    importlib.import_module(f"medshift.repro.{module.name}")
    assert "torch" not in sys.modules, module.name
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("package", "strangers"),
    [
        ("medshift.stages", {"medshift.viz", "medshift.results", "medshift.repro", "medshift.cli"}),
        ("medshift.results", {"medshift.repro", "medshift.cli"}),
    ],
)
def test_what_is_made_knows_nothing_of_what_asks_for_it(graph, package, strangers):
    """Not even by way of another module."""
    for stranger in strangers & graph.modules:
        chains = graph.find_shortest_chains(importer=package, imported=stranger, as_packages=True)
        assert not chains, chains
