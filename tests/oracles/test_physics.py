"""The ten numbers of an X-ray chain against independent values: NIST's tables, SpekPy, closed forms of IEC 62220-1."""

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from medshift.data import physics_report as report
from medshift.data.beams import absorbed_share, kerma_per_photon, load_beam, mass_attenuation

CHAINS = report.real_chains()
# One chain in the fast tests (the laws are the same), all of them in the slow ones.
EACH = [pytest.param(name, marks=() if name == "real-normal" else pytest.mark.slow, id=name) for name in CHAINS]

# NIST X-ray mass attenuation coefficients [cm2/g] (Hubbell & Seltzer, NISTIR 5632), and air's energy absorption.
NIST_KEV = np.array([15.0, 20, 30, 40, 50, 60, 80, 100])
NIST = {
    "water": [1.673, 0.8096, 0.3756, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707],
    "bone": [9.032, 4.001, 1.331, 0.6655, 0.4242, 0.3148, 0.2229, 0.1855],
    "aluminium": [7.955, 3.441, 1.128, 0.5685, 0.3681, 0.2778, 0.2018, 0.1704],
}
NIST_AIR_ABSORPTION = [1.334, 0.5389, 0.1537, 0.06833, 0.04098, 0.03041, 0.02407, 0.02325]


@pytest.mark.parametrize("material", NIST)
def test_attenuation_is_nists(material):
    np.testing.assert_allclose(mass_attenuation(material, NIST_KEV), NIST[material], rtol=3e-3)


def test_air_kerma_is_nists():
    unit = 1.602176634e-16 * 1e5 * 1e6  # keV cm2/g per photon/mm2 in uGy
    expected = NIST_KEV * np.array(NIST_AIR_ABSORPTION) * unit
    np.testing.assert_allclose(kerma_per_photon(NIST_KEV), expected, rtol=0.016)


def test_rqa5_has_the_standards_photon_number():
    """IEC 62220-1 gives 30174 photons per mm2 and uGy for RQA5; the half-value layer is 6.8 mm Al."""
    beam = load_beam("rqa5")
    assert beam.fluence.sum() == pytest.approx(30174, rel=0.03)
    assert report.half_value_layers()["rqa5"][0] == pytest.approx(6.8, rel=0.03)


def test_1_half_value_layers_are_spekpys():
    layers = report.half_value_layers()
    assert {chain.beam for chain in CHAINS.values()} <= set(layers)
    for ours, spekpys in layers.values():
        assert ours == pytest.approx(spekpys, rel=0.03)


def test_tables_hold_one_microgray():
    for name in report.half_value_layers():
        beam = load_beam(name)
        assert (beam.fluence * kerma_per_photon(beam.energy)).sum() == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("name", CHAINS)
def test_2_transmission_of_a_head(name):
    """150 mm of water and 15 mm of bone against fine bins, and against NIST's nodes joined by a spline."""
    chain, beam = CHAINS[name], load_beam(CHAINS[name].beam)
    ours, fine = report.transmission(chain)
    assert ours == pytest.approx(fine, rel=0.01)
    weight = beam.fluence * beam.energy * absorbed_share(beam.energy, chain.csi_g_cm2)
    mu = {m: np.exp(CubicSpline(np.log(NIST_KEV), np.log(NIST[m]))(np.log(beam.energy))) for m in NIST}
    nist = (weight * np.exp(-15.0 * mu["water"] - 1.5 * 1.92 * mu["bone"])).sum() / weight.sum()
    assert ours == pytest.approx(nist, rel=0.01)


@pytest.mark.parametrize("name", CHAINS)
def test_3_beam_hardens_with_thickness(name):
    mu = report.effective_attenuation(CHAINS[name], np.array([1.0, 20, 50, 100, 150, 200, 300]))
    assert (np.diff(mu) < 0).all()
    assert 0.018 < mu[-1] < mu[0] < 0.030


