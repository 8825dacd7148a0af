"""Do the noised latents z_tau of several domains share one region, and what do they still hold?

`knn_mixing`, `sliced_w2` and `mmd` measure overlap, `retrieval` what is left of the view, `latent_spectrum` and
`white_part` whether inversion has kept the noise it should. `embed` is for the eye alone: distances and densities of a
UMAP plot mean nothing. All take tensors (N,C,h,w), or matrices (N,D), and see a latent as one flat vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import ot
import torch
from numpy.typing import ArrayLike
from scipy.fft import dctn
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import euclidean_distances
from torch import Tensor

from medshift.errors import ParameterError

METHODS = ("pca", "umap")
# UMAP's distances are taken between so many principal components.
COMPONENTS = 50
NEIGHBOURS = 15


@dataclass(frozen=True, eq=False)
class Retrieval:
    """What became of each of N views: the share of its first place that it holds, and its rank, 1 best.

    Attributes:
        first: (N,) 1 where the view itself was found first, 1/m where it shares the place with m - 1 others, else 0.
        rank: (N,) mean rank among views equally near.
    """

    first: np.ndarray
    rank: np.ndarray

    @property
    def top1(self) -> float:
        """The share of views found first."""
        return float(self.first.mean())

    @property
    def median_rank(self) -> float:
        """The median over views."""
        return float(np.median(self.rank))

    @property
    def chance(self) -> float:
        """The share that chance would find first, 1/N."""
        return 1.0 / len(self.first)


def _matrix(z: Tensor | np.ndarray) -> np.ndarray:
    """Rows (N,D) in double precision; refuses anything else and values that are not finite."""
    x = z.detach().cpu().numpy() if isinstance(z, Tensor) else np.asarray(z)
    if x.ndim < 2 or not x.size:
        raise ParameterError(f"Latents must be (N,C,h,w) or (N,D) and not empty, not {x.shape}.")
    x = x.reshape(len(x), -1).astype(np.float64)
    if not np.isfinite(x).all():
        raise ParameterError("Latents hold NaN or infinity; an inversion diverged, or a file is damaged.")
    return x


def _two(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = _matrix(a), _matrix(b)
    if x.shape[1] != y.shape[1]:
        raise ParameterError(f"Latents of {x.shape[1]} and {y.shape[1]} numbers cannot be compared; sizes must agree.")
    return x, y


def knn_mixing(z: Tensor | np.ndarray, labels: ArrayLike, groups: ArrayLike, k: int = 10) -> float:
    """Share of neighbours from other domains, over the share if domains did not matter: 1 mixed, 0 apart.

    Neighbours are the ``k`` nearest latents of *other heads*, for two views of one head resemble each other in any
    domain. The expectation is the share of other domains among all latents of other heads. Equally distant latents
    share the places that are left, so the order of the rows does not matter. Above 1, latents lie nearer to those of
    other domains than chance would place them.

    Args:
        z: latents (N,...) of all domains together.
        labels: the domain of each (N,).
        groups: the head of each (N,).
        k: number of neighbours.

    Raises:
        ParameterError: sizes differ, there is one domain only, or a head leaves fewer than ``k`` latents of others.
    """
    x, domain, head = _matrix(z), np.asarray(labels), np.asarray(groups)
    if domain.shape != (len(x),) or head.shape != (len(x),):
        raise ParameterError(f"Domains {domain.shape} and heads {head.shape} do not fit {len(x)} latents.")
    if len(np.unique(domain)) < 2:
        raise ParameterError("Mixing needs latents of at least two domains.")
    elsewhere, other = head[:, None] != head, domain[:, None] != domain
    left = int(elsewhere.sum(axis=1).min())
    if not 1 <= k <= left:
        raise ParameterError(f"k = {k} neighbours do not fit: a head leaves {left} latents of others; change k.")
    # Centred, so that equal latents are at a distance of exactly zero.
    distance = np.where(elsewhere, euclidean_distances(x - x.mean(axis=0)), np.inf)
    last = np.partition(distance, k - 1, axis=1)[:, k - 1 : k]
    nearer, level = distance < last, distance == last
    share = (k - nearer.sum(axis=1)) / level.sum(axis=1)
    found = ((nearer & other).sum(axis=1) + share * (level & other).sum(axis=1)) / k
    expected = (elsewhere & other).sum(axis=1) / elsewhere.sum(axis=1)
    if not expected.any():
        raise ParameterError(
            "No head differs from another in its domains; mixing needs two domains on different heads."
        )
    return float(found.mean() / expected.mean())


def dealt(heads: ArrayLike, parts: int) -> np.ndarray:
    """The part, 0 to ``parts`` - 1, of each view (N,): every view in one part, each head's views spread over all parts.

    So parts hold different views of the same heads, and what differs between them is no difference between heads. Heads
    take turns in which part comes first, so that few views fill as many parts as they can.

    Raises:
        ParameterError: there are fewer parts than one, or a part stays empty.
    """
    _, head = np.unique(np.asarray(heads), return_inverse=True)
    turn = np.array([(head[:i] == own).sum() for i, own in enumerate(head)], dtype=int)
    if parts < 1 or len(set((turn + head) % parts)) < parts:
        raise ParameterError(
            f"{len(head)} views of {len(set(head))} heads cannot be dealt into {parts} parts; take more."
        )
    return (turn + head) % parts


def sliced_w2(a: Tensor | np.ndarray, b: Tensor | np.ndarray, projections: int = 200, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance: root of the mean of W2² over random directions (Bonneel et al. 2015).

    Units are those of the latents. A shift by delta gives |delta|/√D in root mean square over directions. Two samples
    of one law are apart by more than zero: show the distance of two samples of the target of equal sizes beside it.

    Args:
        a: latents (N,...).
        b: latents (M,...) of the same size.
        projections: number of directions.
        seed: of the directions; equal seeds make distances comparable.
    """
    x, y = _two(a, b)
    if projections < 1:
        raise ParameterError(f"The number of projections must be at least 1, not {projections}.")
    return float(ot.sliced_wasserstein_distance(x, y, n_projections=projections, p=2, seed=seed))


