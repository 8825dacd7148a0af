"""The classifier two-sample test: can a linear classifier tell two sets of images apart on heads it has not seen?

If two sets follow one law, no classifier beats an AUC of one half on new data (Lopez-Paz and Oquab 2017,
https://arxiv.org/abs/1610.06545). The AUC of a finite training set is a lower bound of what the best classifier could
reach and grows with the number of images, so compare AUCs of equal sizes only.

Views of one head are not independent, so heads are held out, never views, and the AUC is taken within each held-out
head and averaged over heads. Scores of different heads are not pooled: they come from different classifiers, and what
makes one head differ from another would count as if it were a difference between the domains.

The classifier is ridge regression on the labels, the direction of Fisher's discriminant with a shrunken covariance. Its
penalty is chosen by heads held out within the training heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.stats import rankdata, t
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor

from medshift.errors import ParameterError
from medshift.metrics.physics import radial_power_spectrum

FEATURES = ("pixels", "texture", "pixels+texture")
# Ridge penalties per training image, where a feature has a variance of one.
PENALTIES = np.logspace(-5, 1, 7)
FOLDS, INNER_FOLDS = 8, 3
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
# Added to a power before its logarithm: noise of 1e-4, far below a step of an 8-bit display, counts as none.
POWER_FLOOR = 1e-8


@dataclass(frozen=True)
class Auc:
    """Mean AUC of held-out heads with its 95 % interval over ``heads`` heads; ``n`` images, both sets together."""

    value: float
    low: float
    high: float
    n: int
    heads: int
    features: str

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def pixel_features(images: Tensor) -> np.ndarray:
    """Sums (N,P) of every channel over blocks with a side of 1, 2, 4, ... pixels, as long as four fit in the image.

    Everything linear in these is linear in the pixels. The wider blocks let a ridge penalty prefer smooth weights,
    because domains mostly differ in tone over large parts of an image: one exposure against another, 1 % darker, is
    told apart with AUC .93 by block sums, .86 by pixels, .65 by 50 principal components and texture (240 + 240
    images of 64 x 64).
    """
    side, factor, blocks = min(images.shape[-2:]), 1, []
    while factor == 1 or side // factor >= 4:
        blocks.append(F.avg_pool2d(images.double(), factor, divisor_override=1).flatten(1))
        factor *= 2
    return torch.cat(blocks, dim=1).numpy()


def texture_features(images: Tensor) -> np.ndarray:
    """Logarithms (N,F) of noise and fine structure, channel by channel, blind to the place where they are.

    The radial power spectrum of the image's central half, for the colour of noise, and the quantiles .1, .25, .5, .75
    and .9 of the variance in windows of 3 x 3 pixels over the whole image, for its level.

    Raises:
        ParameterError: a side is shorter than 8 pixels.
    """
    if min(images.shape[-2:]) < 8:
        raise ParameterError(
            f"Texture needs images of at least 8 x 8 pixels, not {tuple(images.shape[-2:])}; use features='pixels'."
        )
    single = images.double().flatten(0, 1)[:, None]
    _, power = radial_power_spectrum(single)
    mean = F.avg_pool2d(single, 3, stride=1)
    variance = (F.avg_pool2d(single**2, 3, stride=1) - mean**2).clamp(min=0.0).flatten(1)
    quantiles = np.quantile(variance.numpy(), QUANTILES, axis=1).T
    texture = np.concatenate([power.numpy(), quantiles], axis=1)
    return np.log(texture + POWER_FLOOR).reshape(len(images), -1)


def _rotated(x: np.ndarray) -> np.ndarray:
    """Coordinates (N, at most N) of the rows of ``x`` in an orthonormal basis of what they span: all distances kept.

    Only steps that no rotation changes may follow. The coordinates are triangular, so anything done column by column,
    a standardisation for one, would tell each image's row and with it its set.
    """
    x = x - x.mean(axis=0)
    return np.asarray(np.linalg.qr(x.T, mode="r")).T if x.shape[1] > x.shape[0] else x


def _unit_variance(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """``x`` (N,D) centred and divided by one number, so that the mean variance of a column in training is one."""
    centred = x - x[train].mean(axis=0)
    variance = (centred[train] ** 2).mean()
    return centred / np.sqrt(variance) if variance > 0 else centred


def _auc_by_head(second: np.ndarray, scores: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Mann-Whitney AUC (H,K) within each head, ties one half, of scores (N,K); ``second`` marks the second set."""
    rows = []
    for head in np.unique(heads):
        ranks, b = rankdata(scores[heads == head], axis=0), second[heads == head]
        n_b = b.sum()
        rows.append((ranks[b].sum(axis=0) - n_b * (n_b + 1) / 2) / (n_b * (len(b) - n_b)))
    return np.array(rows)


def _predicted(
    x: np.ndarray, second: np.ndarray, weights: np.ndarray, train: np.ndarray, test: np.ndarray, penalties: np.ndarray
) -> np.ndarray:
    """Scores (len(test), K) of ridge regressions on the labels -1 and 1, one for each of K penalties."""
    labels = np.repeat(np.where(second[train], 1.0, -1.0)[:, None], len(penalties), axis=1)
    model = Ridge(alpha=penalties * len(train), solver="cholesky")
    return model.fit(x[train], labels, sample_weight=weights[train]).predict(x[test]).reshape(len(test), -1)


