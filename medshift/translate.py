r"""Translation by inversion: what every method offers, and MedShift itself.

MedShift encodes an image of domain A to its latent, runs the flow of A backward from t = 1 to :math:`\tau`,
and the flow of B forward again:

    z_tau = x - ∫ v(x_t, t, A) dt over [tau, 1],    out = z_tau + ∫ v(x_t, t, B) dt over [tau, 1].

:math:`\tau = 1` has two empty legs and returns decode(encode(x)), by the same code as every other;
:math:`\tau = 0` is the dual bridge through noise. :math:`\tau` is a signal-to-noise ratio: it does not
compare across codecs and resolutions. For one Gaussian each, N(mu_k, s² I), out = x + phi (mu_B - mu_A) with
:math:`\phi = 1 - \tau s / \sqrt{(1-\tau)^2 + \tau^2 s^2}`, where s is the spread of the whole latent along
the shift.

References:
    Su et al., Dual Diffusion Implicit Bridges for Image-to-Image Translation, 2022, arXiv:2203.08382.
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, overload

import torch
from jaxtyping import Float
from torch import Tensor

from medshift.errors import ParameterError
from medshift.flow import Batch, Labels, Velocity
from medshift.guidance import branches, guided
from medshift.ode import DEFAULT_STEPS, integrate, leg_knots, stages, states_at, time_grid

Images = Float[Tensor, "b 1 h w"]  # noqa: F722  about [-1, 1]
Domain: TypeAlias = int | str | Tensor  # label, name, or one label for each image (B,)

# Knobs of the published recipe: `model.translate(images, source, target, tau=0.3, **AS_PUBLISHED)`.
AS_PUBLISHED: Mapping[str, Any] = MappingProxyType({"solver": "euler", "grid": "uniform", "steps": 50})


class Codec(Protocol):
    """Images to standardised latents and back."""

    def encode(self, image: Images) -> Batch:
        """The latents (B, C, h, w) of images (B, 1, H, W)."""

    def decode(self, latent: Batch, size: tuple[int, int] | None = None) -> Images:
        """The images (B, 1, H, W) of latents (B, C, h, w), cropped to `size` = (H, W) if that is given."""


class Translator(Protocol):
    """What every method of the comparison offers.

    Attributes:
        name: as it stands in tables and figures.
        needs_pairs: whether it was trained on pairs of the same view in both domains.
    """

    name: str
    needs_pairs: bool

    def nfe(self, *args: Any, **knobs: Any) -> int:
        """Network evaluations per image with these knobs."""

    def translate(self, images: Images, source: Domain, target: Domain, *args: Any, **knobs: Any) -> Images:
        """Images (B, 1, H, W) of `source` as `target` would show them, same shape."""


class MedShift:
    """Translation between any two domains with one class-conditional velocity.

    `guidance`, `steps`, `solver` and `grid` mean the same in every method: scale of classifier-free guidance,
    1 for the plain conditional field; intervals on the whole of [0, 1], of which a leg runs those above tau;
    one of `medshift.ode.SOLVERS`; one of `medshift.ode.GRIDS`. Nothing records gradients.

    Attributes:
        velocity: the field, in latent space; the null label is `n_domains`.
        codec: images to latents and back.
        n_domains: number of domains.
        domain_names: their names in label order, or None.
    """

    name = "MedShift"
    needs_pairs = False

    def __init__(
        self, velocity: Velocity, codec: Codec, n_domains: int, domain_names: Sequence[str] | None = None
    ) -> None:
        """Keep the parts as they are.

        Raises:
            ParameterError: the names are not `n_domains` different ones.
        """
        if domain_names is not None and len(set(domain_names)) != n_domains:
            raise ParameterError(f"Expected {n_domains} different domain names, got {domain_names}.")
        self.velocity = velocity
        self.codec = codec
        self.n_domains = n_domains
        self.domain_names = None if domain_names is None else tuple(domain_names)

    @overload
    def encode(
        self,
        images: Images,
        source: Domain,
        tau: float,
        *,
        guidance: float = ...,
        steps: int = ...,
        solver: str = ...,
        grid: str = ...,
    ) -> Batch: ...

    @overload
    def encode(
        self,
        images: Images,
        source: Domain,
        tau: Sequence[float],
        *,
        guidance: float = ...,
        steps: int = ...,
        solver: str = ...,
        grid: str = ...,
    ) -> list[Batch]: ...

    @torch.no_grad()
    def encode(
        self,
        images: Images,
        source: Domain,
        tau: float | Sequence[float],
        *,
        guidance: float = 1.0,
        steps: int = DEFAULT_STEPS,
        solver: str = "heun",
        grid: str = "refined",
    ) -> Batch | list[Batch]:
        """The latents z_tau of images.

        Several tau cost one leg down to the lowest of them, plus one interval for each that is not a knot,
        and are bit for bit what separate calls return. An encode leg serves every target, but only at its own
        guidance.

        Args:
            images: (B, 1, H, W), about [-1, 1].
            source: their domain: label, name, or labels (B,).
            tau: where to stop, in [0, 1]; or several. The other knobs: see the class.

        Returns:
            z_tau (B, C, h, w), or a list of one for each tau, in their order.

        Raises:
            ParameterError: any argument out of its range.
        """
        several = isinstance(tau, Iterable)
        taus = [check_tau(value) for value in tau] if isinstance(tau, Iterable) else [check_tau(tau)]
        label = self.labels(source, images)
        field = guided(self.velocity, guidance, self.n_domains)
        knots = time_grid(grid, steps)[::-1]
        states = states_at(field, self.codec.encode(images), label, knots, taus, solver=solver)
        return states if several else states[0]

    @torch.no_grad()
    def decode(
        self,
        z_tau: Batch,
        target: Domain,
        tau: float,
        *,
        size: tuple[int, int] | None = None,
        guidance: float = 1.0,
        steps: int = DEFAULT_STEPS,
        solver: str = "heun",
        grid: str = "refined",
    ) -> Images:
        """Images of `target` from latents at tau, whether inverted or freshly noised.

        Args:
            z_tau: (B, C, h, w).
            target: the domain wanted: label, name, or labels (B,).
            tau: where `z_tau` lies, in [0, 1].
            size: (H, W) to crop the images to. The other knobs: see the class.

        Returns:
            Images (B, 1, H, W), not clamped.

        Raises:
            ParameterError: any argument out of its range.
        """
        knots = leg_knots(check_tau(tau), grid, steps)
        label = self.labels(target, z_tau)
        field = guided(self.velocity, guidance, self.n_domains)
        *_, end = integrate(field, z_tau, label, knots, solver=solver)
        return self.codec.decode(end.x, size=size)

    def translate(
        self,
        images: Images,
        source: Domain,
        target: Domain,
        *,
        tau: float,
        guidance: float | tuple[float, float] = 1.0,
        steps: int = DEFAULT_STEPS,
        solver: str = "heun",
        grid: str = "refined",
    ) -> Images:
        """Images of `source` as `target` would show them.

        Args:
            images: (B, 1, H, W), about [-1, 1].
            source: their domain: label, name, or labels (B,).
            target: the domain wanted, likewise.
            tau: where the two legs meet, in [0, 1].
            guidance: one scale for both legs, or (encode, decode). Only equal scales make A to A the
                identity. The other knobs: see the class.

        Returns:
            Images (B, 1, H, W), cropped to the size of the input and not clamped.

        Raises:
            ParameterError: any argument out of its range.
        """
        scales = _both_legs(guidance)
        self.labels(target, images)  # a wrong target is told before the encode leg, not after it
        z_tau = self.encode(images, source, tau, guidance=scales[0], steps=steps, solver=solver, grid=grid)
        size = (images.shape[-2], images.shape[-1])
        return self.decode(z_tau, target, tau, size=size, guidance=scales[1], steps=steps, solver=solver, grid=grid)

    def nfe(
        self,
        tau: float,
        *,
        guidance: float | tuple[float, float] = 1.0,
        steps: int = DEFAULT_STEPS,
        solver: str = "heun",
        grid: str = "refined",
    ) -> int:
        """Network evaluations per image of `translate`: both legs, a guided step counted twice.

        Raises:
            ParameterError: any argument out of its range, or dopri5, which cannot tell beforehand.
        """
        intervals = len(leg_knots(check_tau(tau), grid, steps)) - 1
        return intervals * stages(solver) * sum(branches(scale) for scale in _both_legs(guidance))

    def labels(self, domain: Domain, batch: Tensor) -> Labels:
        """`domain` as labels (B,), int64, on the device of `batch` (B, ...).

        Raises:
            ParameterError: unknown domain, or labels that are not one integer for each image.
        """
        if isinstance(domain, Tensor):
            if domain.shape != batch.shape[:1] or domain.is_floating_point() or domain.dtype == torch.bool:
                raise ParameterError(
                    f"The domain labels are {domain.dtype} of shape {tuple(domain.shape)}, "
                    f"expected integers of shape ({len(batch)},), one for each image."
                )
            if len(domain) and not (0 <= int(domain.min()) and int(domain.max()) < self.n_domains):
                raise ParameterError(f"Unknown domain in {domain.tolist()}: {self._known()}.")
            return domain.to(batch.device, torch.int64)
        names = self.domain_names or ()
        index = names.index(domain) if isinstance(domain, str) and domain in names else domain
        if not isinstance(index, Integral) or isinstance(index, bool) or not 0 <= index < self.n_domains:
            raise ParameterError(f"Unknown domain {domain!r}: {self._known()}.")
        return torch.full((len(batch),), int(index), dtype=torch.int64, device=batch.device)

    def _known(self) -> str:
        names = "" if self.domain_names is None else f" or one of {', '.join(self.domain_names)}"
        return f"expected a label in 0..{self.n_domains - 1}{names}"


def check_tau(tau: float) -> float:
    """`tau` as a float.

    Raises:
        ParameterError: not a number in [0, 1].
    """
    if not isinstance(tau, Real) or not 0 <= tau <= 1:
        raise ParameterError(f"tau is {tau!r}, expected a number in [0, 1]: 1 keeps the latent as it is, 0 is noise.")
    return float(tau)


def _both_legs(guidance: float | tuple[float, float]) -> tuple[float, float]:
    scales = guidance if isinstance(guidance, (tuple, list)) else (guidance, guidance)
    if len(scales) != 2:
        raise ParameterError(f"guidance is {guidance}, expected one scale or a pair (encode, decode).")
    for scale in scales:
        branches(scale)
    return scales[0], scales[1]
