"""torchcfm: its U-Net, integrated by torchdiffeq as its examples do; guidance in one batch of both branches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medshift.network import TIME_SCALE, VelocityNetwork
from peers.predecessor import drawn, joined, parts


class TorchCFM:
    """Its U-Net with a network's weights.

    Its groups of normalisation are always 32 and are set to the network's after it is made; all widths have to be
    multiples of 32.
    """

    name = "torchcfm + torchdiffeq"

    def __init__(self, network: VelocityNetwork, *, dtype: torch.dtype | None = None) -> None:
        from torchcfm.models.unet.unet import UNetModel

        config = network.config
        self.dtype, self.null_label = dtype, network.null_label
        self.module = UNetModel(
            image_size=32,
            in_channels=config.in_channels,
            model_channels=config.channels[0],
            out_channels=config.in_channels,
            num_res_blocks=config.layers_per_block,
            attention_resolutions=[2**level for level in config.attention_levels],
            channel_mult=[width / config.channels[0] for width in config.channels],
            num_classes=config.n_domains + 1,
            num_head_channels=config.head_channels,
            use_scale_shift_norm=True,
            use_new_attention_order=True,
        )
        for module in self.module.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.num_groups = config.norm_groups
        self.module.to(next(network.parameters()).device)
        take_weights(self.module, network)
        if dtype is not None:
            self.name += f", {str(dtype).removeprefix('torch.')} autocast, channels-last"
            self.module.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def leg(self, x: Tensor, label: Tensor, knots: tuple[float, ...], scale: float) -> Tensor:
        from torchdiffeq import odeint

        labels = torch.cat([label, torch.full_like(label, self.null_label)])

        def field(t: Tensor, at: Tensor) -> Tensor:
            with torch.autocast(at.device.type, self.dtype, enabled=self.dtype is not None):
                both = self.module(TIME_SCALE * t.float(), torch.cat([at, at]), labels).float()
            conditional, unconditional = both.chunk(2)
            return unconditional + scale * (conditional - unconditional)

        return odeint(field, x, torch.tensor(knots, dtype=torch.float64, device=x.device), method="euler")[-1]

    def loss(self, latents: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

        noise, _ = drawn(latents, generator)
        t, x, velocity = ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(noise, latents)
        return F.mse_loss(self.module(TIME_SCALE * t, x, label), velocity)


@torch.no_grad()
def take_weights(unet: torch.nn.Module, network: VelocityNetwork) -> None:
    ours = network.unet
    unet.time_embed[0].load_state_dict(ours.time_embedding.linear_1.state_dict())
    unet.time_embed[2].load_state_dict(ours.time_embedding.linear_2.state_dict())
    unet.label_emb.load_state_dict(ours.class_embedding.state_dict())
    unet.input_blocks[0][0].load_state_dict(ours.conv_in.state_dict())
    unet.out[0].load_state_dict(ours.conv_norm_out.state_dict())
    unet.out[2].load_state_dict(ours.conv_out.state_dict())
    stacks = [*unet.input_blocks[1:], unet.middle_block, *unet.output_blocks]
    for stack, sources in zip(stacks, parts(network), strict=True):
        for layer, source in zip(stack, sources, strict=True):
            if hasattr(source, "norm1"):
                pairs = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj"}
                pairs |= {"out_layers.0": "norm2", "out_layers.3": "conv2"}
                pairs |= {} if source.conv_shortcut is None else {"skip_connection": "conv_shortcut"}
                for theirs, name in pairs.items():
                    layer.get_submodule(theirs).load_state_dict(source.get_submodule(name).state_dict())
            elif hasattr(source, "to_q"):
                layer.norm.load_state_dict(source.group_norm.state_dict())
                layer.qkv.weight.copy_(joined(source, "weight")[..., None])
                layer.qkv.bias.copy_(joined(source, "bias"))
                layer.proj_out.weight.copy_(source.to_out[0].weight[..., None])
                layer.proj_out.bias.copy_(source.to_out[0].bias)
            else:
                (layer.op if hasattr(layer, "op") else layer.conv).load_state_dict(source.state_dict())
