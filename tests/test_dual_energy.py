"""Dual energy: weights from the beams alone, which material each image shows, and the noise the two share."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from medshift.data import dual_energy
from medshift.data.beams import absorbed_share, linear_attenuation, load_beam
from medshift.data.dual_energy import CHAINS, REFERENCE_MM, effective_attenuation, material_paths
from medshift.data.physics_report import shell_head

SIZE, FOV = 32, 250.0
HEAD, PATCH = slice(4, 28), slice(14, 18)
Views = tuple[Tensor, Tensor, Tensor]


def slab(water: float = 0.0, bone: float = 0.0, *, n: int = 1) -> Views:
    """The reference head as a slab before open air, with so many mm more in its centre."""
    lines = torch.zeros(n, 2, SIZE, SIZE)
    lines[:, :, HEAD, HEAD] = torch.tensor(REFERENCE_MM).view(2, 1, 1)
    lines[:, :, PATCH, PATCH] += torch.tensor([water, bone]).view(2, 1, 1)
    return lines, torch.ones(n, 1, SIZE, SIZE, dtype=torch.bool), torch.full((n,), FOV)


def response(water: float = 0.0, bone: float = 0.0) -> tuple[float, float]:
    """By how much both estimates rise in the centre against the slab beside it [mm], half that of more less less."""

    def seen(sign: float) -> list[Tensor]:
        return [p[0, 0] for p in material_paths(*slab(sign * water, sign * bone), generator=None)]

    changes = [(more - less) / 2 for more, less in zip(seen(1.0), seen(-1.0), strict=True)]
    soft, dense = (float(c[15:17, 15:17].mean() - c[8, 8]) for c in changes)
    return soft, dense


@pytest.fixture
def no_scatter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, chain in CHAINS.items():
        monkeypatch.setitem(CHAINS, name, replace(chain, scatter_per_nat=0.0))


@pytest.mark.parametrize("name", list(CHAINS))
def test_effective_attenuation_is_the_mean_over_the_transmitted_energy(name: str) -> None:
    """From the table and xraydb in bins of their own: Σ w μ / Σ w, w the absorbed energy behind the reference."""
    chain = CHAINS[name]
    beam = load_beam(chain.beam)
    energy = np.arange(beam.energy[0], beam.energy[-1], 0.25)
    mu = np.stack([linear_attenuation(material, energy) for material in ("water", "bone")])
    weight = np.interp(energy, beam.energy, beam.fluence) * energy * absorbed_share(energy, chain.csi_g_cm2)
    weight = weight * np.exp(-np.array(REFERENCE_MM) @ mu)
    np.testing.assert_allclose(effective_attenuation(chain), (mu @ weight) / weight.sum(), rtol=0.01)


def test_the_beams_differ_more_for_bone_than_for_water() -> None:
    """Or else there would be nothing to cancel."""
    (water_low, bone_low), (water_high, bone_high) = (effective_attenuation(CHAINS[n]) for n in ("low", "high"))
    assert bone_high / bone_low < 0.9 * water_high / water_low < 0.9


def test_without_scatter_each_image_measures_its_material_and_not_the_other(no_scatter: None) -> None:
    water = response(water=5.0)
    assert water[0] == pytest.approx(5.0, rel=0.1) and abs(water[1]) < 0.15 * water[0]
    bone = response(bone=1.0)
    assert bone[1] == pytest.approx(1.0, rel=0.1) and abs(bone[0]) < 0.15 * bone[1]


def test_scatter_dilutes_both_by_the_primarys_share_and_leaves_a_residue() -> None:
    """A small detail loses to scatter what d ln (P + S) loses to d ln P; weights do not know of it."""
    lines, everywhere, fov = slab()
    share = {
        n: 1 / (1 + float(c.scatter_to_primary(lines, everywhere, fov)[0, 0, 15:17, 15:17].mean()))
        for n, c in CHAINS.items()
    }
    assert share["low"] < share["high"] < 0.8
    low, high = (effective_attenuation(CHAINS[n]) for n in ("low", "high"))
    of_water, of_bone = high[0] / low[0], high[1] / low[1]
    for k, change in enumerate(({"water": 5.0}, {"bone": 1.0})):
        seen_low, seen_high = low[k] * share["low"], high[k] * share["high"]
        soft = (seen_high - of_bone * seen_low) / (high[0] - of_bone * low[0])
        bone = (of_water * seen_low - seen_high) / (of_water * low[1] - high[1])
        mm = next(iter(change.values()))
        assert response(**change) == pytest.approx((soft * mm, bone * mm), rel=0.2)
    # Water hardly shows in the bone image; bone does in the soft one, as a detail's contrast in each beam is its own.
    soft, bone = response(water=5.0)
    assert soft == pytest.approx(5.0, rel=0.1) and abs(bone) < 0.15 * soft


def test_noise_of_the_two_images_is_anticorrelated_as_their_weights_say() -> None:
    """Both hold S_low and S_high with opposite signs: cov = -(w_b w_w var S_low + var S_high), up to the scales."""
    views, generator = slab(n=60), torch.Generator().manual_seed(0)
    soft, bone = (p[:, 0, 8:24, 8:24] for p in material_paths(*views, generator=generator))
    noise = torch.stack([(p - p.mean(0)).flatten() for p in (soft, bone)])
    found = float(torch.corrcoef(noise)[0, 1])
    variance = {}
    for name, chain in CHAINS.items():
        signal = chain.linear_signal(*views, generator=generator)[:, 0, 8:24, 8:24]
        variance[name] = float(signal.log().var(0).mean())
    low, high = (effective_attenuation(CHAINS[n]) for n in ("low", "high"))
    of_water, of_bone = high[0] / low[0], high[1] / low[1]
    spread = [w**2 * variance["low"] + variance["high"] for w in (of_water, of_bone)]
    expected = -(of_water * of_bone * variance["low"] + variance["high"]) / (spread[0] * spread[1]) ** 0.5
    assert found == pytest.approx(expected, abs=0.02) and found < -0.8
    scale = abs(high[0] - of_bone * low[0])
    assert float(noise[0].std()) == pytest.approx(spread[1] ** 0.5 / scale, rel=0.1)


def test_estimates_have_no_mean_in_the_measuring_field_and_depend_on_no_neighbour() -> None:
    lines, field, fov = slab(n=3)
    lines[1] *= 0.7
    lines[2] = shell_head(SIZE, FOV)
    together = material_paths(lines, field, fov, generator=None)
    for i in range(3):
        alone = material_paths(lines[i : i + 1], field[i : i + 1], fov[i : i + 1], generator=None)
        for path, other in zip(together, alone, strict=True):
            torch.testing.assert_close(path[i : i + 1], other, atol=1e-2, rtol=0)
    weights = dual_energy.measuring_field(lines, field)
    for path in together:
        torch.testing.assert_close((weights * path).sum((1, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)


def test_same_generator_same_images_and_none_no_noise() -> None:
    views = shell_head(SIZE, FOV), torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool), torch.tensor([FOV])
    clean, again = (dual_energy.dual_energy(*views, generator=None) for _ in range(2))
    one, same, other = (dual_energy.dual_energy(*views, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    for k in range(2):
        assert torch.equal(clean[k], again[k]) and torch.equal(one[k], same[k])
        assert 1e-3 < float((one[k] - other[k]).std()) and float((one[k] - clean[k]).abs().mean()) < 0.15


def test_air_is_bright_and_values_stay_within_the_display() -> None:
    lines = shell_head(64, FOV)
    views = lines, torch.ones(1, 1, 64, 64, dtype=torch.bool), torch.tensor([FOV])
    for generator in (None, torch.Generator().manual_seed(0)):
        soft, bone = (image[0, 0] for image in dual_energy.dual_energy(*views, generator=generator))
        for image in (soft, bone):
            assert image.abs().max() < 1
            assert image[30:34, :3].mean() > image[30:34, 30:34].mean() + 0.3
        rim = lines[0, 1].argmax()  # the shell seen edge on: bone is darkest there, soft tissue is not
        assert bone.flatten()[rim] < bone[30:34, 30:34].mean() - 0.1
