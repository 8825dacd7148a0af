"""Overlap, retrieval and spectra of latents against closed forms and invariances."""

import numpy as np
import pytest
import torch
from scipy.fft import idctn
from scipy.stats import wasserstein_distance
from sklearn.neighbors import NearestNeighbors

from medshift.errors import ParameterError
from medshift.metrics.manifold import (
    dealt,
    embed,
    knn_mixing,
    latent_spectrum,
    median_distance,
    mmd,
    noised_spectrum,
    retrieval,
    sliced_w2,
    white_part,
)


def gaussian(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def domains(number: int, views: int, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and heads of ``views`` views of each head in each domain."""
    return np.repeat(np.arange(number), heads * views), np.tile(np.repeat(np.arange(heads), views), number)


def test_equal_laws_mix_and_separated_ones_do_not() -> None:
    labels, heads = domains(3, 20, 8)
    z = gaussian(480, 5, 0)
    assert knn_mixing(z, labels, heads, 10) == pytest.approx(1.0, abs=0.05)
    assert knn_mixing(z + 100 * labels[:, None], labels, heads, 10) == 0.0
    # One view of each domain at each place: the nearest of other heads is as often of any domain.
    half = knn_mixing(np.where(labels[:, None] == 2, z + 100, z), labels, heads, 10)
    assert 0.4 < half < 0.6


def test_a_difference_between_heads_is_no_difference_between_domains() -> None:
    # A view's twin in the other domain is nearest to it, but of the same head: counted, it would give 2 here.
    labels, heads = domains(2, 1, 40)
    place = gaussian(40, 3, 1)[heads]
    assert knn_mixing(place, labels, heads, 1) == pytest.approx(1.0)
    apart = place + np.where(labels[:, None] == 1, 50.0, 0.0)
    assert knn_mixing(apart, labels, heads, 1) == 0.0


def test_mixing_is_that_of_a_neighbour_search_where_heads_are_single_views() -> None:
    z, labels = gaussian(90, 4, 2), np.random.default_rng(2).integers(0, 3, size=90)
    _, index = NearestNeighbors(n_neighbors=6).fit(z).kneighbors(z)
    found = (labels[index[:, 1:]] != labels[:, None]).mean()
    expected = np.mean([(labels[np.arange(90) != i] != labels[i]).mean() for i in range(90)])
    assert knn_mixing(z, labels, np.arange(90), 5) == pytest.approx(found / expected, rel=1e-12)


def test_mixing_does_not_depend_on_order_or_on_ties() -> None:
    labels, heads = domains(2, 6, 4)
    z, order = gaussian(48, 3, 3).round(0), np.random.default_rng(3).permutation(48)
    assert knn_mixing(z[order], labels[order], heads[order], 4) == pytest.approx(knn_mixing(z, labels, heads, 4))
    assert knn_mixing(np.ones((48, 3)), labels, heads, 4) == pytest.approx(1.0)


def test_sliced_distance_of_a_shift_and_of_a_set_with_itself() -> None:
    a = gaussian(200, 16, 4)
    delta = np.zeros(16)
    delta[3] = 5.0
    assert sliced_w2(a, a) == 0.0
    assert sliced_w2(a, a + delta, projections=1500, seed=1) == pytest.approx(5.0 / np.sqrt(16), rel=0.03)
    # In every direction two N(0, s² I) are |s_1 - s_2| apart.
    assert sliced_w2(gaussian(1500, 3, 5), 2 * gaussian(1200, 3, 6)) == pytest.approx(1.0, rel=0.08)


def test_sliced_distance_in_one_dimension_and_its_seed() -> None:
    a, b = np.arange(10.0)[:, None], np.arange(10.0)[:, None] * 1.0 + 0.25
    assert sliced_w2(a, b, projections=3) == pytest.approx(wasserstein_distance(a[:, 0], b[:, 0]))
    x, y = gaussian(50, 8, 7), gaussian(40, 8, 8)
    assert sliced_w2(x, y, 20, seed=3) == sliced_w2(x[::-1], y, 20, seed=3) != sliced_w2(x, y, 20, seed=4)


def test_mmd_has_the_closed_form_of_gaussians() -> None:
    d, s, shift = 3, 2.0, 0.7
    kept = (s**2 / (s**2 + 2)) ** (d / 2)
    expected = 2 * kept * (1 - np.exp(-(shift**2) * d / (2 * (s**2 + 2))))
    found = [mmd(gaussian(120, d, 2 * i), gaussian(90, d, 2 * i + 1, shift), bandwidth=s) for i in range(100)]
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / 10 < 0.15 * expected


def test_mmd_is_unbiased_and_equals_its_double_sum() -> None:
    # The biased estimate of 10 against 12 would be about .1.
    found = [mmd(gaussian(10, 2, 2 * i), gaussian(12, 2, 2 * i + 1), bandwidth=1.5) for i in range(400)]
    assert abs(np.mean(found)) < 0.006 and min(found) < 0
    a, b = gaussian(5, 3, 9), gaussian(4, 3, 10, 1.0)
    both = np.concatenate([a, b])
    s = np.median([np.linalg.norm(both[i] - both[j]) for i in range(9) for j in range(i)])
    kernel = np.array([[np.exp(-((x - y) ** 2).sum() / (2 * s**2)) for y in both] for x in both])
    inner = (kernel[:5, :5].sum() - 5) / 20 + (kernel[5:, 5:].sum() - 4) / 12
    assert mmd(a, b) == pytest.approx(inner - 2 * kernel[:5, 5:].mean(), rel=1e-9)
    assert median_distance(a, b) == pytest.approx(s) and mmd(a, b) == mmd(a, b, median_distance(a, b))


def test_views_are_dealt_once_and_evenly_over_heads() -> None:
    heads = np.arange(120) % 8
    for parts in (2, 5):
        part = dealt(heads, parts)
        table = np.array([[((heads == head) & (part == k)).sum() for k in range(parts)] for head in range(8)])
        assert table.sum() == 120 and np.ptp(table, axis=1).max() <= 1 and np.ptp(table.sum(axis=0)) <= 1
    order = np.random.default_rng(0).permutation(120)
    assert sorted(np.bincount(dealt(heads[order], 5))) == [24] * 5, "the order of views does not matter to the sizes"
    assert set(dealt([3, 9, 3, 9, 3, 9, 3, 9], 5)) == set(range(5)), "eight views of two heads fill five parts"
    with pytest.raises(ParameterError, match="cannot be dealt into 5"):
        dealt([0, 1, 0, 1], 5)


def test_views_are_found_again_by_what_is_theirs() -> None:
    z = gaussian(30, 20, 11)
    same = retrieval(z, z + 0.01 * gaussian(30, 20, 12))
    assert (same.top1, same.median_rank, same.chance, len(same.first)) == (1.0, 1.0, 1 / 30, 30)
    chance = [retrieval(gaussian(30, 20, 2 * i), gaussian(30, 20, 2 * i + 1)) for i in range(40)]
    assert np.mean([r.top1 for r in chance]) == pytest.approx(1 / 30, abs=0.02)
    assert np.mean([r.median_rank for r in chance]) == pytest.approx(15.5, abs=2)


def test_retrieval_ranks_as_counted_by_hand() -> None:
    a, b = np.array([[0.0], [1.0], [5.0]]), np.array([[1.25], [0.75], [2.5]])
    # Ranks 2 (after .75), 1 or 2 (.25 from two), and 1.
    result = retrieval(a, b)
    assert result.median_rank == 1.5 and result.top1 == pytest.approx((0 + 0.5 + 1) / 3)
    assert result.first.tolist() == [0, 0.5, 1] and result.rank.tolist() == [2, 1.5, 1]
    flat = retrieval(np.ones((4, 2)), np.ones((4, 2)))
    assert flat.top1 == pytest.approx(0.25) and flat.median_rank == 2.5


def test_spectrum_of_white_noise_is_flat_and_that_of_a_wave_has_its_frequency() -> None:
    g = torch.Generator().manual_seed(13)
    frequency, power = latent_spectrum(0.5 * torch.randn(300, 4, 12, 12, generator=g))
    assert frequency.shape == (12,) and power.shape == (300, 12) and frequency[0] == 0 and frequency[-1] < 0.5
    np.testing.assert_allclose(power.mean(0), 0.25, rtol=0.08)
    coefficients = np.zeros((1, 2, 16, 16))
    coefficients[0, 0, 0, 5] = 3.0
    frequency, power = latent_spectrum(torch.from_numpy(idctn(coefficients, norm="ortho", axes=(-2, -1))))
    assert int(power[0].argmax()) == 5 and frequency[5] == 5 / 32
    assert (power[0] > 1e-9).sum() == 1


def test_spectrum_of_latents_that_are_not_square() -> None:
    g = torch.Generator().manual_seed(14)
    frequency, power = latent_spectrum(torch.randn(400, 1, 8, 20, generator=g))
    assert len(frequency) == 8
    np.testing.assert_allclose(power.mean(0), 1.0, rtol=0.12)


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.8])
def test_noised_data_have_the_spectrum_of_theory_and_collapsed_ones_less(tau: float) -> None:
    g = torch.Generator().manual_seed(15)
    data = torch.nn.functional.interpolate(torch.randn(400, 2, 4, 4, generator=g), size=16, mode="bicubic") + 0.5
    noise = torch.randn(400, 2, 16, 16, generator=g)
    of_data = latent_spectrum(data)[1].mean(0)
    z = latent_spectrum((1 - tau) * noise + tau * data)[1].mean(0)
    np.testing.assert_allclose(z / noised_spectrum(of_data, tau), 1.0, atol=0.25 if tau else 0.1)
    np.testing.assert_allclose(white_part(z, of_data, tau)[8:], 1.0, atol=0.06)
    collapsed = latent_spectrum((1 - tau) * 0.5 * noise + tau * data)[1].mean(0)
    np.testing.assert_allclose(white_part(collapsed, of_data, tau)[8:], 0.25, atol=0.06)


def test_white_part_undoes_the_theory_exactly() -> None:
    power = torch.tensor([10.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(noised_spectrum(power, 0.25), torch.tensor([1.1875, 0.625, 0.5625]).double())
    torch.testing.assert_close(white_part(noised_spectrum(power, 0.25), power, 0.25), torch.ones(3).double())


def test_principal_components_keep_what_two_dimensions_hold() -> None:
    plane = gaussian(40, 2, 16) * np.array([3.0, 1.0])
    z = plane @ np.linalg.qr(gaussian(60, 2, 17))[0].T
    flat = embed(z, method="pca")
    centred = plane - plane.mean(0)
    np.testing.assert_allclose(flat @ flat.T, centred @ centred.T, atol=1e-9)
    np.testing.assert_array_equal(flat, embed(z, method="pca"))


@pytest.mark.slow
def test_umap_is_the_same_twice_and_keeps_clusters_apart() -> None:
    label = np.repeat([0, 1], 30)
    z = gaussian(60, 80, 18) + 20 * label[:, None]
    first = embed(z, seed=3)
    np.testing.assert_array_equal(first, embed(z, seed=3))
    assert first.shape == (60, 2) and np.isfinite(first).all()
    _, index = NearestNeighbors(n_neighbors=2).fit(first).kneighbors(first)
    assert (label[index[:, 1]] == label).all()
    assert not np.array_equal(first, embed(z, seed=4))


def test_tensors_and_their_matrices_are_the_same() -> None:
    z = torch.from_numpy(gaussian(24, 32, 19)).float()
    labels, heads = domains(2, 3, 4)
    image = z.reshape(24, 2, 4, 4)
    assert knn_mixing(image, labels, heads, 3) == knn_mixing(z.double().numpy(), labels, heads, 3)
    assert mmd(image[:12], image[12:]) == mmd(z[:12], z[12:])
    np.testing.assert_array_equal(retrieval(image[:12], image[12:]).rank, retrieval(z[:12], z[12:]).rank)
    assert median_distance(image[:12], image[12:]) == median_distance(z[:12], z[12:])


def test_what_cannot_be_measured_is_refused() -> None:
    z = gaussian(12, 4, 20)
    labels, heads = domains(2, 2, 3)
    with pytest.raises(ParameterError, match="two domains"):
        knn_mixing(z, np.zeros(12), heads, 2)
    with pytest.raises(ParameterError, match="leaves 8"):
        knn_mixing(z, labels, heads, 9)
    with pytest.raises(ParameterError, match="do not fit"):
        knn_mixing(z, labels[:-1], heads, 2)
    with pytest.raises(ParameterError, match="leaves 0"):
        knn_mixing(z, labels, np.zeros(12), 1)
    with pytest.raises(ParameterError, match="NaN"):
        sliced_w2(z, z * np.nan)
    with pytest.raises(ParameterError, match="sizes must agree"):
        mmd(z, z[:, :3])
    with pytest.raises(ParameterError, match="two of each"):
        mmd(z, z[:1])
    with pytest.raises(ParameterError, match="bandwidth"):
        mmd(np.ones((4, 2)), np.ones((4, 2)))
    with pytest.raises(ParameterError, match="same views"):
        retrieval(z, z[:-1])
    with pytest.raises(ParameterError, match="4 x 4"):
        latent_spectrum(torch.zeros(1, 1, 3, 3))
    for wrong in (-0.1, 1.0):
        with pytest.raises(ParameterError, match="tau"):
            white_part(torch.ones(2), torch.ones(2), wrong)
    with pytest.raises(ParameterError, match="tau"):
        noised_spectrum(torch.ones(2), 1.5)
    with pytest.raises(ParameterError, match="embedding"):
        embed(z, method="tsne")
    with pytest.raises(ParameterError, match="four latents"):
        embed(z[:3], method="pca")
    with pytest.raises(ParameterError, match="not empty"):
        embed(np.empty((0, 4)))