def median_distance(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """The median distance between any two different latents of both sets together, the usual bandwidth of `mmd`."""
    both = np.concatenate(_two(a, b))
    distance = euclidean_distances(both - both.mean(axis=0))
    return float(np.median(distance[np.triu_indices(len(both), 1)]))


def mmd(a: Tensor | np.ndarray, b: Tensor | np.ndarray, bandwidth: float | None = None) -> float:
    """Squared maximum mean discrepancy under exp(-|x-y|²/(2 s²)): the unbiased U-statistic, which may be negative.

    Equation 3 of Gretton et al. (2012). It has mean zero for independent samples of one law. Views are not independent,
    so show the value of two samples of the target beside it. Values compare at equal ``bandwidth`` only.

    Args:
        a: latents (N,...), two at least.
        b: latents (M,...) of the same size, two at least.
        bandwidth: s; None for `median_distance` of these two sets.

    Raises:
        ParameterError: sizes, or a bandwidth that is not positive, as where half of all latents are equal.
    """
    x, y = _two(a, b)
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ParameterError(f"Sets of {n} and {m} latents are too small; an unbiased MMD needs two of each.")
    both = np.concatenate([x, y])
    distance = euclidean_distances(both - both.mean(axis=0))
    s = median_distance(x, y) if bandwidth is None else bandwidth
    if not s > 0:
        raise ParameterError(f"The bandwidth is {s:g} and must be positive; are the latents all equal?")
    kernel = np.exp(-(distance**2) / (2 * s**2))
    np.fill_diagonal(kernel, 0.0)
    within = kernel[:n, :n].sum() / (n * (n - 1)) + kernel[n:, n:].sum() / (m * (m - 1))
    return float(within - 2 * kernel[:n, n:].mean())


def retrieval(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> Retrieval:
    """How often the latent in ``b`` nearest to a view's in ``a`` is of the same view; row i of both is one view.

    Equally near latents share the place: all equal gives a top-1 of 1/N and a median rank of (N+1)/2. Inverted noise
    carries the image, so inverted latents pass this far above chance at any tau; fresh noise is the yardstick.

    Raises:
        ParameterError: the sets are not the same views, or there is one view only.
    """
    x, y = _two(a, b)
    if len(x) != len(y) or len(x) < 2:
        raise ParameterError(f"Retrieval needs the same views, two at least, in both domains, not {len(x)}, {len(y)}.")
    centre = y.mean(axis=0)
    distance = euclidean_distances(x - centre, y - centre)
    own = distance.diagonal()
    first = np.where(own == distance.min(axis=1), 1.0 / (distance == own[:, None]).sum(axis=1), 0.0)
    rank = rankdata(distance, axis=1).diagonal()
    return Retrieval(first, rank)


def latent_spectrum(z: Tensor) -> tuple[Tensor, Tensor]:
    """Radially averaged power of each latent (N,C,h,w) over its whole field, averaged over channels.

    From the orthonormal cosine transform (DCT-II), which needs no window and no period, so the border, where air
    saturates, counts as much as the centre. White noise of variance s² has power s² at every frequency. The mean is
    not taken away: frequency 0 holds it.

    Returns:
        Frequencies (K,) [cycles per latent pixel], from 0 to below one half, and power (N,K) [latent units²].
    """
    if z.ndim != 4 or min(z.shape[-2:]) < 4:
        raise ParameterError(f"A spectrum needs latents (N,C,h,w) of at least 4 x 4, not {tuple(z.shape)}.")
    h, w = z.shape[-2:]
    k = min(h, w)
    flat = _matrix(z).reshape(z.shape)
    power = (dctn(flat, type=2, norm="ortho", axes=(-2, -1)) ** 2).mean(axis=1)
    radius = np.hypot(np.arange(h)[:, None] / h, np.arange(w)[None, :] / w) * k
    ring = np.rint(radius).astype(int)
    mean = np.stack([power[:, ring == i].mean(axis=1) for i in range(k)], axis=1)
    return torch.arange(k) / (2.0 * k), torch.from_numpy(mean)


def noised_spectrum(data_power: Tensor, tau: float) -> Tensor:
    """Power of z_tau in theory, (1-tau)² + tau² P: white noise and data, independent, of x_t = (1-t) eps + t x_1.

    ``data_power`` P is `latent_spectrum` of the domain's latents themselves, averaged over views. An exact inversion
    has this spectrum in the mean over views, as forward noising has. Valid for any shape of ``data_power``.
    """
    if not 0 <= tau <= 1:
        raise ParameterError(f"tau must be between 0 and 1, not {tau}.")
    return (1 - tau) ** 2 + tau**2 * data_power


def white_part(z_power: Tensor, data_power: Tensor, tau: float) -> Tensor:
    """How much of the white noise is there, (P_z - tau² P)/(1-tau)²: 1 as in theory, below 1 where it has collapsed.

    For fresh noise and for an exact inversion it is 1 at every frequency, up to sampling. It can be negative where
    data dominate. ``z_power`` and ``data_power`` are `latent_spectrum` of z_tau and of the data, averaged over views;
    see `noised_spectrum`.

    Raises:
        ParameterError: tau is not in [0, 1); at 1 there is no noise to look for.
    """
    if not 0 <= tau < 1:
        raise ParameterError(f"tau must be at least 0 and below 1, where noise ends, not {tau}.")
    return (z_power - tau**2 * data_power) / (1 - tau) ** 2


def embed(z: Tensor | np.ndarray, seed: int = 0, method: str = "umap") -> np.ndarray:
    """Coordinates (N,2) for a plot: the first two principal components, or UMAP of up to fifty.

    One thread and a fixed seed, so two runs on one machine are equal; UMAP's layout differs between machines and
    versions. UMAP starts from the principal components, with 15 neighbours, fewer where there are fewer latents.

    Args:
        z: latents (N,...) of all domains together, four at least.
        seed: of the randomised decomposition and of UMAP.
        method: ``umap`` or ``pca``.
    """
    x = _matrix(z)
    if method not in METHODS:
        raise ParameterError(f"No embedding is called {method!r}; there are {', '.join(METHODS)}.")
    if min(len(x), x.shape[1] + 2) < 4:
        raise ParameterError(f"An embedding needs four latents of two numbers at least, not {x.shape}.")
    components = PCA(min(COMPONENTS, *x.shape), random_state=seed).fit_transform(x)
    if method == "pca":
        return components[:, :2]
    # Its import and compilation take seconds.
    from umap import UMAP

    umap = UMAP(n_neighbors=min(NEIGHBOURS, len(x) - 1), init="pca", random_state=seed, n_jobs=1)
    return np.asarray(umap.fit_transform(components), dtype=np.float64)
