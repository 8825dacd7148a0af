r"""Direct bridges: flow matching straight from source to target, without noise in between, and one reflow of it.

Flow matching takes any two distributions for its ends. With a source latent y, a target latent x_1 and a coupling of
the two the path, σ = 0 by default, is that of `medshift.coupling`,

    x_t = (1-t) y + t x_1 + σ √(t(1-t)) ε,    v = d x_t / dt.

The network regresses v, and translation integrates it from y at t = 0 to t = 1. The exact field carries the source's
law to the target's, whatever the coupling; the coupling decides which image goes where: ``independent``, as the batch
comes (rectified flow), or ``ot``, the exact optimal plan of the batch. Half of ``recipe.batch`` images, 32 by default,
are coupled at a time; more couple better. None of these is a Schrödinger bridge, with or without σ.

A reflow trains a second network on couples (y, bridge(y)) that the first one, frozen, makes. Paths of these cross
less, so the new field is straighter and takes fewer steps. Its marginals are those of the bridge it learned from.

Not as published: the network has 1 M parameters and sees latents; the optimal plan is that of features
(`medshift.coupling.coupling_features`) instead of pixels, which would pair by brightness; several times are drawn on
each path, so that a step costs as many evaluations as it has images.

References:
    Liu et al., Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, 2022,
    arXiv:2209.03003 (independent coupling, reflow).
    Tong et al., Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, 2023,
    arXiv:2302.00482 (coupling by optimal transport; the path with σ).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from medshift.checkpoint import weights_sha256
from medshift.coupling import bridge_loss, coupling_features, minibatch_ot
from medshift.errors import ParameterError
from medshift.fast import fast
from medshift.flow import Velocity
from medshift.network import NetworkConfig, VelocityNetwork
from medshift.ode import DEFAULT_STEPS, integrate, stages, time_grid
from medshift.pairwise import Pair, Recipe, encoded_halves, method_state, through_codec
from medshift.translate import Codec, Domain

__all__ = ["DirectBridge", "DirectBridgeConfig", "DirectBridgeTraining", "ReflowConfig", "ReflowTraining"]

Coupling = Literal["independent", "ot"]
LABELS: Mapping[str, str] = {"independent": "independent coupling", "ot": "OT coupling"}


@dataclass(frozen=True, kw_only=True)
class DirectBridgeConfig:
    """How a direct bridge is built and trained.

    Args:
        coupling: "independent", or "ot" for the optimal plan of each batch.
        sigma: standard deviation of the path's noise is sigma √(t(1-t)); 0 for straight paths.
        times: times drawn on each path.
        time_law: their law, see `medshift.flow.sample_time`.
        channels: width of each level of the network; 1.0 M parameters with four latent channels.
        norm_groups: of its group normalisation.
        head_channels: of its attention heads.
        learning_rate: peak, of AdamW.
        weight_decay: of AdamW.
    """

    coupling: Coupling = "independent"
    sigma: float = 0.0
    times: int = 2
    time_law: str = "uniform"
    channels: tuple[int, ...] = (24, 32, 48, 64)
    norm_groups: int = 8
    head_channels: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        if self.coupling not in LABELS or not self.sigma >= 0 or self.times < 1:
            raise ParameterError(
                f"coupling, sigma and times are {self.coupling!r}, {self.sigma} and {self.times}; expected one of "
                f"{', '.join(LABELS)}, a number at or above 0, and at least 1."
            )


@dataclass(frozen=True, kw_only=True)
class ReflowConfig(DirectBridgeConfig):
    """How a reflow is trained; all that shapes the network, and `coupling`, are as the teacher's.

    Args:
        teacher_steps: Heun intervals in which the teacher makes the couples, two evaluations each.
    """

    learning_rate: float = 5e-4
    teacher_steps: int = 4


class DirectBridge:
    """Translation by one integration from source to target.

    Args:
        velocity: of one domain.
        codec: images to latents and back.
        pair: what it was trained for.
        coupling: of its training, or of its teacher's.
        reflow: whether it was trained on the couples of another bridge.
    """

    needs_pairs = False

    def __init__(
        self, velocity: Velocity, codec: Codec, pair: Pair, *, coupling: Coupling, reflow: bool = False
    ) -> None:
        self.velocity, self.codec, self.pair = velocity, codec, pair
        self.name = bridge_name(coupling, reflow)

    def nfe(self, *, steps: int = DEFAULT_STEPS, solver: str = "heun") -> int:
        """Network evaluations per image: `steps` times the solver's stages, for solvers of fixed steps."""
        return (len(time_grid("uniform", steps)) - 1) * stages(solver)

    @torch.no_grad()
    def translate(
        self, images: Tensor, source: Domain, target: Domain, *, steps: int = DEFAULT_STEPS, solver: str = "heun"
    ) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them, not clamped.

        Args:
            images: (B,1,H,W), about [-1, 1].
            source: the domain that the bridge was trained from, by name or label.
            target: the one that it was trained to.
            steps: equal intervals on [0, 1].
            solver: one of `medshift.ode.SOLVERS`.
        """
        self.pair.check(source, target)
        return through_codec(self.codec, images, lambda latents: cross(self.velocity, latents, steps, solver))


class DirectBridgeTraining:
    """Flow matching from one domain, the first half of each batch, to another; the codec is frozen here."""

    kind = "direct-bridge"
    needs_pairs = False
    deviation = (
        "A network of 1 M parameters on latents; where couples come by optimal transport, 16 at a time and by low-pass "
        "features free of brightness and contrast instead of pixels."
    )
    recipe = Recipe(batch=32)
    averaged: tuple[str, ...] = ("network",)
    kept: tuple[str, ...] = ("network",)
    reflow = False

    def __init__(self, codec: Any, pair: Pair, config: DirectBridgeConfig = DirectBridgeConfig()) -> None:  # noqa: B008
        self.codec, self.pair, self.config = codec.requires_grad_(False).eval(), pair, config
        self.name = bridge_name(config.coupling, self.reflow)
        shape = {name: getattr(config, name) for name in ("channels", "norm_groups", "head_channels")}
        self.network = VelocityNetwork(NetworkConfig(n_domains=1, in_channels=codec.channels, **shape))
        rate, decay = config.learning_rate, config.weight_decay
        self.optimizer = AdamW(self.network.parameters(), lr=rate, weight_decay=decay, fused=True)

    def modules(self) -> Mapping[str, nn.Module]:
        """The network and the frozen codec."""
        return {"network": self.network, "codec": self.codec}

    def optimizers(self) -> Mapping[str, Optimizer]:
        """One AdamW; it descends the loss of its name, "network"."""
        return {"network": self.optimizer}

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Of images (2B,1,H,W) the loss, ``network``, and the mean squared difference within a couple, ``cost``."""
        source, target = self.couples(batch)
        options = {name: getattr(self.config, name) for name in ("sigma", "times", "time_law")}
        loss = bridge_loss(self.network, source, target, generator, **options)
        return {"network": loss, "cost": (target - source).square().mean()}

    def couples(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Latents (B,C,h,w) of the sources of a batch and of what each is coupled with."""
        source, target = encoded_halves(self.codec, batch)
        if self.config.coupling == "independent":
            return source, target
        return source, target[minibatch_ot(coupling_features(source), coupling_features(target))]

    def state(self) -> dict[str, Any]:
        """JSON values that say what this is."""
        return method_state(self, self.codec, dataclasses.asdict(self.config))

    def translator(self) -> DirectBridge:
        """The bridge of the network as it is now, evaluated as MedShift's own is (`medshift.fast`)."""
        velocity = fast(self.network)
        return DirectBridge(velocity, self.codec, self.pair, coupling=self.config.coupling, reflow=self.reflow)


class ReflowTraining(DirectBridgeTraining):
    """A second bridge on the couples that a first one makes; it starts from the first one's weights.

    Args:
        codec: images to latents, the teacher's, as is the pair; frozen here.
        pair: what it is for.
        config: see there.
        teacher: the trained network of a `DirectBridge`, copied. Without one there is no step: that only serves to
            make a translator of weights which are then loaded.

    Raises:
        ParameterError: the teacher has another shape than the configuration says.
    """

    kind = "direct-bridge-reflow"
    deviation = (
        "The teacher makes each couple within the step, by few Heun steps, so none is seen twice; only the source's "
        "half of a batch is used; what the teacher has seen comes on top."
    )
    reflow = True
    config: ReflowConfig

    def __init__(
        self,
        codec: Any,
        pair: Pair,
        config: ReflowConfig = ReflowConfig(),  # noqa: B008
        teacher: VelocityNetwork | None = None,
    ) -> None:
        super().__init__(codec, pair, config)
        self.teacher = None
        if teacher is not None:
            if teacher.config != self.network.config:
                raise ParameterError(
                    f"The teacher is {teacher.config} and the reflow would be {self.network.config}; give the reflow "
                    "the channels, norm_groups and head_channels of its teacher."
                )
            self.network.load_state_dict(teacher.state_dict())
            self.teacher = copy.deepcopy(self.network).requires_grad_(False).eval()

    def modules(self) -> Mapping[str, nn.Module]:
        """The network, the frozen codec, and the frozen teacher if there is one."""
        return super().modules() if self.teacher is None else {**super().modules(), "teacher": self.teacher}

    def couples(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Latents (B,C,h,w) of the sources of a batch and of what the teacher makes of each."""
        if self.teacher is None:
            raise ParameterError("A reflow learns the couples of a trained direct bridge; give its network as teacher.")
        source, _ = encoded_halves(self.codec, batch)
        with torch.no_grad():
            return source, cross(self.teacher, source, self.config.teacher_steps, "heun")

    def state(self) -> dict[str, Any]:
        """JSON values that say what this is and, by the hash of its weights, whose couples it learns."""
        return {**super().state(), "teacher": self.teacher and weights_sha256(self.teacher.state_dict())}


def bridge_name(coupling: Coupling, reflow: bool) -> str:
    """The name of a bridge in tables and figures."""
    return f"direct bridge, {LABELS[coupling]}" + (", reflow" if reflow else "")


def cross(velocity: Velocity, latents: Tensor, steps: int, solver: str) -> Tensor:
    """The end of the path that starts at latents (B,C,h,w), over `steps` equal intervals."""
    label = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    *_, end = integrate(velocity, latents, label, time_grid("uniform", steps), solver=solver)
    return end.x
