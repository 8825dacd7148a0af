"""Laws of the acquisition: exposure, noise, display, and what all domains share."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medshift.data.acquisition import DEFAULT_CHAINS, DITHER, SHUTTER, Acquirer, acquire
from medshift.data.beams import absorbed_share, linear_attenuation, load_beam
from medshift.data.chains import RealChain, SimulatorChain, measuring_field, shoulder
from medshift.data.physics_report import shell_head
from medshift.errors import MedShiftError, ParameterError

DOMAINS = list(DEFAULT_CHAINS)
REAL = [name for name in DOMAINS if name.startswith("real")]
FOV = 250.0


def head(size=32, n=1):
    """Rays of a head, an open field with a collimated band of a tenth at the top, and the field of view."""
    field = torch.ones(n, 1, size, size, dtype=torch.bool)
    field[..., : size // 10, :] = False
    return shell_head(size, FOV).repeat(n, 1, 1, 1), field, torch.full((n,), FOV)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def centre_std(acquirer, domain, size=32, n=60):
    middle = slice(size // 2 - size // 8, size // 2 + size // 8)
    images = acquirer.acquire(*head(size, n), domain, generator=seeded())
    return float(images[..., middle, middle].std(0).mean())


@pytest.mark.parametrize("domain", DOMAINS)
def test_air_is_bright_and_bone_dark(domain):
    lines, field, fov = head(64)
    image = acquire(lines, field, fov, domain, generator=None, clean=True)[0, 0]
    air, middle, rim = image[32, 2], image[32, 32], image[32, 10:13].min()
    assert image.dtype == torch.float32 and image.shape == (64, 64)
    assert air > 0.75 and -0.9 < middle < 0 and rim < air - 0.3
    more = lines.clone()
    more[:, 1, 24:40, 24:40] += 5.0
    darker = acquire(more, field, fov, domain, generator=None, clean=True)[0, 0]
    surround = middle - image[20, 32]
    assert darker[32, 32] - darker[20, 32] < surround - 0.1


@pytest.mark.parametrize("domain", DOMAINS)
def test_values_lie_about_the_unit_range(domain):
    image = acquire(*head(64, 8), domain, generator=seeded())
    assert image.min() > -1.1 and image.max() < 1.1


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_pixel_value_is_an_atom(domain):
    image = acquire(*head(64, 4), domain, generator=seeded())
    _, counts = image.unique(return_counts=True)
    assert counts.max() <= 1e-3 * image.numel()


@pytest.mark.parametrize("domain", DOMAINS)
def test_shutter_is_one_dark_level_under_the_dither(domain):
    lines, field, fov = head(64, 4)
    behind = acquire(lines, field, fov, domain, generator=seeded())[~field]
    assert float(behind.mean()) == pytest.approx(SHUTTER, abs=0.001)
    assert float(behind.std()) == pytest.approx(DITHER, rel=0.1)
    assert (acquire(lines, field, fov, domain, generator=None, clean=True)[~field] == SHUTTER).all()


def test_same_seed_same_image_other_seed_independent_noise():
    rays = head(64)
    clean = acquire(*rays, "real-normal", generator=None, clean=True)
    first, again, other = (acquire(*rays, "real-normal", generator=seeded(s)) - clean for s in (1, 1, 2))
    assert torch.equal(first, again)
    inside = rays[0].sum(1, keepdim=True) > 20
    noise = torch.stack([first[inside], other[inside]])
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 5 / noise.shape[1] ** 0.5


@pytest.mark.parametrize("domain", DOMAINS)
def test_clean_image_depends_on_no_neighbour(domain):
    lines, field, fov = head(32, 3)
    lines[1] *= 0.6
    lines[2] = 0
    fov[1] = 300.0
    together = acquire(lines, field, fov, domain, generator=None, clean=True)
    for i in range(3):
        alone = acquire(lines[i : i + 1], field[i : i + 1], fov[i : i + 1], domain, generator=None, clean=True)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("domain", DOMAINS)
def test_clean_is_the_mean_of_exposures_in_the_linear_signal(domain):
    acquirer, n = Acquirer(), 200
    clean = acquirer.linear_signal(*head(), domain, clean=True)
    many = acquirer.linear_signal(*head(32, n), domain, generator=seeded())
    z = ((many.mean(0) - clean[0]) / (many.std(0) / n**0.5))[head()[1][0]]
    assert abs(float(z.mean())) < 4.5 / z.numel() ** 0.5
    assert float(z.std()) == pytest.approx(1, abs=0.12)


def test_logarithm_has_the_bias_that_is_stated():
    """E log S - log E S is about -1/2 of the relative variance, where the signal is well above its floor."""
    acquirer = Acquirer({"one": replace(DEFAULT_CHAINS["real-normal"], kerma_ngy=150.0)})
    lines = torch.zeros(64, 2, 32, 32)
    lines[:, 0] = 100.0
    field = torch.ones(64, 1, 32, 32, dtype=torch.bool)
    signal = acquirer.linear_signal(lines, field, torch.full((64,), FOV), "one", generator=seeded())
    mean, variance = signal.mean(0), signal.var(0)
    bias = (signal.log().mean(0) - mean.log()).mean()
    assert float(bias) == pytest.approx(float(-0.5 * (variance / mean**2).mean()), rel=0.15)


def test_dose_orders_the_real_domains():
    """Noise behind the head: low about twice normal, a single exposure at most half; none comes from the dither."""
    low, normal, exposure = (centre_std(Acquirer(), name) for name in REAL)
    assert 1.7 < low / normal < 2.7
    assert 1.2 * DITHER < exposure < 0.5 * normal
    # One native pixel at 40 nGy has .06 to .13 there; a displayed pixel collects four of them.
    assert 0.03 < normal < 0.065
    assert centre_std(Acquirer(), "synthetic-low") > 2 * centre_std(Acquirer(), "synthetic-high")


@pytest.mark.parametrize("domain", ["synthetic-low", "real-low", "real-normal"])
def test_noise_per_displayed_pixel_does_not_depend_on_resolution(domain):
    coarse, fine = (centre_std(Acquirer(), domain, size, n) for size, n in ((32, 60), (128, 6)))
    assert fine == pytest.approx(coarse, rel=0.12)


def test_noise_pixels_divide_the_variance():
    chain = replace(DEFAULT_CHAINS["real-normal"], electronic_kev=0.0, noise_pixels=1.0)
    acquirer = Acquirer({"one": chain, "four": replace(chain, noise_pixels=4.0)})
    one, four = (
        acquirer.linear_signal(*head(32, 100), name, generator=seeded())[..., 12:20, 12:20] for name in ("one", "four")
    )
    relative = [float((s.var(0) / s.mean(0) ** 2).mean()) for s in (one, four)]
    assert relative[0] / relative[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("domain", REAL)
def test_open_beam_gives_the_energy_of_its_kerma(domain):
    """Signal of a flat field: K times sum over E of phi eta E, from the table alone."""
    chain = replace(DEFAULT_CHAINS[domain], scatter_per_nat=0.0)
    lines = torch.zeros(1, 2, 16, 16)
    field = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    signal = chain.linear_signal(lines, field, torch.tensor([FOV]), clean=True)
    beam = load_beam(chain.beam)
    absorbed = (beam.fluence * absorbed_share(beam.energy, chain.csi_g_cm2) * beam.energy).sum()
    area = chain.noise_pixels * chain.native_pixel_mm**2
    expected = chain.gain * absorbed * chain.kerma_ngy * 1e-3 * area
    np.testing.assert_allclose(signal, expected, rtol=5e-3)


@pytest.mark.parametrize("domain", REAL)
def test_automatic_exposure_holds_the_dose_behind_any_head(domain):
    chain = DEFAULT_CHAINS[domain]
    lines, field, fov = head(32, 3)
    lines *= torch.tensor([0.5, 1.0, 1.3]).view(3, 1, 1, 1)
    signal = chain.linear_signal(lines, field, fov, clean=True)
    level = (signal * measuring_field(lines, field)).sum((1, 2, 3))
    # Kerma is held; its energy rises a little as the beam hardens.
    assert float(level.max() / level.min()) < 1.25
    double = replace(chain, kerma_ngy=2 * chain.kerma_ngy).linear_signal(lines, field, fov, clean=True)
    torch.testing.assert_close(double, 2 * signal)


def test_measuring_field_is_the_head_in_the_open_centre():
    lines, field, _ = head(64)
    weights = measuring_field(lines, field)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    assert (weights[~field] == 0).all() and (weights[lines.sum(1, keepdim=True) < 20] == 0).all()
    empty = measuring_field(torch.zeros_like(lines), field)
    assert (empty[~field] == 0).all() and float(empty[0, 0, 32, 32]) > 0
    closed = acquire(lines, torch.zeros_like(field), torch.tensor([FOV]), "real-low", generator=seeded())
    assert float(closed.mean()) == pytest.approx(SHUTTER, abs=0.002)


def test_simulator_obeys_beer_lambert_at_one_energy():
    chain = DEFAULT_CHAINS["synthetic-high"]
    assert isinstance(chain, SimulatorChain)
    lines = torch.zeros(2, 2, 8, 8)
    lines[1, 0, :, :4], lines[1, 1, :, :4] = 50.0, 10.0
    field = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    signal = chain.linear_signal(lines, field, torch.full((2,), FOV), clean=True)[1, 0]
    depth = sum(d * linear_attenuation(m, np.array(chain.energy_kev)) for m, d in (("water", 50.0), ("bone", 10.0)))
    assert float((signal[0, 7] / signal[0, 0]).log()) == pytest.approx(float(depth), rel=1e-4)


def test_shoulder_is_monotone_smooth_and_bounded():
    x = torch.linspace(-6, 6, 24001, dtype=torch.float64)
    y = shoulder(x, 0.6)
    slope = y.diff() / x.diff()
    assert (slope > 0).all() and float(y.abs().max()) < 1
    assert float(slope.diff().abs().max()) < 5e-3
    inside = x.abs() < 0.6
    torch.testing.assert_close(y[inside], x[inside])


@pytest.mark.parametrize("domain", DOMAINS)
def test_display_rises_with_the_signal(domain):
    """More signal in a pixel is never darker: the tone curve has no clamp and no fold, even below zero signal."""
    chain = DEFAULT_CHAINS[domain]
    chain = replace(chain, sharpening=0.0) if isinstance(chain, RealChain) else chain
    ramp = torch.cat([torch.linspace(-30, 0, 512), torch.logspace(-2, 5, 512)]).view(1, 1, 32, 32)
    field = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    weights = torch.zeros(1, 1, 32, 32)
    weights[..., 24, 0] = 1
    value = chain.display(ramp, weights, field, torch.tensor([FOV])).flatten()
    assert (value.diff() >= 0).all() and value.abs().max() < 1
    assert (value[512:-64].diff() > 0).all()


def test_sharpening_raises_edges_and_keeps_flat_parts():
    chain = DEFAULT_CHAINS["real-exposure"]
    plain = Acquirer({"plain": replace(chain, sharpening=0.0), "sharp": chain})
    lines, field, fov = head(64)
    lines[:, 1, 28:36, 28:36] += 4.0
    soft, sharp = (plain.acquire(lines, field, fov, name, generator=None, clean=True)[0, 0] for name in plain.chains)
    assert sharp[27, 32] - sharp[28, 32] > 1.15 * (soft[27, 32] - soft[28, 32])
    assert float((sharp - soft)[40, 4].abs()) < 0.02


def test_labels_and_names_agree():
    assert DOMAINS == ["synthetic-low", "synthetic-high", "real-low", "real-normal", "real-exposure"]
    for label, name in enumerate(DOMAINS):
        by_name, by_label = (acquire(*head(), d, generator=seeded()) for d in (name, label))
        assert torch.equal(by_name, by_label)


@pytest.mark.parametrize("domain", ["real", "", 5, -1, True, 2.0, None])
def test_unknown_domain_is_refused(domain):
    with pytest.raises(ParameterError, match="domain"):
        acquire(*head(), domain, generator=seeded())


def test_arguments_that_do_not_fit_are_refused():
    lines, field, fov = head()
    bad = [
        (lines[:, :1], field, fov),
        (lines[..., :16], field, fov),
        (lines, field.float(), fov),
        (lines, field[..., :16, :16], fov),
        (lines, field, fov * 0),
        (lines, field, fov.repeat(2)),
    ]
    for arguments in bad:
        with pytest.raises(ParameterError):
            acquire(*arguments, "real-low", generator=seeded())
    with pytest.raises(ParameterError, match="Generator"):
        acquire(lines, field, fov, "real-low", generator=None)
    with pytest.raises(ParameterError, match="Oversampling"):
        Acquirer().linear_signal(lines, field, fov, "real-low", clean=True, oversample=5)
    with pytest.raises(MedShiftError, match="fluoroscopy-low"):
        load_beam("no-such-beam")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_gpu_gives_the_same_clean_image_and_the_same_noise_level(domain):
    rays = head(64, 16)
    there = [x.cuda() for x in rays]
    clean = acquire(*there, domain, generator=None, clean=True)
    torch.testing.assert_close(clean.cpu(), acquire(*rays, domain, generator=None, clean=True), atol=1e-4, rtol=0)
    noisy = acquire(*there, domain, generator=torch.Generator("cuda").manual_seed(0))
    here = acquire(*rays, domain, generator=seeded())
    assert float((noisy - clean).std()) == pytest.approx(float((here - clean.cpu()).std()), rel=0.05)
