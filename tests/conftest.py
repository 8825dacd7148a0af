"""What every test shares: a seeded generator, and hypothesis without deadlines on a machine that may be busy."""

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
