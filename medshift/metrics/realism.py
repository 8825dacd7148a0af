r"""Distances between two sets of feature vectors: does a set of translations look like the target domain?

Features are matrices (N,D) of one extractor (`medshift.metrics.features`), whose name belongs in the metric's name.

| metric | of | value for equal laws | bias |
|---|---|---|---|
| `fid` | two Gaussians with the sets' means and covariances | 0 | upwards, about as 1/N: equal N, and `fid_bias_note` |
| `kid` | the sets, by a cubic kernel | 0 | none |
| `cmmd` | the sets, by a wide Gaussian kernel on unit vectors | 0 | upwards, as 1/N |
| `density_coverage` | neighbourhoods of real features | 1 and about 0.97 (k=5) | by unequal N |
| `conditional_fid` | laws of y given x, from pairs | 0 | upwards, as `components`/N |

Where the size biases a metric, sets of unequal sizes are refused. Every value needs two more beside it:

    floor     the same metric between two sets of the target domain at the same N, rows from `subsets.disjoint_halves`;
    interval  from `subsets.jackknife_interval`, heads left out in turn. A bootstrap with replacement repeats rows,
              which these metrics take for structure: an FID of 4.4 then gets an interval of 7.8 to 9.1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import svdvals
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from medshift.errors import ParameterError

__all__ = [
    "DensityCoverage",
    "cmmd",
    "conditional_fid",
    "density_coverage",
    "fid",
    "fid_bias_note",
    "kid",
]

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
UNIT_TOLERANCE = 1e-3


class DensityCoverage(NamedTuple):
    """Density (about 1 for equal laws, may exceed it) and coverage (0 to 1)."""

    density: float
    coverage: float


def fid(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two sets (N,D): ‖m_a-m_b‖² + Tr(Σ_a + Σ_b - 2(Σ_aΣ_b)^½) (Heusel et al., 1706.08500).

    The last trace is the sum of the singular values of Σ_a^½Σ_b^½, and so of the product of the centred matrices:
    no root of a singular product is taken, and N may be less than D. The value is then a property of N as well.

    Raises:
        ParameterError: sizes differ, there is one row only, or a feature is not finite.
    """
    a, b = _checked(a, b, equal="FID")
    return _squared(a.mean(0) - b.mean(0)) + _bures(_factor(a), _factor(b))


def fid_bias_note(n: int, d: int) -> str:
    """What to say under an FID of ``n`` images a set and ``d`` features; empty from ten images a feature on."""
    if n <= d:
        return f"{n} images for {d} features: covariances are singular, FID is far above its limit; compare at {n} only"
    if n < 10 * d:
        return f"{n} images for {d} features: FID is biased upwards; compare at {n} images only"
    return ""


def kid(a: np.ndarray, b: np.ndarray) -> float:
    """Kernel distance of two sets (N,D) and (M,D): unbiased MMD², kernel (xᵀy/D + 1)³ (Bińkowski et al., 1801.01401).

    The paper averages this estimator over random subsets; here it is taken once, of all pairs: the same expectation,
    less variance, no randomness. It may be slightly negative.

    Raises:
        ParameterError: a set has one row only, or a feature is not finite.
    """
    a, b = _checked(a, b)
    within = sum(_mean_off_diagonal(polynomial_kernel(x, degree=3, gamma=None, coef0=1.0)) for x in (a, b))
    return float(within - 2.0 * polynomial_kernel(a, b, degree=3, gamma=None, coef0=1.0).mean())


def cmmd(a: np.ndarray, b: np.ndarray) -> float:
    """CMMD of two sets (N,D) of unit vectors: 1000 MMD², Gaussian kernel of σ = 10, V-statistic (2401.09603).

    The name is CMMD for CLIP embeddings alone. Unit vectors are at most 2 apart, far less than σ, so the value is
    nearly 10 ‖m_a-m_b‖²: it compares means.

    Raises:
        ParameterError: rows are not unit vectors, sizes differ, there is one row only, or a feature is not finite.
    """
    a, b = _checked(a, b, equal="CMMD")
    furthest = max(float(np.abs(np.linalg.norm(x, axis=1) - 1.0).max()) for x in (a, b))
    if furthest > UNIT_TOLERANCE:
        raise ParameterError(f"CMMD is of unit vectors, but a row's norm is {furthest:.2g} off 1; divide by the norms.")
    gamma = 1.0 / (2.0 * CMMD_SIGMA**2)
    within = sum(rbf_kernel(x, gamma=gamma).mean() for x in (a, b))
    return float(CMMD_SCALE * (within - 2.0 * rbf_kernel(a, b, gamma=gamma).mean()))


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> DensityCoverage:
    """Density and coverage of ``fake`` (N,D) around ``real`` (N,D) (Naeem et al., 2002.09797).

    Each real row has a ball to its k-th nearest other real row. Density is how many balls a fake row lies in, over k;
    coverage the share of balls with a fake row inside. Two sets of one law have coverage
    1 - Π_{i<k} (N-1-i)/(2N-1-i), 0.97 for k = 5.

    Raises:
        ParameterError: sizes differ, ``k`` is not in 1 to N-1, or a feature is not finite.
    """
    real, fake = _checked(real, fake, equal="Density and coverage")
    if not 1 <= k < len(real):
        raise ParameterError(f"Neighbour {k} of {len(real)} rows does not exist; take k from 1 to {len(real) - 1}.")
    radii = np.partition(pairwise_distances(real), k, axis=1)[:, k]  # place 0 is the row itself
    distances = pairwise_distances(real, fake)
    inside = distances < radii[:, None]
    return DensityCoverage(float(inside.sum(axis=0).mean() / k), float(inside.any(axis=1).mean()))


