"""The classifier two-sample test against closed forms, scikit-learn and designs in which a leak would show."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import norm
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold

from medshift.errors import ParameterError
from medshift.metrics import two_sample
from medshift.metrics.two_sample import domain_auc, pixel_features, texture_features


def heads(number: int, views: int) -> np.ndarray:
    return np.repeat(np.arange(number), views)


def noise(n: int, seed: int, side: int = 16, blur: float = 0.0) -> torch.Tensor:
    """Images (N,1,side,side) of unit variance, white or blurred."""
    white = np.random.default_rng(seed).normal(size=(n, side, side))
    if blur:
        white = gaussian_filter(white, (0, blur, blur), mode="wrap")
        white /= white.std()
    return torch.from_numpy(white)[:, None].float()


def leaky_auc(x: np.ndarray, labels: np.ndarray) -> float:
    """What a split by view would report."""
    scores = np.empty(len(x))
    for train, test in KFold(8, shuffle=True, random_state=0).split(x):
        scores[test] = RidgeClassifier(1.0).fit(x[train], labels[train]).decision_function(x[test])
    return float(roc_auc_score(labels, scores))


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_two_gaussians_reach_the_auc_of_the_best_linear_classifier(shift: float) -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6)) * np.array([1, 1, 1, 10, 100, 0.1])
    direction = np.array([shift, 0, 0, 0, 0, 0])
    a, b = rng.normal(size=(4000, 6)) @ mixing, (rng.normal(size=(4000, 6)) + direction) @ mixing
    result = domain_auc(a, b, heads(8, 500), heads(8, 500), features="gaussian")
    # Three standard errors of an AUC of two sets of 4000.
    assert result.value == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=0.02)
    assert result.low < result.value < result.high and result.features == "gaussian"
    assert (result.n, result.heads) == (8000, 8)


def test_equal_laws_give_one_half_within_the_interval_about_as_often_as_it_says() -> None:
    rng, values, covered = np.random.default_rng(1), [], 0
    for _ in range(24):
        offset = rng.normal(size=(6, 8))[heads(6, 10)]
        a, b = offset + rng.normal(size=(60, 8)), offset + rng.normal(size=(60, 8))
        result = domain_auc(a, b, heads(6, 10), heads(6, 10), features="gaussian")
        values.append(result.value)
        covered += result.low <= 0.5 <= result.high
    assert np.mean(values) == pytest.approx(0.5, abs=0.035)
    assert covered >= 20


@pytest.mark.parametrize("features", two_sample.FEATURES)
def test_equal_laws_of_images_give_one_half(features: str) -> None:
    # Anything that gave away an image's row would give away its set.
    values = [
        domain_auc(noise(48, 2 * s), noise(48, 2 * s + 1), heads(8, 6), heads(8, 6), features=features).value
        for s in range(6)
    ]
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)


def test_differences_between_heads_do_not_leak() -> None:
    # Every head has a domain difference of its own, of random direction: a classifier that has seen the head knows it,
    # and one that has not knows nothing.
    rng = np.random.default_rng(3)
    number, views, d = 12, 10, 40
    head = heads(number, views)
    own = rng.normal(size=(number, d))
    offset = 10 * rng.normal(size=(number, d))
    a = offset[head] + rng.normal(size=(len(head), d))
    b = (offset + 2 * own)[head] + rng.normal(size=(len(head), d))
    result = domain_auc(a, b, head, head, features="gaussian")
    assert result.low < 0.5 < result.high and abs(result.value - 0.5) < 0.2
    assert leaky_auc(np.concatenate([a, b]), np.repeat([0, 1], len(head))) > 0.9


def test_duplicates_with_both_labels_give_exactly_one_half() -> None:
    # A split by view trains on the duplicate with the wrong label and reports far less than one half.
    a = np.random.default_rng(4).normal(size=(60, 100))
    result = domain_auc(a, a.copy(), heads(6, 10), heads(6, 10), features="gaussian")
    assert result.value == pytest.approx(0.5, abs=1e-9)
    assert result.high - result.low < 1e-9
    assert leaky_auc(np.concatenate([a, a]), np.repeat([0, 1], 60)) < 0.3


def test_heads_that_differ_in_their_share_of_the_sets_teach_nothing() -> None:
    rng = np.random.default_rng(5)
    counts = np.array([2, 18, 2, 18, 2, 18, 2, 18])
    first, other = np.repeat(np.arange(8), counts), np.repeat(np.arange(8), 20 - counts)
    offset = 5 * np.where(np.arange(8) % 2, -1, 1)[:, None] + np.zeros((8, 4))
    # The second set's own difference is opposite to what the heads' shares suggest.
    a = offset[first] + rng.normal(size=(len(first), 4))
    b = offset[other] + rng.normal(size=(len(other), 4)) - 2
    assert domain_auc(a, b, first, other, features="gaussian").value > 0.95


def test_noise_level_and_colour_are_seen_by_texture_and_not_by_pixels() -> None:
    head, a = heads(6, 16), noise(96, 6, side=32)
    for b in (1.1 * noise(96, 7, side=32), noise(96, 8, side=32, blur=0.5)):
        pixels, texture, both = (domain_auc(a, b, head, head, features=f) for f in two_sample.FEATURES)
        assert 0.35 < pixels.value < 0.65
        assert texture.value > 0.95 and both.value > 0.9


def test_a_smooth_change_of_the_mean_is_seen_by_pixels() -> None:
    head, a, b = heads(6, 16), noise(96, 9), noise(96, 10)
    ramp = torch.linspace(-0.3, 0.3, 16)[None, None, :, None]
    assert domain_auc(a, b + ramp, head, head, features="pixels").value > 0.8
    assert domain_auc(a, b + ramp, head, head).value > 0.7


def test_auc_within_heads_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(11)
    head, second = np.repeat([3, 5, 9], 20), rng.random(60) < 0.4
    scores = rng.normal(size=(60, 2)).round(1)
    expected = [[roc_auc_score(second[head == h], scores[head == h, k]) for k in range(2)] for h in (3, 5, 9)]
    np.testing.assert_allclose(two_sample._auc_by_head(second, scores, head), expected, atol=1e-12)


def test_features_are_what_their_names_say() -> None:
    image = noise(3, 12, side=17)
    blocks = pixel_features(image)
    assert blocks.shape == (3, 17 * 17 + 8 * 8 + 4 * 4)
    np.testing.assert_allclose(blocks[:, 0], image[:, 0, 0, 0])
    np.testing.assert_allclose(blocks[:, -1], image[:, 0, 12:16, 12:16].sum((1, 2)), rtol=1e-5)
    # Doubling the contrast adds log 4 to every power and to every variance, a constant added changes nothing.
    shifted = texture_features(2 * image + 0.3) - texture_features(image)
    np.testing.assert_allclose(shifted, np.log(4), atol=1e-3)


def test_rotated_coordinates_keep_distances() -> None:
    x = np.random.default_rng(13).normal(size=(12, 50))
    y = two_sample._rotated(x)
    assert y.shape == (12, 12)
    np.testing.assert_allclose(y @ y.T, (x - x.mean(0)) @ (x - x.mean(0)).T, atol=1e-10)


def test_order_of_views_and_names_of_heads_do_not_matter() -> None:
    rng = np.random.default_rng(14)
    head, a, b = heads(4, 8), noise(32, 15), noise(32, 16) + 0.2
    result, order = domain_auc(a, b, head, head), rng.permutation(32)
    mixed = domain_auc(a[order], b, head[order], head)
    assert mixed.value == pytest.approx(result.value, abs=1e-9)
    assert domain_auc(a, b, 100 - head[::-1], 100 - head[::-1]).n == result.n
    # Exchanging the sets exchanges labels and scores alike.
    assert domain_auc(b, a, head, head).value == pytest.approx(result.value, abs=1e-9)


def test_sizes_may_differ_and_latents_have_channels() -> None:
    rng = np.random.default_rng(17)
    a, b = torch.from_numpy(rng.normal(size=(20, 3, 8, 8))), torch.from_numpy(rng.normal(size=(60, 3, 8, 8)) + 0.5)
    result = domain_auc(a, b, heads(4, 5), heads(4, 15))
    assert result.value > 0.9 and result.n == 80


def test_two_heads_with_one_view_each_are_enough() -> None:
    images = noise(4, 18)
    result = domain_auc(images[:2], images[2:], [0, 1], [0, 1])
    assert 0 <= result.low <= result.value <= result.high <= 1 and result.heads == 2
    # Two heads that disagree say nothing, and the interval ends where an AUC does.
    a, b = np.array([[0.0], [1.0], [0.0], [3.0]]), np.array([[2.0], [3.0], [1.0], [4.0]])
    result = domain_auc(a, b, heads(2, 2), heads(2, 2), features="number")
    assert (result.low, result.value, result.high) == (0.0, 0.875, 1.0)


def test_constant_images_cannot_be_told_apart() -> None:
    flat = torch.ones(8, 1, 16, 16)
    assert domain_auc(flat, flat, heads(4, 2), heads(4, 2)).value == 0.5


def test_separated_sets_are_told_apart_without_error() -> None:
    a = noise(24, 19)
    result = domain_auc(a, a + 20, heads(4, 6), heads(4, 6))
    assert result.value == result.low == result.high == 1.0 and str(result) == "1.00 [1.00, 1.00]"


def test_what_cannot_be_tested_is_refused() -> None:
    a, head = noise(8, 20), heads(4, 2)
    with pytest.raises(ParameterError, match="one of the two sets alone"):
        domain_auc(a, a, head, [0, 0, 1, 1, 2, 2, 7, 7])
    with pytest.raises(ParameterError, match="two heads"):
        domain_auc(a, a, np.zeros(8), np.zeros(8))
    with pytest.raises(ParameterError, match="two heads"):
        domain_auc(a[:1], a[1:2], [0], [0])
    with pytest.raises(ParameterError, match="do not fit sets"):
        domain_auc(a, a, head, head[:-1])
    with pytest.raises(ParameterError, match="NaN"):
        domain_auc(a, a * float("nan"), head, head)
    with pytest.raises(ParameterError, match="differ in N alone"):
        domain_auc(a, a[..., :8], head, head)
    with pytest.raises(ParameterError, match="8 x 8"):
        domain_auc(a[..., :6, :6], a[..., :6, :6], head, head, features="texture")
    with pytest.raises(ParameterError, match="both"):
        domain_auc(a, a.flatten(1).numpy(), head, head)


@pytest.mark.parametrize(("ready", "name"), [(False, "inception"), (True, "pixels")])
def test_names_of_features_say_what_they_are(ready: bool, name: str) -> None:
    x = noise(8, 21)
    x = x.flatten(1).numpy() if ready else x
    with pytest.raises(ParameterError, match="do not fit"):
        domain_auc(x, x, heads(4, 2), heads(4, 2), features=name)