def _penalty(x: np.ndarray, second: np.ndarray, heads: np.ndarray, weights: np.ndarray, train: np.ndarray) -> float:
    """The penalty with the best mean AUC on heads held out within ``train``; of equals the largest."""
    number = len(np.unique(heads[train]))
    if number < 2:
        return float(PENALTIES[len(PENALTIES) // 2])
    found = []
    for inner, held in GroupKFold(min(INNER_FOLDS, number)).split(train, groups=heads[train]):
        scores = _predicted(x, second, weights, train[inner], train[held], PENALTIES)
        found.append(_auc_by_head(second[train[held]], scores, heads[train[held]]))
    mean = np.concatenate(found).mean(axis=0)
    return float(PENALTIES[::-1][np.argmax(mean[::-1])])


def _checked(a: Tensor | np.ndarray, b: Tensor | np.ndarray, features: str) -> bool:
    """Whether the inputs are ready features; refuses what cannot be compared."""
    ready = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    if not ready and not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        raise ParameterError("Both sets must be tensors (N,C,H,W), or both numpy matrices of features (N,D).")
    if a.ndim != (2 if ready else 4) or b.ndim != a.ndim or a.shape[1:] != b.shape[1:]:
        raise ParameterError(
            f"Sets {tuple(a.shape)} and {tuple(b.shape)} cannot be compared; "
            "both must be tensors (N,C,H,W) or numpy matrices (N,D) that differ in N alone."
        )
    if ready == (features in FEATURES):
        raise ParameterError(
            f"Features {features!r} do not fit: of tensors they are {', '.join(FEATURES)}; a ready matrix needs "
            "another name, the name of what made it."
        )
    for x in (a, b):
        if not np.isfinite(np.asarray(x)).all():
            raise ParameterError(
                "A set to compare holds NaN or infinity; a translation diverged, or a file is damaged."
            )
    return ready


def _heads(groups_a: ArrayLike, groups_b: ArrayLike, sizes: tuple[int, int]) -> np.ndarray:
    first, other = np.asarray(groups_a), np.asarray(groups_b)
    if first.shape != sizes[:1] or other.shape != sizes[1:]:
        raise ParameterError(f"Heads {first.shape} and {other.shape} do not fit sets of {sizes[0]} and {sizes[1]}.")
    lone = np.setxor1d(first, other)
    if len(lone):
        raise ParameterError(
            f"Head {lone[0]} is in one of the two sets alone, and a difference between heads would pass for one "
            "between domains; drop its views."
        )
    if len(np.unique(first)) < 2:
        raise ParameterError("The test needs at least two heads, one to learn from and one to be tested on.")
    return np.concatenate([first, other])


def domain_auc(
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    groups_a: ArrayLike,
    groups_b: ArrayLike,
    *,
    features: str = "pixels+texture",
) -> Auc:
    """How well a linear classifier tells ``b`` from ``a`` on heads it has not seen: .5 not at all, 1 without error.

    Up to eight folds of heads. Every head and set has the same weight in training, whatever its number of views, so
    the sets may differ in size. With two heads one is left to learn from, nothing is left to choose a penalty by, and
    the middle of the grid is taken. Values below .5 occur by chance and are reported as they are.

    The interval is Student's over the heads' AUCs, cut at 0 and 1. Folds share training heads, which correlates their
    AUCs, so their variance is multiplied by 1/heads + 1/(heads in training) in place of 1/heads (Nadeau and Bengio
    2003), which doubles it for one head a fold. It has no width where every head has the same AUC, as in saturation.

    Args:
        a: images (N,1,H,W) or latents (N,C,h,w), or ready features (N,D), for example of a network.
        b: the other set, (M,...).
        groups_a: the head of each image of ``a`` (N,).
        groups_b: the head of each image of ``b`` (M,).
        features: of tensors ``pixels`` (`pixel_features`), ``texture`` (`texture_features`) or both; of a ready matrix
            any other name, which is reported.

    Raises:
        ParameterError: shapes, names or heads do not fit, a head is in one set alone, there are fewer than two heads,
            or a value is not finite.
    """
    ready = _checked(a, b, features)
    heads = _heads(groups_a, groups_b, (len(a), len(b)))
    second = np.repeat([False, True], [len(a), len(b)])
    # One weight for each pair of head and set: in training no head goes with one of the labels.
    weights = compute_sample_weight("balanced", np.unique(heads, return_inverse=True)[1] * 2 + second)
    spread, columns = [], []
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        images = torch.cat([a, b]).detach().cpu()
        spread = [_rotated(pixel_features(images))] if "pixels" in features else []
        columns = [texture_features(images)] if "texture" in features else []
    elif ready:
        columns = [np.concatenate([np.asarray(a), np.asarray(b)]).astype(np.float64)]
    folds = min(FOLDS, len(np.unique(heads)))
    found = []
    for train, test in GroupKFold(folds).split(heads, groups=heads):
        blocks = [_unit_variance(x, train) for x in spread]
        blocks += [StandardScaler().fit(x[train]).transform(x) for x in columns]
        x = np.concatenate(blocks, axis=1)
        penalty = np.array([_penalty(x, second, heads, weights, train)])
        scores = _predicted(x, second, weights, train, test, penalty)
        found.append(_auc_by_head(second[test], scores, heads[test])[:, 0])
    values = np.concatenate(found)
    n, mean = len(values), float(values.mean())
    error = values.std(ddof=1) * np.sqrt(1 / n + folds / (n * (folds - 1))) * t.ppf(0.975, n - 1)
    return Auc(mean, float(max(mean - error, 0.0)), float(min(mean + error, 1.0)), len(heads), n, features)