def conditional_fid(x: np.ndarray, y: np.ndarray, y_hat: np.ndarray, *, components: int = 32) -> float:
    """Conditional Fréchet distance of ŷ|x from y|x, Gaussian, averaged over x (Soloveitchik et al., 2103.11521).

        ‖m_y-m_ŷ‖² + Tr[(Σ_yx-Σ_ŷx) Σ_xx⁺ (Σ_xy-Σ_xŷ)] + Fréchet(Σ_{y|x}, Σ_{ŷ|x}),  Σ_{y|x} = Σ_yy - Σ_yx Σ_xx⁺ Σ_xy

    Σ_xx is near singular for images, and its inverse then follows noise. Σ_xx⁺ is therefore the inverse on the first
    ``components`` principal axes of x: the condition is x's scores on those, and the value depends on their number.
    Directions of x without any spread are left out, as a pseudo-inverse does. Even for ŷ drawn from p(y|x) the middle
    term is about components · Tr(Σ_{y|x} + Σ_{ŷ|x}) / N: compare at one N and one number, with a floor.

    Args:
        x: features (N,D') of the sources.
        y: features (N,D) of their truths, row for row.
        y_hat: features (N,D) of their translations, row for row.
        components: principal axes of x, at least 1 and fewer than N-1 and D'+1.

    Raises:
        ParameterError: rows are not paired, ``components`` is out of range, or a feature is not finite.
    """
    y, y_hat = _checked(y, y_hat, equal="Conditional FID")
    x, _ = _checked(x, x)
    if len(x) != len(y):
        raise ParameterError(f"Conditional FID needs pairs: {len(x)} sources cannot belong to {len(y)} truths.")
    most = min(len(x) - 2, x.shape[1])
    if not 1 <= components <= most:
        raise ParameterError(f"{components} components of {x.shape} features of sources: take from 1 to {most}.")
    if not np.ptp(x, axis=0).any():
        raise ParameterError("All sources have the same features, so there is nothing to condition on; take FID.")
    n = len(x) - 1
    # The covariance of few rows is far larger than they are, and its eigenvectors take minutes where theirs take none.
    axes = PCA(n_components=components, svd_solver="full" if len(x) < x.shape[1] else "covariance_eigh").fit(x)
    variance = axes.explained_variance_
    kept = variance > np.finfo(np.float64).eps * max(x.shape) * variance[0]
    white = axes.transform(x)[:, kept] / np.sqrt(variance[kept])
    slopes, factors = [], []
    for z in (y, y_hat):
        centred = z - z.mean(0)
        slope = white.T @ centred / n  # Σ_xx^{-½} Σ_xz
        slopes.append(slope)
        factors.append(_reduced((centred - white @ slope) / np.sqrt(n)))
    return _squared(y.mean(0) - y_hat.mean(0)) + _squared(slopes[0] - slopes[1]) + _bures(*factors)


def _checked(a: np.ndarray, b: np.ndarray, *, equal: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Both sets in double precision; ``equal`` names the metric that needs equal sizes."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.shape[1]:
        raise ParameterError(f"Features {a.shape} and {b.shape} cannot be compared; they must be (N,D) of one kind.")
    fewest = min(len(a), len(b))
    if fewest < 2:
        raise ParameterError(f"A set of {fewest} images has no spread; a metric of sets needs at least 2, better 2000.")
    if equal and len(a) != len(b):
        raise ParameterError(
            f"{equal} of {len(a)} and {len(b)} images is biased by the unequal sizes; take {fewest} of each."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ParameterError("A feature is NaN or infinite; an image was damaged or its extractor failed.")
    return a, b


def _squared(values: np.ndarray) -> float:
    return float((values**2).sum())


def _reduced(matrix: np.ndarray) -> np.ndarray:
    """A matrix with the same MᵀM and no more rows than columns."""
    return np.asarray(np.linalg.qr(matrix, mode="r")) if matrix.shape[0] > matrix.shape[1] else matrix


def _factor(features: np.ndarray) -> np.ndarray:
    """A matrix M with MᵀM the covariance of the rows."""
    return _reduced((features - features.mean(0)) / np.sqrt(len(features) - 1))


def _bures(a: np.ndarray, b: np.ndarray) -> float:
    """Tr(Σ_a + Σ_b - 2(Σ_aΣ_b)^½) of Σ = MᵀM; rounding below 0 is 0."""
    return max(0.0, _squared(a) + _squared(b) - 2.0 * float(svdvals(a @ b.T).sum()))


def _mean_off_diagonal(kernel: np.ndarray) -> float:
    n = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))
