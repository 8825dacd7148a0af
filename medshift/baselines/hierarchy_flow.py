r"""Hierarchy Flow: an invertible network whose way back takes the style of the target.

With E the flow of `medshift.invertible`, E⁻¹ its inverse, and c = S(y) the code that a style encoder gives an
unpaired target image y,

    out = E⁻¹(A_c(E(x))),

where A_c sets mean and standard deviation of every widened channel, in each of the flow's blocks, to those that a
perceptron makes of c. Without A_c the output is x. For features φ_l of a frozen network at its layers l,

    loss = mean (n(φ_4(out)) - n(φ_4(x)))² + w Σ_l aligned(φ_l(out), φ_l(y)),

n being normalisation over the pixels, and the aligned style the squared differences of the channels' means and
standard deviations, without the channels whose means differ most; k = 0.8 of them stay.

What differs from the publication. Its blocks subtract a feature from the first chunk too; here that chunk is the
block's input, or else the inverse would need features kept from the way there, as the released code does. It runs on
the codec's latents, at 1 M parameters and ten times the learning rate. The features are those of ST-VGG-16 instead of
a normalised VGG-19, ReLU 1_1, 2_1, 3_1 and 4_1 alike; each layer's are divided by their mean over the batch, which
stands for that normalisation and keeps the scale of w. Without a style image the running mean of the codes is taken.

References:
    Fan, Chen and Liu, Hierarchy Flow For High-Fidelity Image-to-Image Translation, 2023, arXiv:2308.06909.
    Ghildyal and Liu, Shift-tolerant Perceptual Similarity Metric, 2022, arXiv:2207.13686 (the feature network).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medshift.codec import KLCodec, PatchCodec
from medshift.errors import ParameterError
from medshift.invertible import HierarchicalFlow, StyleEncoder, adaptive_normalisation, channel_statistics
from medshift.pairwise import Pair, Recipe, encoded_halves, method_state, through_codec
from medshift.translate import Domain

__all__ = ["FeatureNetwork", "HierarchyFlow", "HierarchyFlowConfig", "HierarchyFlowTraining"]

STAGES = ("1", "7", "13", "21")  # names of ReLU 1_1, 2_1, 3_1, 4_1 in the package's VGG-16
MIN_SIDE = 10  # pixels; below, the third halving reflects more than there is


@dataclass(frozen=True, kw_only=True)
class HierarchyFlowConfig:
    """Hyper-parameters.

    Args:
        style_weight: w, of the style loss; 0.1 is the publication's, MedShift's table has 0.1, 0.25 and 0.4.
        kept_channels: k, share of the channels with the smallest errors that the style loss looks at.
        chunks: factors by which the blocks widen; published 10 and 4, from 3 channels to 30 and 120.
        averaging: γ of the inverse, see `medshift.invertible`.
        code_channels: length of a style code.
        style_width: channels of the style encoder's first layer, which are doubled twice.
        learning_rate: peak, of Adam; published 1e-4, over hundreds of times as many steps.
    """

    style_weight: float = 0.1
    kept_channels: float = 0.8
    chunks: Sequence[int] = (10, 3)
    averaging: float = 0.5
    code_channels: int = 8
    style_width: int = 64
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.style_weight < 0 or not 0 < self.kept_channels <= 1 or self.learning_rate <= 0:
            raise ParameterError(
                f"style_weight, kept_channels and learning_rate are {self.style_weight}, {self.kept_channels} and "
                f"{self.learning_rate}; expected 0 or more, a share in (0, 1], and a rate above 0."
            )


class FeatureNetwork(nn.Module):
    """ReLU 1_1, 2_1, 3_1 and 4_1 of the Shift-Tolerant VGG-16, frozen; gradients flow to the images.

    The weights come with the package `stlpips_pytorch`.
    """

    def __init__(self) -> None:
        super().__init__()
        from stlpips_pytorch import stlpips

        # The random state is the caller's; weights that are overwritten must not advance it.
        with torch.random.fork_rng(devices=[]):
            metric = stlpips.LPIPS(net="vgg", variant="shift_tolerant", verbose=False)
        slices = (metric.net.slice1, metric.net.slice2, metric.net.slice3, metric.net.slice4)
        layers = dict(layer for part in slices for layer in part.named_children())
        self.scaling = metric.scaling_layer
        self.stages, stage = nn.ModuleList(), nn.Sequential()
        for name, layer in layers.items():
            stage.add_module(name, layer)
            if name in STAGES:
                self.stages.append(stage)
                stage = nn.Sequential()
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features (B,D_l,h_l,w_l), finest first, float32, of images (B,1,H,W) about [-1, 1], 10 pixels or more."""
        if min(images.shape[2:]) < MIN_SIDE:
            raise ParameterError(
                f"Images of {tuple(images.shape[2:])} pixels are too small for the feature network of Hierarchy "
                f"Flow's losses; expected {MIN_SIDE} or more a side."
            )
        x = self.scaling(images.expand(-1, 3, -1, -1)).contiguous(memory_format=torch.channels_last)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x.float())
        return features


_feature_network = cache(FeatureNetwork)  # 59 MB, which only training needs


def content_loss(output: Tensor, source: Tensor) -> Tensor:
    """Mean squared difference () of features (B,D,h,w), each channel normalised over its pixels."""
    ones = torch.ones(output.shape[:2], device=output.device)
    zeros = torch.zeros_like(ones)
    difference = adaptive_normalisation(output, zeros, ones) - adaptive_normalisation(source, zeros, ones)
    return difference.square().mean()


