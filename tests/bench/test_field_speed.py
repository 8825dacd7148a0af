"""What the mixing field costs of a step of CDTSDE, by the side of the image; printed, never asserted: `make bench`."""

import json
from pathlib import Path

import pytest
import torch

from medshift.stages.job import Job
from medshift.stages.shift_costs import build

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(900)]


def test_share_of_the_field(tmp_path: Path) -> None:
    build(Job(tmp_path), sizes=[64, 128, 256, 512], repeats=5, seed=0)
    print(f"\nMedian ms at batch 1, {torch.get_num_threads()} threads")
    for row in json.loads((tmp_path / "costs.json").read_text())["costs"]:
        parts = {name: 1e3 * row[name] for name in ("network", "field", "arithmetic")}
        share = parts["field"] / sum(parts.values())
        text = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
        print(f"{row['size']} pixels: {text}; the field is {100 * share:.0f} % of the step")
