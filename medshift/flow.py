r"""Flow matching: the time convention, the linear path and the loss.

Everything in this package follows one convention, said here and nowhere else:

* :math:`t = 0` is noise and :math:`t = 1` is data, the paper's :math:`x_1`;
* the path between a noise :math:`\varepsilon \sim N(0, I)` and a datum :math:`x_1` is
  :math:`x_t = (1 - (1 - \sigma_{min}) t) \varepsilon + t x_1`;
* its velocity, which the network regresses, is :math:`v = x_1 - (1 - \sigma_{min}) \varepsilon`.

Integrating the velocity from 1 down to some :math:`\tau` turns an image into :math:`z_\tau`, and from
:math:`\tau` up to 1 turns it back. So :math:`\tau = 1` leaves the latent as it is and :math:`\tau = 0` goes
all the way to noise.

A *velocity* is any callable ``velocity(x, t, label) -> v``: x (B, ...) float; t () or (B,) float in [0, 1];
label (B,) int64, where the class ``n_domains`` is the null label, "no domain said". A network, its moving
average, a guided wrapper and a closed form are all velocities, and nothing downstream asks which.

References:
    Lipman et al., Flow Matching for Generative Modeling, 2022, arXiv:2210.02747 (path: equation 22).
    Esser et al., Scaling Rectified Flow Transformers, 2024, arXiv:2403.03206 (logit-normal times).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from medshift.errors import ParameterError

Batch = Float[Tensor, "b ..."]  # noqa: F722  images, latents or velocities (B, ...)
Time = Float[Tensor, "..."]  # () or (B,), in [0, 1]
Scalar = Float[Tensor, ""]  # noqa: F722
Labels = Int64[Tensor, " b"]  # (B,), in 0..n_domains

Velocity = Callable[[Batch, Time, Labels], Batch]

TIME_LAWS = ("uniform", "logit-normal-mixed", "arcsine")


def interpolate(x1: Batch, noise: Batch, t: Time, sigma_min: float = 0.0) -> Batch:
    """The point :math:`x_t` of the path from `noise` to `x1`.

    Args:
        x1: data (B, ...).
        noise: standard normal, shaped like `x1`.
        t: () or (B,), one time for all or one for each.
        sigma_min: what is left of the noise at t = 1, as a standard deviation.

    Returns:
        :math:`(1 - (1 - \\sigma_{min}) t) \\varepsilon + t x_1`, (B, ...).
    """
    t = t if t.ndim == 0 else t.reshape(-1, *(1,) * (x1.ndim - 1))
    return (1 - (1 - sigma_min) * t) * noise + t * x1


def velocity_target(x1: Batch, noise: Batch, sigma_min: float = 0.0) -> Batch:
    """The path's derivative, :math:`x_1 - (1 - \\sigma_{min}) \\varepsilon`, (B, ...); it has no t in it."""
    return x1 - (1 - sigma_min) * noise


def sample_time(
    n: int,
    generator: torch.Generator,
    law: str = "uniform",
    *,
    uniform_share: float = 0.5,
    mean: float = 0.0,
    std: float = 1.0,
    stratified: bool = True,
) -> Time:
    """Training times, from a law that reaches both ends of [0, 1].

    A logit-normal law alone has hardly any mass near 0 and near 1, and those are the ends that translation
    needs: the fine noise of an image is made at t close to 1, and the domain is decided at small t. So it is
    only offered mixed with the uniform law.

    Args:
        n: how many times to draw.
        generator: source of randomness; the times lie on its device.
        law: "uniform"; "logit-normal-mixed", uniform with probability `uniform_share`, else
            sigmoid(mean + std N(0, 1)); or "arcsine", of density :math:`1 / (\\pi \\sqrt{t (1 - t)})`,
            densest at both ends.
        uniform_share: the mixture's weight of the uniform law, in (0, 1].
        mean: of the logit, for the mixture.
        std: of the logit, for the mixture.
        stratified: draw one quantile from each of n equal strata, in random order. Each time alone has the
            same law as before; together they cover [0, 1] evenly, and the loss varies less from step to step.

    Returns:
        t (n,), float32.

    Raises:
        ParameterError: unknown law, or `uniform_share` outside (0, 1].
    """
    if law not in TIME_LAWS:
        raise ParameterError(f"Unknown law of the training time {law!r}: choose from {', '.join(TIME_LAWS)}.")
    if not 0 < uniform_share <= 1:
        raise ParameterError(f"uniform_share is {uniform_share}, expected a number in (0, 1].")
    device = generator.device
    quantile = torch.rand(n, generator=generator, device=device)
    if stratified:
        strata = torch.randperm(n, generator=generator, device=device)
        quantile = ((strata + quantile) / n).clamp(max=1.0)
    if law == "uniform":
        return quantile
    if law == "arcsine":
        return torch.sin(0.5 * torch.pi * quantile).square()
    uniform = torch.rand(n, generator=generator, device=device) < uniform_share
    return torch.where(uniform, quantile, torch.sigmoid(mean + std * torch.special.ndtri(quantile)))


def drop_labels(label: Labels, generator: torch.Generator, null_label: int, probability: float) -> Labels:
    """A copy of `label` (B,), each entry replaced by the null label with this probability, independently.

    Each sample is drawn on its own, so the null class is trained at any batch size; a fixed share of the
    batch, rounded down, would never train it with small batches.

    Raises:
        ParameterError: `probability` outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ParameterError(f"label_dropout is {probability}, expected a probability in [0, 1].")
    dropped = torch.rand(len(label), generator=generator, device=generator.device) < probability
    return torch.where(dropped.to(label.device), null_label, label)


def flow_matching_loss(
    velocity: Velocity,
    x1: Batch,
    label: Labels,
    generator: torch.Generator,
    *,
    null_label: int,
    sigma_min: float = 0.0,
    label_dropout: float = 0.1,
    time_law: str = "uniform",
    uniform_share: float = 0.5,
) -> Scalar:
    """The flow-matching loss, :math:`E \\| v_\\theta(x_t, t, c) - v \\|^2` with v of `velocity_target`.

    The minimiser is the marginal velocity of each domain and, where labels were dropped, of all domains
    together; classifier-free guidance needs both. All random numbers are drawn on the generator's device,
    then moved.

    Args:
        velocity: the field to train.
        x1: latents (B, ...).
        label: their domains (B,); not changed.
        generator: source of the noise, the times and the dropped labels, in this order.
        null_label: the class that stands for "no domain", `n_domains`.
        sigma_min: what is left of the noise at t = 1; 0 here, 1e-4 in the predecessor's code.
        label_dropout: probability that a sample is trained without its label.
        time_law: see `sample_time`.
        uniform_share: see `sample_time`.

    Returns:
        The mean over samples and components, (), in the dtype of `x1`.

    Raises:
        ParameterError: `sigma_min` outside [0, 1), or see `sample_time` and `drop_labels`.
    """
    if not 0 <= sigma_min < 1:
        raise ParameterError(f"sigma_min is {sigma_min}, expected a number in [0, 1).")
    noise = torch.randn(x1.shape, generator=generator, device=generator.device).to(x1)
    t = sample_time(len(x1), generator, time_law, uniform_share=uniform_share).to(x1)
    label = drop_labels(label, generator, null_label, label_dropout)
    prediction = velocity(interpolate(x1, noise, t, sigma_min), t, label)
    # Under autocast the prediction may be of half precision; the mean of squares should not be.
    return (prediction.to(x1.dtype) - velocity_target(x1, noise, sigma_min)).square().mean()
