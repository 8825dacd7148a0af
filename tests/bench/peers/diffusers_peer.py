"""diffusers: its U-Net and its flow-matching scheduler, in the loop of its pipelines: both branches in one batch.

Its scheduler knows the noise's share sigma = 1 - t, and a model that predicts noise minus data.
"""

from __future__ import annotations

import copy

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn import functional as F

from medshift.network import TIME_SCALE, VelocityNetwork
from peers.predecessor import drawn


class Diffusers:
    """Its U-Net is the one inside our network, so the weights need no mapping."""

    name = "diffusers loop"

    def __init__(self, network: VelocityNetwork, *, dtype: torch.dtype | None = None) -> None:
        self.dtype, self.null_label = dtype or torch.float32, network.null_label
        self.module = copy.deepcopy(network.unet)
        if dtype is not None:
            self.name += f", {str(dtype).removeprefix('torch.')} weights, channels-last"
            self.module.to(dtype, memory_format=torch.channels_last)

    @torch.no_grad()
    def leg(self, x: Tensor, label: Tensor, knots: tuple[float, ...], scale: float) -> Tensor:
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=[1 - t for t in knots[:-1]], device=x.device)
        scheduler.sigmas[-1] = 1 - knots[-1]  # it ends at 0 by itself, whatever leg is wanted
        labels = torch.cat([label, torch.full_like(label, self.null_label)])
        for timestep in scheduler.timesteps:
            at = torch.cat([x, x]).to(self.dtype)
            times = TIME_SCALE - timestep.expand(len(at))
            conditional, unconditional = self.module(at, times, class_labels=labels).sample.float().chunk(2)
            noise_minus_data = -(unconditional + scale * (conditional - unconditional))
            x = scheduler.step(noise_minus_data, timestep, x).prev_sample
        return x

    def loss(self, latents: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        noise, t = drawn(latents, generator)
        sigma = (1 - t)[:, None, None, None]
        x = (1 - sigma) * latents + sigma * noise
        return F.mse_loss(self.module(x, TIME_SCALE * t, class_labels=label).sample, latents - noise)
