r"""The energy of a path of mixtures, and its least value with one schedule for all pixels or one a pixel.

CDTSDE mixes target x0 and source y as d_t = Λ_t ⊙ y + (1 - Λ_t) ⊙ x0, Λ from 0 at t = 0 to 1 at t = 1. Its Theorem 1
says that the least energy over pixel-wise Λ lies strictly below that over global ones. The functional of the paper
could not be read. With Δ = y - x0 and a weight w_p(t) > 0 for every pixel p, the one here is

    E[Λ] = ∫ Σ_p w_p |Δ_p|² (dΛ_p/dt)² dt,

    pixel-wise: dΛ_p/dt ∝ 1 / w_p,              E = Σ_p |Δ_p|² / ∫ 1/w_p dt,
    global:     dΛ/dt ∝ 1 / Σ_p w_p |Δ_p|²,     E = 1 / ∫ (Σ_p w_p |Δ_p|²)^-1 dt.

**An instance consistent with Theorem 1 of CDTSDE, not its proof.** By Cauchy and Schwarz the two are equal if and only
if all w_p with Δ_p ≠ 0 are proportional *in time*. The weight that the SDE itself implies, a²/g² (`sde_weight`), is the
same for every pixel, so there heterogeneity of the contrast alone gives nothing. Nor does E say what training on the
data loss learns: the published loss does not contain it.

`time_profiles` measures weights on pairs. The choice is ours: w_p(t) = 1 / (v + Var[d_t,p]), the variance over the data
set at the linear Λ = t, and v a floor. √E is then a speed counted in standard deviations of the mixtures found at
that time, the Fisher-Rao speed of the mean of the diagonal Gaussian fitted to them: a step is cheap where mixtures
spread widely beside it. w_p belongs to the time and is not read again at the Λ_p(t) of another path. That keeps E
quadratic and its optima closed, but E then counts speed and not place: in `two_pixels` the best pixel-wise path leaves
the region where linear mixtures lie, so nothing here shows that it stays nearer to the data.

Numerically w and Λ are linear between the nodes of t. Energies of paths are then exact, and optima are exactly those
of all paths with these nodes, so that the order pixel-wise ≤ global ≤ linear holds on any grid.

References:
    Adaptive Domain Shift in Diffusion Models for Cross-Modality Image Translation (CDTSDE), ICLR 2026,
    arXiv:2601.18623.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medshift.errors import ParameterError

__all__ = [
    "Profiles", "energies", "energy", "family_optimum", "family_path", "global_energy", "global_optimum",
    "heterogeneity", "linear_path", "pixel_energy", "pixel_optimum", "sde_weight", "time_profiles", "two_pixels",
]  # fmt: skip

STEPS, BETA = 1000, (0.00085, 0.012)  # Stable Diffusion's "scaled linear" schedule


def energy(paths: np.ndarray, weights: np.ndarray, contrast: np.ndarray, t: np.ndarray) -> float:
    """E of paths that are linear between the nodes.

    Args:
        paths: Λ at the nodes, (*P, N), or (N,) for all pixels; 0 at the first node and 1 at the last.
        weights: w > 0 at the nodes, (*P, N), or (N,) for all pixels.
        contrast: Δ, (*P).
        t: nodes (N,) from 0 to 1, ascending.

    Raises:
        ParameterError: wrong shapes or ends, weights not positive, nodes not ascending, or no contrast at all.
    """
    w, squared, dt = _world(weights, contrast, t)
    path, known = np.asarray(paths, dtype=float), ((len(dt) + 1,), (*squared.shape, len(dt) + 1))
    if path.shape not in known or not np.allclose(path[..., 0], 0) or not np.allclose(path[..., -1], 1):
        raise ParameterError(
            f"The path has shape {np.shape(paths)}, expected one from 0 to 1 at the {len(dt) + 1} nodes of t, "
            f"alone or for each of the pixels {squared.shape}."
        )
    return float((squared[..., None] * w * np.diff(path) ** 2 / dt).sum())


def linear_path(t: np.ndarray) -> np.ndarray:
    """Λ = t (N,)."""
    return _nodes(t).copy()


def pixel_optimum(weights: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The Λ (*P, N) of least energy when every pixel has its own; it does not depend on the contrast."""
    w, _, dt = _world(weights, np.ones(np.shape(weights)[:-1]), t)
    travelled = np.cumsum(dt / w, axis=-1)
    return np.concatenate([np.zeros((*w.shape[:-1], 1)), travelled / travelled[..., -1:]], axis=-1)


