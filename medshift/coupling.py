r"""Which source of a batch goes with which target, by exact optimal transport, and the paths between the two.

With features f of n sources and g of n targets the coupling is the permutation of least mean squared distance,

    min over permutations p of   (1/n) Σ_i ‖f_i - g_p(i)‖².

It is the exact plan *of the batch*. It tends to the optimal transport of the two domains only as the batch grows, and
is biased towards their independent coupling for a small one, so whoever reports it has to report n.

Distances between latents themselves are dominated by what makes images differ and means nothing for anatomy: how
bright and how contrasted each is, and the noise. `coupling_features` takes these away: means over a coarse lattice of
cells, which hold the anatomy and hardly any noise, minus their mean for each channel, divided by their norm over all
of them. So no brightness added to an image and no contrast multiplied to it changes a coupling, nor does any change
that moves the features of one whole domain by the same vector, since that alters the cost of every permutation by the
same amount.

The path of a couple (y, x_1) and its velocity, which a network regresses, are

    x_t = (1-t) y + t x_1 + σ √(t(1-t)) ε,    v = x_1 - y + σ (1-2t) / (2 √(t(1-t))) ε.

References:
    Flamary et al., POT: Python Optimal Transport, Journal of Machine Learning Research 22, 2021.
    Tong et al., Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, 2023,
    arXiv:2302.00482.
    Fatras et al., Learning with Minibatch Wasserstein: Asymptotic and Gradient Properties, 2019, arXiv:1910.04091.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medshift.errors import ParameterError
from medshift.flow import Batch, Scalar, Time, Velocity, sample_time

__all__ = ["bridge_loss", "bridge_path", "coupling_features", "minibatch_ot"]

CELLS = 8  # of the lattice along each side; at most as many as the latent has pixels
END = 1e-3  # with σ > 0 no time is nearer to 0 and 1, where the path's derivative is infinite


def coupling_features(latents: Tensor) -> Tensor:
    """Features (B, D) of latents (B, C, h, w) by which they are coupled, of length 1; D = C min(8, h) min(8, w).

    They do not change under latents · gain + offset with a gain above 0 and an offset for each channel, which is what
    contrast and brightness of an image are to a codec that is linear, as `medshift.codec.PatchCodec` is. Without
    structure in an image there is nothing to couple it by: its features are 0.
    """
    cells = min(CELLS, latents.shape[-2]), min(CELLS, latents.shape[-1])
    # In float64: a large brightness leaves little of the structure in the last digits of float32.
    coarse = F.adaptive_avg_pool2d(latents.detach().double(), cells)
    centred = (coarse - coarse.mean((2, 3), keepdim=True)).flatten(1)
    return F.normalize(centred, dim=1).float()


def minibatch_ot(source_features: Tensor, target_features: Tensor) -> Tensor:
    """The target that each source goes with, by the exact optimal plan of the batch under squared distances.

    Args:
        source_features: (B, D).
        target_features: (B, D).

    Returns:
        (B,) int64, a permutation, on the device of `source_features`: source i goes with target ``[i]``.

    Raises:
        ParameterError: no features, different shapes, or features that are not finite.
    """
    import ot

    shapes = tuple(source_features.shape), tuple(target_features.shape)
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or not shapes[0][0]:
        raise ParameterError(
            f"Features of shapes {shapes[0]} and {shapes[1]} have no one-to-one coupling; expected (B, D) twice, "
            "with as many images of either domain."
        )
    source, target = (f.detach().double().cpu() for f in (source_features, target_features))
    if not (source.isfinite().all() and target.isfinite().all()):
        raise ParameterError("The features to couple are not all finite; check the images for NaN.")
    # The exact sums of squares: through a matrix product two equal points can have a distance.
    cost = torch.cdist(source, target, compute_mode="donot_use_mm_for_euclid_dist").square()
    # With equal uniform weights every vertex of the transport polytope is a permutation, and POT returns a vertex.
    plan = torch.from_numpy(ot.emd([], [], cost.numpy()))
    return plan.argmax(1).to(source_features.device)


def bridge_path(y: Batch, x1: Batch, noise: Batch, t: Time, sigma: float = 0.0) -> tuple[Batch, Batch]:
    """x_t and v, both (B, ...), of couples y, x1 (B, ...) with noise ε (B, ...) at times t (B,)."""
    t = t.reshape(-1, *(1,) * (y.ndim - 1))
    x_t, v = (1 - t) * y + t * x1, x1 - y
    if sigma == 0:
        return x_t, v
    root = (t * (1 - t)).sqrt()
    return x_t + sigma * root * noise, v + sigma * (1 - 2 * t) / (2 * root) * noise


def bridge_loss(
    velocity: Velocity,
    y: Batch,
    x1: Batch,
    generator: torch.Generator,
    *,
    sigma: float = 0.0,
    times: int = 1,
    time_law: str = "uniform",
) -> Scalar:
    """The mean squared error of a velocity on the paths of couples, (), in the dtype of `y`.

    Args:
        velocity: the field to train; it is always given the label 0.
        y: latents of the source (B, ...).
        x1: what each is coupled with.
        generator: source of the times and, with sigma above 0, of the noise.
        sigma: of the path.
        times: drawn on each path.
        time_law: see `medshift.flow.sample_time`.
    """
    y, x1 = torch.cat([y] * times), torch.cat([x1] * times)
    t, noise = sample_time(len(y), generator, time_law).to(y), torch.zeros_like(y)
    if sigma:
        t = END + (1 - 2 * END) * t
        noise = torch.randn(y.shape, generator=generator, device=generator.device).to(y)
    x_t, v = bridge_path(y, x1, noise, t, sigma)
    label = torch.zeros(len(y), dtype=torch.int64, device=y.device)
    return (velocity(x_t, t, label).to(y.dtype) - v).square().mean()