def aligned_style_loss(output: Tensor, style: Tensor, kept: float) -> Tensor:
    """Squared differences () of the means and standard deviations of features (B,D,h,w), mean over B and D.

    In every image the ⌊D kept⌋ channels stay whose means differ least; the others count as 0, and their standard
    deviations with them.
    """
    (mean, std), (wanted_mean, wanted_std) = channel_statistics(output), channel_statistics(style)
    error = (mean - wanted_mean).square()
    order = error.argsort(dim=1)[:, : int(error.shape[1] * kept)]
    both = error + (std - wanted_std).square()
    return both.gather(1, order).sum() / both.numel()


class HierarchyFlow:
    """Flow and style encoder as a `Translator`."""

    name = "Hierarchy Flow"
    needs_pairs = False

    def __init__(self, flow: HierarchicalFlow, encoder: StyleEncoder, codec: PatchCodec | KLCodec, pair: Pair) -> None:
        self.flow, self.encoder, self.codec, self.pair = flow, encoder, codec, pair

    @torch.no_grad()
    def translate(self, images: Tensor, source: Domain, target: Domain, *, style: Tensor | None = None) -> Tensor:
        """Images (B,1,H,W) of `source` as `target` would show them, same shape, not clamped.

        Args:
            images: (B,1,H,W), about [-1, 1].
            source: the domain of the training.
            target: likewise.
            style: images (B,1,H',W') of the target, or one (1,1,H',W') for all, whose style is taken; without, that
                of the mean of the codes of all target images in training.

        Raises:
            ParameterError: other domains, or another number of style images.
        """
        self.pair.check(source, target)
        if style is not None and len(style) not in (1, len(images)):
            raise ParameterError(
                f"{len(style)} style images for {len(images)} images; expected one, or one for each of them."
            )
        code = self.encoder.code[None] if style is None else self.encoder(self.codec.encode(style))
        codes = code.expand(len(images), -1)
        return through_codec(self.codec, images, lambda latent: self.flow.restyled(latent, codes))

    def nfe(self) -> int:
        """Network evaluations per image: one, there and back."""
        return 1


class HierarchyFlowTraining:
    """Flow and style encoder in training, under one Adam.

    The codec is frozen here.
    """

    kind = "hierarchy-flow"
    name = HierarchyFlow.name
    needs_pairs = False
    deviation = (
        "A true inverse, for which the first chunk of each block is its input; on the codec's latents, at 1 M "
        "parameters and ten times the learning rate; ST-VGG-16 features in place of VGG-19's; the mean style code of "
        "the target's training images."
    )
    recipe = Recipe(batch=8, schedule="cosine", warmup=0.0)
    averaged: tuple[str, ...] = ("flow", "encoder")
    kept: tuple[str, ...] = ("flow", "encoder")

    def __init__(
        self, codec: PatchCodec | KLCodec, pair: Pair, config: HierarchyFlowConfig = HierarchyFlowConfig()
    ) -> None:
        self.codec, self.pair, self.config = codec.requires_grad_(False).eval(), pair, config
        device = codec.mean.device
        flow = HierarchicalFlow(codec.channels, config.chunks, config.code_channels, config.averaging)
        self.flow = flow.to(device)
        self.encoder = StyleEncoder(codec.channels, config.style_width, config.code_channels).to(device)
        parameters = [*self.flow.parameters(), *self.encoder.parameters()]
        self.optimizer = Adam(parameters, lr=config.learning_rate)

    def modules(self) -> Mapping[str, nn.Module]:
        """Flow, style encoder and codec; the feature network is frozen and no run's to save."""
        return {"flow": self.flow, "encoder": self.encoder, "codec": self.codec}

    def optimizers(self) -> Mapping[str, Optimizer]:
        """One Adam of flow and style encoder, for the loss "flow"."""
        return {"flow": self.optimizer}

    def step(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a batch whose first entry is images (2B,1,H,W), the source's half first.

        Each source image takes the style of the target image of its place; there is nothing for the generator to draw.

        Returns:
            "flow" () to descend, and its parts "content" and "style" before weighting, detached.
        """
        source, target = encoded_halves(self.codec, batch)
        images = batch[0].float()
        codes = self.encoder(target)
        self.encoder.remember(codes)
        output = self.codec.decode(self.flow.restyled(source, codes), size=(images.shape[-2], images.shape[-1]))
        network = _feature_network().to(images.device)
        with torch.no_grad():
            wanted = network(images)
            scales = [features.mean() + 1e-6 for features in wanted]
        found = [features / scale for features, scale in zip(network(output), scales, strict=True)]
        halves = [(features / scale).chunk(2) for features, scale in zip(wanted, scales, strict=True)]
        content = content_loss(found[-1], halves[-1][0])
        pairs = zip(found, halves, strict=True)
        style = torch.stack([aligned_style_loss(a, b, self.config.kept_channels) for a, (_, b) in pairs]).sum()
        loss = content + self.config.style_weight * style
        return {"flow": loss, "content": content.detach(), "style": style.detach()}

    def state(self) -> dict[str, Any]:
        """JSON values that rebuild the method."""
        return method_state(self, self.codec, dataclasses.asdict(self.config))

    def translator(self) -> HierarchyFlow:
        """The translator that the weights, as they are now, make."""
        return HierarchyFlow(self.flow, self.encoder, self.codec, self.pair)