@pytest.mark.parametrize("name", CHAINS)
def test_4_scatter_behind_a_head(name):
    """Behind a grid and a head scatter is 0.3 to 1 of the primary, more behind thick parts than thin ones."""
    ratio, centre = report.scatter_map(CHAINS[name])
    assert 0.3 < centre < 1.0
    assert ratio[32, 32] > 5 * ratio[32, 2]
    depth = report.shell_head()[0].sum(0).numpy()
    thick, thin = ratio[depth > 170].mean(), ratio[(depth > 20) & (depth < 90)].mean()
    assert thick > thin


def test_4_scatter_grows_with_field_and_thickness():
    chain, fov = CHAINS["real-normal"], torch.tensor([250.0])
    field = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    narrow = torch.zeros_like(field)
    narrow[..., 12:20, 12:20] = True

    def centre(water_mm: float, open_field: torch.Tensor) -> float:
        lines = torch.zeros(1, 2, 32, 32)
        lines[:, 0] = water_mm
        return float(chain.scatter_to_primary(lines, open_field, fov)[0, 0, 16, 16])

    assert centre(50, field) < centre(100, field) < centre(160, field) < centre(250, field)
    assert centre(160, narrow) < 0.5 * centre(160, field)
    before_grid = centre(160, field) * chain.grid_primary / chain.grid_scatter
    assert 1.0 < before_grid < 2.0


@pytest.mark.parametrize("name", EACH)
def test_5_slanted_edge_gives_the_models_mtf(name):
    frequency = np.array([0.5, 1.0, 1.5])
    measured = report.slanted_edge_mtf(CHAINS[name], frequency)
    np.testing.assert_allclose(measured, report.presampled_mtf(CHAINS[name], frequency), atol=0.02)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("kerma", [10.0, 100.0, 1000.0])
def test_6_noise_power_has_the_shape_of_mtf_squared_plus_white(name, kerma):
    chain = CHAINS[name]
    frequency, measured = report.radial(report.nnps(chain, kerma), chain.native_pixel_mm)
    expected = report.radial(report.nnps_model(chain, kerma), chain.native_pixel_mm)[1]
    np.testing.assert_allclose(measured[1:], expected[1:], rtol=0.10)
    assert (measured / expected).mean() == pytest.approx(1, abs=0.05)
    assert measured[-1] < 0.7 * measured[1]


@pytest.mark.parametrize("name", EACH)
def test_7_noise_power_times_kerma_is_constant_where_quanta_limit(name):
    product = report.nnps_times_kerma(CHAINS[name], np.array([250.0, 500.0, 1000.0]))
    np.testing.assert_allclose(product, product.mean(), rtol=0.05)


@pytest.mark.parametrize("name", EACH)
def test_8_variance_against_mean_returns_slope_and_floor(name):
    line = report.variance_against_mean(CHAINS[name], np.array([0.25, 1.0, 4.0, 16.0]))
    assert line["slope"][0] == pytest.approx(line["slope"][1], rel=0.05)
    assert line["floor"][0] == pytest.approx(line["floor"][1], rel=0.05)


@pytest.mark.parametrize("name", EACH)
def test_9_dqe_stays_below_absorption(name):
    frequency, dqe, bound = report.dqe(CHAINS[name], 1000.0)
    assert (dqe <= bound).all()
    assert dqe[1:3].mean() > 0.55
    assert frequency[-1] < 0.5 / CHAINS[name].native_pixel_mm


@pytest.mark.parametrize("name", EACH)
def test_10_detectability_grows_with_the_root_of_kerma(name):
    kerma = np.array([250.0, 1000.0, 4000.0])
    slope = np.polyfit(np.log(kerma), np.log(report.contrast_detail(CHAINS[name], kerma)), 1)[0]
    assert slope == pytest.approx(0.5, abs=0.02)


def test_10_electronic_noise_breaks_the_law_at_low_dose():
    low = report.contrast_detail(CHAINS["real-normal"], np.array([0.1, 0.4]))
    assert low[1] / low[0] > 2.3
