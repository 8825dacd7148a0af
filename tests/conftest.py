"""What tests share: a seeded generator, small rendered views, hypothesis without deadlines on a busy machine."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "medshift", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("medshift")


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of its own for each test."""
    return torch.Generator().manual_seed(20)


@pytest.fixture(scope="session")
def stage_inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished stages ``views`` (16 pixels, coarse phantoms) and ``codec`` (patches of two), as small as they get."""
    from medshift.data.domains import ViewCounts, plan_views, render
    from medshift.data.heads import Heads, HeadSplit
    from medshift.stages import codec
    from medshift.stages.job import Job

    root = tmp_path_factory.mktemp("stages")
    counts = ViewCounts(train=8, validation=4, T0=2, T1=2, T2=4, T3=2)
    render(plan_views(counts, HeadSplit(2, 2, 2), 0), Heads("phantom", phantom_spacing_mm=4.0), 16, root / "views")
    (root / "codec").mkdir()
    codec.build(Job(root / "codec", {"views": root / "views"}), kind="patch", factor=2)
    return {"views": root / "views", "codec": root / "codec"}
