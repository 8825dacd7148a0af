"""A chromium and a JupyterLab on a copy of the notebooks, one of each for all tests."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from browser.lab import ROOT, Server, browsing, serving


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless, and without a network."""
    with browsing() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On copies: JupyterLab saves what it opens, outputs and all."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (root / "private").mkdir()
    with serving(root / "notebooks", root / "private") as lab:
        yield lab
