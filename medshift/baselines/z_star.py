r"""Z-STAR on the same network: style transfer without training, by self-attention to one image of the target.

Content y (an image of the source) and style s (one training image of the target) are inverted with the plain network,
which gives their latents at every knot from t = 1 down to tau. The content then runs back up to t = 1. In the
intervals from t = `since` on, style and content go through the network together, the style's latent being that of its
inversion at the same t, and in the self-attention of the middle and the way up the content's queries attend to both:

    softmax([λ Q_c K_sᵀ, Q_c K_cᵀ] / √d) [V_s; V_c],  λ = 1.2     (`medshift.attention`).

Nothing else carries the style, and the content branch is never told the target's label.

What deviates from the published method:

* Flow matching in place of Stable Diffusion 1.5, with Heun intervals for steps of DDIM.
* Plain inversion without guidance in place of null-text inversion, which mends what guidance of 7.5 breaks. As in the
  released code, a share `keep` of the content's inverted latent is mixed in before each interval.
* Steps 5 to 30 of 30 become times: a / σ at step 5 of theirs is that of t = .169 here, so `since` = 5 / 30.
* Their layers 20 to 30 are the self-attention of the two finest levels of the way up. Ours is all that the middle and
  the way up have; in the smaller networks that is one module in the middle, where it sees few tokens (`tokens`).
* The label is the null label, like their empty prompts; "source" inverts either image under its own domain's label
  and runs the content back under the source's.
* The style is not chosen by a user but a near neighbour in anatomy (`NearestStyles`).

References:
    Deng et al., Z*: Zero-shot Style Transfer via Attention Reweighting, 2024, arXiv:2311.16491.
    Mokady et al., Null-text Inversion for Editing Real Images using Guided Diffusion Models, 2022, arXiv:2211.09794.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from medshift.attention import later_attention, shared_attention
from medshift.errors import ParameterError
from medshift.flow import Labels, Time, Velocity
from medshift.guidance import in_precision
from medshift.network import VelocityNetwork
from medshift.ode import SAME_KNOT, integrate, leg_knots, stages
from medshift.tone import ToneCurves, blurred
from medshift.translate import Domain, check_tau

__all__ = ["FEWEST_STYLES", "FEW_TOKENS", "NearestStyles", "ZStar"]

# One style says little about a method that hangs on it.
FEWEST_STYLES = 5
# Below 8 x 8 tokens the attention hardly tells one place from another; results there should say so.
FEW_TOKENS = 64
STEPS = 30
# The style's latents are known at the knots alone, so a solver may not look between them.
SOLVERS = ("euler", "heun")


class NearestStyles:
    """Training images of the target that are nearest in anatomy, after the unpaired tone curve and a blur.

    Args:
        training: unpaired training images, one tensor (N,1,H,W) a domain, in label order. They must not hold the views
            to translate: a style that is the truth would give it away.
        domains: their names.
        styles: how many are kept for an image.

    Raises:
        ParameterError: a domain has fewer than `styles` images; later, an unknown domain or images of another size.
    """

    def __init__(self, training: Sequence[Tensor], domains: Sequence[str], styles: int) -> None:
        self.curves, self.training, self.styles = ToneCurves(training, domains), list(training), styles
        if styles < FEWEST_STYLES:
            raise ParameterError(f"{styles} style images are too few, expected {FEWEST_STYLES} or more.")
        for name, images in zip(domains, self.training, strict=True):
            if len(images) < styles:
                raise ParameterError(f"{name} has {len(images)} training images, expected at least {styles} as styles.")
        self._blurred: dict[int, Tensor] = {}

    def indices(self, images: Tensor, source: Domain, target: Domain) -> Tensor:
        """Indices (B, styles) into the training images of `target`, the nearest first, for images (B,1,H,W)."""
        b = self.curves.index(target)
        size, known = tuple(images.shape[1:]), tuple(self.training[b].shape[1:])
        if size != known:
            raise ParameterError(f"Images {size} and styles {known} differ in size; render both alike.")
        if b not in self._blurred:
            self._blurred[b] = blurred(self.training[b], 1.0).flatten(1)
        query = blurred(self.curves.apply(images.detach().cpu(), source, target), 1.0).flatten(1)
        return torch.cdist(query, self._blurred[b]).topk(self.styles, dim=1, largest=False).indices

    def __call__(self, images: Tensor, source: Domain, target: Domain, style: int) -> Tensor:
        """The `style`-th nearest (B,1,H,W), counted from 0, like `images` in dtype and device."""
        return self.training[self.curves.index(target)][self.indices(images, source, target)[:, style]].to(images)


def enlarging(n: int, factor: int, like: Tensor) -> Tensor:
    """The matrix U (factor n, n) that interpolates n pixels without loss, by their cosines: UᵀU = factor I."""

    def cosines(size: int) -> Tensor:
        place = (torch.arange(size, dtype=torch.float64) + 0.5) / size
        rows = torch.cos(math.pi * torch.arange(n, dtype=torch.float64)[:, None] * place) * math.sqrt(2 / size)
        rows[0] /= math.sqrt(2)
        return rows

    return (math.sqrt(factor) * cosines(factor * n).T @ cosines(n)).to(like)


class ZStar:
    """Z-STAR with the trained network of a `MedShift`, which is left as it is. The defaults are the released values.

    Args:
        network: the network itself, not a wrapper around it.
        codec: images to latents and back, of known `stride`.
        training, domains: see `NearestStyles`.
        styles: style images of a content, at least `FEWEST_STYLES`.
        content_to_style: λ, by which the content's logits for the tokens of its style are multiplied.
        style_to_content: the same for the style's logits for the content's tokens, as in the released code; None for
            none. It reaches the content only through later modules of the same evaluation: not where there is one.
        since: the first interval with shared attention is the first that begins at or after this time.
        keep: share of the content's inverted latent mixed in before each interval.
        content_label: "null" for the null label in all legs of both branches; "source" for the source's label in both
            legs of the content, and the target's for the style.
        enlarge: how many times as high and wide the images are when the network sees them, for more tokens. They are
            interpolated without loss and brought back by the transpose, so nothing is blurred on the way. A network
            that never saw that size may not find back from its own inversion: hold it against `since` = 1.
        precision: evaluate the network under autocast to it; see `medshift.guidance.in_precision`.

    Raises:
        ParameterError: domains other than the network's, too few training images, a network without attention, or a
            value out of its range.
    """

    name = "Z-STAR"
    needs_pairs = False

    def __init__(
        self,
        network: VelocityNetwork,
        codec: Any,
        training: Sequence[Tensor],
        domains: Sequence[str],
        *,
        styles: int = FEWEST_STYLES,
        content_to_style: float = 1.2,
        style_to_content: float | None = 1.5,
        since: float = 5 / 30,
        keep: float = 0.01,
        content_label: Literal["null", "source"] = "null",
        enlarge: int = 1,
        precision: torch.dtype | None = None,
    ) -> None:
        if len(domains) != network.null_label:
            raise ParameterError(f"{len(domains)} domains do not fit a network for {network.null_label}.")
        if not (0 <= since <= 1 and 0 <= keep <= 1):
            raise ParameterError(f"since is {since} and keep {keep}, expected numbers in [0, 1].")
        if content_label not in ("null", "source"):
            raise ParameterError(f'content_label is {content_label!r}, expected "null" or "source".')
        if enlarge < 1 or enlarge % 1:
            raise ParameterError(f"enlarge is {enlarge!r}, expected a whole number >= 1.")
        later_attention(network.unet)
        self.network, self.codec, self.content_label, self.enlarge = network, codec, content_label, int(enlarge)
        self.weights, self.since, self.keep = (content_to_style, style_to_content), since, keep
        self.styles = NearestStyles(training, domains, styles)
        self._velocity = in_precision(network, precision)

    @torch.no_grad()
    def translate(
        self,
        images: Tensor,
        source: Domain,
        target: Domain,
        *,
        tau: float = 0.0,
        steps: int = STEPS,
        solver: str = "heun",
        grid: str = "refined",
        style: int = 0,
    ) -> Tensor:
        """Images (B,1,H,W) of `source` in the style of a training image of `target`, not clamped.

        Args:
            images: (B,1,H,W), about [-1, 1], of the training images' size.
            source, target: their domain and the one wanted: label or name.
            tau: where the legs meet; 0, as published, inverts to noise.
            steps: intervals on the whole of [0, 1].
            solver, grid: "euler" or "heun", and one of `medshift.ode.GRIDS`.
            style: which of the nearest training images is the style, from 0, the nearest, to `styles` - 1.

        Raises:
            ParameterError: any argument out of its range.
        """
        knots = self._knots(tau, steps, solver, grid)
        if style not in range(self.styles.styles):
            raise ParameterError(f"style is {style!r}, expected a whole number in 0..{self.styles.styles - 1}.")
        styles = self.styles(images, source, target, int(style))
        own = [self.styles.curves.index(domain) for domain in (target, source)]
        told = own if self.content_label == "source" else [self.network.null_label] * 2
        labels = torch.tensor(told, device=images.device).repeat_interleave(len(images))
        rows, columns = (enlarging(n, self.enlarge, images) for n in images.shape[-2:])
        both = self.codec.encode(rows @ torch.cat([styles, images]) @ columns.T)
        walk = integrate(self._velocity, both, labels, knots[::-1], solver=solver)
        inverted = [state.x for state in walk][::-1]
        latent = self._stylised(inverted, labels, knots, solver)
        out = self.codec.decode(latent, size=(len(rows), len(columns)))
        return rows.T @ out @ columns / self.enlarge**2

    def nfe(
        self, tau: float = 0.0, *, steps: int = STEPS, solver: str = "heun", grid: str = "refined", style: int = 0
    ) -> int:
        """Network evaluations per image: two branches down, and up where they share attention; elsewhere one up."""
        knots = self._knots(tau, steps, solver, grid)
        shared = sum(self._shares(t) for t in knots[:-1])
        return stages(solver) * (3 * (len(knots) - 1) + shared)

    def tokens(self, height: int, width: int) -> int:
        """Tokens that attention sees in the middle of the U in images (H,W): report fewer than `FEW_TOKENS`."""
        latent = [math.ceil(side * self.enlarge / self.codec.stride) for side in (height, width)]
        return math.prod(math.ceil(side / self.network.stride) for side in latent)

    def _knots(self, tau: float, steps: int, solver: str, grid: str) -> tuple[float, ...]:
        if solver not in SOLVERS:
            raise ParameterError(f"solver is {solver!r}, expected {' or '.join(SOLVERS)}, which keep to the knots.")
        return leg_knots(check_tau(tau), grid, steps)

    def _shares(self, t: float) -> bool:
        """Whether the interval that begins at `t` has shared attention."""
        return t >= self.since - SAME_KNOT

    def _stylised(self, inverted: list[Tensor], labels: Labels, knots: Sequence[float], solver: str) -> Tensor:
        """The content's latents at t = 1, from `inverted`, latents (2B, C, h, w) of both branches at each knot."""
        style, content = ([state.chunk(2)[half] for state in inverted] for half in (0, 1))
        x, label = content[0], labels.chunk(2)[1]
        for k, ends in enumerate(pairwise(knots)):
            x = torch.lerp(x, content[k], self.keep)
            field: Velocity = self._velocity
            if self._shares(ends[0]):
                field = partial(self._beside, dict(zip(ends, style[k:], strict=False)), labels)
            *_, end = integrate(field, x, label, ends, solver=solver)
            x = end.x
        return x

    def _beside(self, styles: Mapping[float, Tensor], labels: Labels, x: Tensor, time: Time, label: Labels) -> Tensor:
        """The velocity of contents (B, C, h, w) at `time`, beside `styles`, the style's latents by their time."""
        # The solver's time is a knot's, up to single precision.
        style = styles[min(styles, key=lambda knot: abs(knot - float(time)))]
        with shared_attention(self.network.unet, *self.weights):
            return self._velocity(torch.cat([style, x]), time, labels).chunk(2)[1]
