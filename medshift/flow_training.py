"""MedShift as a trainable method, and the trained model read back from a checkpoint.

`FlowMatching` is what `medshift.train.train` drives: images are encoded, and the network regresses the velocity of
the path from noise to their latents (`medshift.flow.flow_matching_loss`). `load_flow` rebuilds network and codec
from a checkpoint alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from medshift import checkpoint
from medshift.codec import KLCodec, PatchCodec, from_description
from medshift.errors import CheckpointError, ParameterError
from medshift.flow import flow_matching_loss
from medshift.network import NetworkConfig, VelocityNetwork

__all__ = ["FlowMatching", "TrainedFlow", "load_flow"]

KIND = "flow-matching"


class FlowMatching:
    """One velocity network for all domains, trained by flow matching on unpaired images.

    Args:
        network: the velocity network; its device is the device of the training.
        codec: images to latents; frozen here. Moved to the device of the network. Where a training runs in bfloat16
            so does a `KLCodec`, channels last, in about a third of the time: its latents, decoded, come within 63 dB of
            PSNR of those of float32 on a small trained one (``tests/test_flow_training.py`` holds it to 45).
        domains: names of the domains in the order of their labels.
        learning_rate: peak rate of AdamW.
        weight_decay: of AdamW.
        sigma_min: what is left of the noise at t = 1.
        label_dropout: probability that a sample is trained under the null label.
        time_law: law of the training times, see `medshift.flow.sample_time`.
        uniform_share: the uniform law's weight in a mixed one.

    Raises:
        ParameterError: network, codec and domains do not fit each other.
    """

    averaged: tuple[str, ...] = ("network",)

    def __init__(
        self,
        network: VelocityNetwork,
        codec: PatchCodec | KLCodec,
        domains: Sequence[str],
        *,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-5,
        sigma_min: float = 0.0,
        label_dropout: float = 0.1,
        time_law: str = "logit-normal-mixed",
        uniform_share: float = 0.5,
    ) -> None:
        if network.config.n_domains != len(domains) or network.config.in_channels != codec.channels:
            raise ParameterError(
                f"The network is made for {network.config.n_domains} domains and {network.config.in_channels} latent "
                f"channels, but there are {len(domains)} domains and the codec has {codec.channels} channels."
            )
        self.network = network
        device = next(network.parameters()).device
        self.codec = codec.to(device).to(memory_format=torch.channels_last).requires_grad_(False).eval()
        self.domains = tuple(domains)
        self.loss_options: dict[str, Any] = {
            "sigma_min": sigma_min,
            "label_dropout": label_dropout,
            "time_law": time_law,
            "uniform_share": uniform_share,
        }
        self.weight_decay = weight_decay
        fused = device.type in ("cpu", "cuda")
        self.optimizer = AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=fused)
        self._codec_fingerprint = codec.fingerprint()

    def modules(self) -> Mapping[str, nn.Module]:
        """The network and the frozen codec."""
        return {"network": self.network, "codec": self.codec}

    def optimizers(self) -> Mapping[str, Optimizer]:
        """One AdamW; it descends the loss of its name, "network"."""
        return {"network": self.optimizer}

    def prepare(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Standardised latents (B, C, h, w) of images (B, 1, H, W), and their labels (B,) int64, where the codec is."""
        images, label = batch
        device = self.codec.mean.device
        with torch.no_grad():  # in the training's own precision, see the class
            return self.codec.encode(images.to(device)), label.to(device)

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The flow-matching loss of a batch as `prepare` makes it: latents (B, C, h, w) and labels (B,) int64.

        Returns:
            {"network": loss ()}, the mean squared error of the velocity of standardised latents.
        """
        latents, label = batch
        loss = flow_matching_loss(
            self.network,
            latents,
            label,
            generator,
            null_label=self.network.null_label,
            **self.loss_options,
        )
        return {"network": loss}

    def state(self) -> dict[str, Any]:
        """JSON values that rebuild network and codec and say how the network was trained."""
        return {
            "kind": KIND,
            "network": {"kind": self.network.kind, **self.network.config.to_dict()},
            "codec": {**self.codec.describe(), "fingerprint": self._codec_fingerprint},
            "domains": list(self.domains),
            "loss": self.loss_options,
            "weight_decay": self.weight_decay,
        }


@dataclass(frozen=True)
class TrainedFlow:
    """A trained model.

    Args:
        network: a velocity, in evaluation mode and without gradients.
        codec: its codec.
        domains: names in the order of labels.
        sigma_min: what is left of the noise at t = 1.
        step: optimiser steps done.
        sha256: of the network's weights.
        state: all that the checkpoint says about the run.
    """

    network: VelocityNetwork
    codec: PatchCodec | KLCodec
    domains: tuple[str, ...]
    sigma_min: float
    step: int
    sha256: str
    state: dict[str, Any]


def load_flow(
    path: Path | str,
    *,
    weights: Literal["ema", "last"] = "ema",
    codec: PatchCodec | KLCodec | None = None,
    device: torch.device | str = "cpu",
) -> TrainedFlow:
    """The trained model of a checkpoint, or of the newest one in a run's folder.

    Args:
        path: the checkpoint's folder, or that of the run.
        weights: "ema" for the moving average, "last" for the weights as the optimiser left them.
        codec: the codec in use, if there is one: it has to be the one that the network was trained with.
        device: where to put network and codec.

    Raises:
        CheckpointError: no checkpoint, a damaged one, one of another method or architecture, or of another codec.
    """
    if weights not in ("ema", "last"):
        raise ParameterError(f"weights is {weights!r}, expected 'ema' or 'last'.")
    stem = "network-ema" if weights == "ema" else "network"
    held = checkpoint.load(path, only=(stem, "codec"))
    method = held.state.get("method", {})
    if method.get("kind") != KIND:
        raise CheckpointError(
            f"{held.path} is a checkpoint of {method.get('kind', 'an unknown method')!r}, not of {KIND!r}; "
            "give the folder of a MedShift training."
        )
    description = {key: value for key, value in method["codec"].items() if key != "fingerprint"}
    own = from_description(description, held.tensors["codec"])
    if codec is not None and codec.fingerprint() != own.fingerprint():
        raise CheckpointError(
            f"{held.path} was trained with another codec ({description}, fingerprint {own.fingerprint()}) than the one "
            f"in use ({codec.describe()}, {codec.fingerprint()}). Use the checkpoint's own codec, or train again."
        )
    tensors = held.tensors[stem]
    if weights == "ema":
        tensors = {name[len("module.") :]: value for name, value in tensors.items() if name.startswith("module.")}
    network = _rebuild(held.path, method["network"], tensors)
    return TrainedFlow(
        network=network.to(device),
        codec=own.to(device),
        domains=tuple(method["domains"]),
        sigma_min=method["loss"]["sigma_min"],
        step=held.step,
        sha256=checkpoint.weights_sha256(tensors),
        state=held.state,
    )


def _rebuild(path: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> VelocityNetwork:
    config = dict(description)
    if (kind := config.pop("kind", None)) != VelocityNetwork.kind:
        raise CheckpointError(f"{path} holds a network {kind!r}; this version knows {VelocityNetwork.kind!r}.")
    try:
        # The weights drawn here are thrown away; the caller's random numbers are not to notice.
        with torch.random.fork_rng(devices=[]):
            network = VelocityNetwork(NetworkConfig.from_dict(config))
        network.load_state_dict(dict(tensors))
    except (ParameterError, RuntimeError) as error:
        raise CheckpointError(
            f"The weights in {path} belong to another architecture than the one it names ({error}); train again."
        ) from error
    return network.requires_grad_(False).eval()