def global_optimum(weights: np.ndarray, contrast: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The Λ (N,) of least energy among those that all pixels share. Arguments as in `energy`."""
    return pixel_optimum(_pooled(weights, contrast, t), t)


def pixel_energy(weights: np.ndarray, contrast: np.ndarray, t: np.ndarray) -> float:
    """E of `pixel_optimum` in closed form. Arguments as in `energy`."""
    w, squared, dt = _world(weights, contrast, t)
    return float((squared / (dt / w).sum(-1)).sum())


def global_energy(weights: np.ndarray, contrast: np.ndarray, t: np.ndarray) -> float:
    """E of `global_optimum` in closed form. Arguments as in `energy`."""
    return pixel_energy(_pooled(weights, contrast, t), np.ones(()), t)


def family_path(g: np.ndarray | float, t: np.ndarray, schedule: np.ndarray | None = None) -> np.ndarray:
    """The paper's Λ = λ [1 + g (1 - λ)], (*P, N), for g (*P) constant in time; λ is `schedule` (N,), else t."""
    base = _nodes(t) if schedule is None else np.asarray(schedule, dtype=float)
    return base * (1 + np.asarray(g, dtype=float)[..., None] * (1 - base))


def family_optimum(
    weights: np.ndarray,
    contrast: np.ndarray,
    t: np.ndarray,
    *,
    g_max: float = 0.9,
    schedule: np.ndarray | None = None,
    shared: bool = False,
) -> np.ndarray:
    """The g of least energy within the paper's family, |g| <= g_max: one a pixel (*P), or one for all, ().

    E is quadratic in a constant g, so that the bounded optimum is its vertex, clipped. In the paper g may change with
    t; this is the family at its plainest. Other arguments as in `energy` and `family_path`.

    Raises:
        ParameterError: as `energy`; fewer than three nodes, g_max outside (0, 1], or a schedule that does not rise
            from 0 to 1.
    """
    w, squared, dt = _world(weights, contrast, t)
    base = _nodes(t) if schedule is None else np.asarray(schedule, dtype=float)
    rises = base.shape == (len(dt) + 1,) and base[0] == 0 and base[-1] == 1 and bool((np.diff(base) >= 0).all())
    inner = rises and bool(((base > 0) & (base < 1)).any())
    if not inner or not 0 < g_max <= 1:
        raise ParameterError(
            f"g_max is {g_max} and the schedule has shape {base.shape}; expected g_max in (0, 1] and a schedule that "
            f"rises from 0 to 1 over the {len(dt) + 1} nodes of t, with one or more of them in between."
        )
    slope, bend = np.diff(base), np.diff(base * (1 - base))
    if shared:
        w = (squared[..., None] * w).reshape(-1, len(dt)).sum(0)
    return np.asarray(np.clip(-(w * slope * bend / dt).sum(-1) / (w * bend**2 / dt).sum(-1), -g_max, g_max))


def energies(weights: np.ndarray, contrast: np.ndarray, t: np.ndarray, *, g_max: float = 0.9) -> dict[str, float]:
    """Energies of Λ = t, of the paper's family (one g; one a pixel) and of the best global and pixel-wise paths."""

    def by_g(shared: bool) -> float:
        g = family_optimum(weights, contrast, t, g_max=g_max, shared=shared)
        return energy(family_path(g, t), weights, contrast, t)

    return {
        "linear": energy(linear_path(t), weights, contrast, t),
        "global, one g": by_g(True),
        "global": global_energy(weights, contrast, t),
        "pixel-wise, one g": by_g(False),
        "pixel-wise": pixel_energy(weights, contrast, t),
    }


def heterogeneity(weights: np.ndarray, contrast: np.ndarray, t: np.ndarray) -> float:
    """1 - E(pixel-wise optimum) / E(global optimum), in [0, 1): 0 if and only if the weights are proportional in time.

    Weights measured on few pairs are never quite proportional, and this is then above 0 by chance. The honest gain is
    the energy of paths fitted on some pairs under weights measured on others.
    """
    return 1 - pixel_energy(weights, contrast, t) / global_energy(weights, contrast, t)


def sde_weight(t: np.ndarray, horizon: int = STEPS // 2) -> np.ndarray:
    """w = a²/g² (N,) of CDTSDE's own SDE, the same for every pixel, on Stable Diffusion's schedule of 1000 steps.

    The term a dΛ/dt ⊙ Δ in the drift, counted in units of the noise g dw, costs (a/g)² |dΛ/dt ⊙ Δ|² a unit of time.
    ln ᾱ is interpolated between steps, g² = -d ln ᾱ/dt.

    Args:
        t: nodes in [0, 1]; 1 is `horizon`, the first time at which only the source is mixed in.
        horizon: steps, 1 to 1000; the paper's code has 500.

    Raises:
        ParameterError: `horizon` out of range or `t` no nodes.
    """
    if not 1 <= horizon <= STEPS:
        raise ParameterError(f"The horizon is {horizon}, expected 1 to {STEPS} steps.")
    at = _nodes(t) * horizon
    lost = -np.log1p(-(np.linspace(BETA[0] ** 0.5, BETA[1] ** 0.5, STEPS) ** 2))
    signal = np.exp(-np.interp(at, np.arange(STEPS + 1), np.concatenate([[0.0], lost.cumsum()])))
    return signal / (horizon * np.interp(at, np.arange(STEPS) + 0.5, lost))


@dataclass(frozen=True)
class Profiles:
    """Weights (*P, N) at the nodes t (N,), and contrasts (*P): the roots of the sums of E|Δ_p|² over a group."""

    weights: np.ndarray
    contrast: np.ndarray
    t: np.ndarray


def time_profiles(
    sources: Tensor, targets: Tensor, groups: Tensor | int | None = None, *, t: np.ndarray, floor: float = 0.01
) -> Profiles:
    """w_p(t) = 1 / (v + Var[d_t,p]) over pairs, for each pixel or each group of pixels.

    Args:
        sources: y (M, *S), images or latents, M >= 2.
        targets: x0 (M, *S), the partners.
        groups: None for each pixel, *P = *S; labels (*S), in whose groups the variance is averaged, *P = (G,)
            in ascending order of the labels; or a number of equally filled bins of the root mean square of Δ_p.
        t: nodes (N,).
        floor: v as a share of the mean variance of both ends over pixels, above 0. It is one v for all pixels, and
            stands for noise that no pair resolves: pixels that never vary get a weight that is large, and constant.

    Raises:
        ParameterError: no pairs of one shape, labels of another, a floor not above 0, or images that do not vary.
    """
    y, x0 = sources.detach().cpu().double(), targets.detach().cpu().double()
    if y.shape != x0.shape or y.ndim < 2 or len(y) < 2:
        raise ParameterError(f"Pairs of shapes {tuple(y.shape)}, {tuple(x0.shape)}; expected one (M, ...), M >= 2.")
    moments = [x0.var(0).numpy(), y.var(0).numpy(), ((y - y.mean(0)) * (x0 - x0.mean(0))).sum(0).numpy() / (len(y) - 1)]
    scale = float(np.mean(moments[:2]))
    if not (floor > 0 and scale > 0 and np.isfinite(scale)):
        raise ParameterError(
            f"The floor is {floor} and the mean variance over pairs {scale}; both have to be above 0. "
            "Give more than copies of one pair, and a floor such as 0.01."
        )
    nodes, squared = _nodes(t), (y - x0).square().mean(0).numpy()
    if groups is not None:
        labels = _labels(groups, squared)
        size = np.bincount(labels)
        moments = [np.bincount(labels, m.ravel()) / size for m in moments]
        squared = np.bincount(labels, squared.ravel())
    return Profiles(1 / (floor * scale + _mixture_variance(moments, nodes)), np.sqrt(squared), nodes)


def two_pixels(
    t: np.ndarray,
    target: tuple[float, float] = (0.9, 0.2),
    source: tuple[float, float] = (0.2, 0.9),
    *,
    distance: float = 3.0,
    floor: float = 0.01,
) -> Profiles:
    """A world of two pixels with independent ends: given standard deviations, Δ = `distance` in both, v = `floor`.

    With the defaults the target is wide in the first pixel and the source in the second, and the best pixel-wise path
    is curved. With one pair twice the weights are proportional, and it stays on the segment.
    """
    moments = [np.square(target), np.square(source), np.zeros(2)]
    return Profiles(1 / (floor + _mixture_variance(moments, _nodes(t))), np.full(2, distance), _nodes(t))


def _mixture_variance(moments: list[np.ndarray], t: np.ndarray) -> np.ndarray:
    """Var[t y + (1-t) x0] (*P, N) from the variances of x0 and y and their covariance, each (*P)."""
    x0, y, both = (np.asarray(moment)[..., None] for moment in moments)
    return (1 - t) ** 2 * x0 + t**2 * y + 2 * t * (1 - t) * both


def _labels(groups: Tensor | int, squared: np.ndarray) -> np.ndarray:
    """Group numbers from 0, none empty, of the raveled pixels."""
    if isinstance(groups, int):
        if not 1 <= groups <= squared.size:
            raise ParameterError(f"{groups} bins for {squared.size} pixels; expected 1 to as many as there are pixels.")
        rank = np.argsort(np.argsort(squared.ravel(), kind="stable"))
        return rank * groups // squared.size
    if tuple(groups.shape) != squared.shape:
        raise ParameterError(f"Labels have shape {tuple(groups.shape)} and pixels {squared.shape}; expected the same.")
    return torch.unique(groups.cpu().ravel(), return_inverse=True)[1].numpy()


def _nodes(t: np.ndarray) -> np.ndarray:
    nodes = np.asarray(t, dtype=float)
    if nodes.ndim != 1 or len(nodes) < 2 or nodes[0] != 0 or nodes[-1] != 1 or not (np.diff(nodes) > 0).all():
        raise ParameterError(f"The nodes t have shape {nodes.shape}; expected two or more, ascending from 0 to 1.")
    return nodes


def _world(weights: np.ndarray, contrast: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of w in each interval (*P, N-1), |Δ|² (*P) and the lengths of the intervals (N-1,)."""
    nodes, w, squared = _nodes(t), np.asarray(weights, dtype=float), np.square(np.asarray(contrast, dtype=float))
    if w.ndim < 1 or w.shape not in ((len(nodes),), (*squared.shape, len(nodes))):
        raise ParameterError(
            f"Weights of shape {w.shape} for contrasts of shape {squared.shape} at {len(nodes)} nodes; "
            f"expected {(*squared.shape, len(nodes))} or {(len(nodes),)}."
        )
    if not ((w > 0).all() and np.isfinite(w).all() and np.isfinite(squared).all() and squared.sum() > 0):
        raise ParameterError("Weights must be positive and finite, contrasts finite and not all 0; mend the input.")
    w = np.broadcast_to(w, (*squared.shape, len(nodes)))
    return (w[..., 1:] + w[..., :-1]) / 2, squared, np.diff(nodes)


def _pooled(weights: np.ndarray, contrast: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Σ_p w_p |Δ_p|² at the nodes (N,)."""
    _, squared, dt = _world(weights, contrast, t)
    w = np.broadcast_to(np.asarray(weights, dtype=float), (*squared.shape, len(dt) + 1))
    return np.asarray((squared[..., None] * w).reshape(-1, len(dt) + 1).sum(0))
