r"""Self-attention across the two halves of a batch: the first holds styles, the second contents.

Inside `shared_attention` the queries Q of one half also attend to the keys K and values V of the other half, row by
row of the batch, in one softmax over both sets of tokens:

    softmax([λ Q_c K_sᵀ, Q_c K_cᵀ] / √d) [V_s; V_c]     for the content c,
    softmax([μ Q_s K_cᵀ, Q_s K_sᵀ] / √d) [V_c; V_s]     for its style s.

λ and μ multiply logits; `None` leaves a half's attention as it is. Logits are linear in the keys, so the other half's
keys are scaled and the kernel of the network serves as before. Nothing is trained and no weight is touched: the
modules get another processor for as long as the context is open, and theirs back when it closes.

References:
    Deng et al., Z*: Zero-shot Style Transfer via Attention Reweighting, 2024, arXiv:2311.16491.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medshift.errors import ParameterError

__all__ = ["SharedAttention", "later_attention", "shared_attention"]


class SharedAttention:
    """Computes what a diffusers `Attention` of a `UNet2DModel` computes, with keys of the other half beside its own.

    Args:
        content_to_style: λ, by which a content's logits for the tokens of its style are multiplied; None for none.
        style_to_content: μ, the same for a style's logits for the tokens of its content; None for none.
    """

    def __init__(self, content_to_style: float | None, style_to_content: float | None) -> None:
        self.content_to_style = content_to_style
        self.style_to_content = style_to_content

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """The module's output for `hidden_states` (2B, C, h, w), shaped like it.

        `temb`, the embedding of the time, is handed over by the middle of the U and is not needed.

        Raises:
            ParameterError: the batch has no two halves, or keys or a mask come from outside.
        """
        if len(hidden_states) % 2:
            raise ParameterError(f"A batch of {len(hidden_states)} has no two halves, styles and contents.")
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ParameterError("Only self-attention without a mask can be shared, but keys or a mask were given.")
        tokens = hidden_states.flatten(2)
        if attn.group_norm is not None:
            tokens = attn.group_norm(tokens)
        tokens = tokens.transpose(1, 2)
        heads = [
            layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in (attn.to_q, attn.to_k, attn.to_v)
        ]
        (q_s, q_c), (k_s, k_c), (v_s, v_c) = (part.chunk(2) for part in heads)
        attended = torch.cat(
            [
                _attend(q_s, k_s, v_s, k_c, v_c, self.style_to_content),
                _attend(q_c, k_c, v_c, k_s, v_s, self.content_to_style),
            ]
        )
        out = attended.transpose(1, 2).flatten(2)
        for layer in attn.to_out:
            out = layer(out)
        out = out.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


def _attend(q: Tensor, k: Tensor, v: Tensor, other_k: Tensor, other_v: Tensor, weight: float | None) -> Tensor:
    """Attention of q (B, heads, tokens, d) to its own tokens and, unless `weight` is None, to the other half's."""
    if weight is not None:
        k, v = torch.cat([weight * other_k, k], dim=2), torch.cat([other_v, v], dim=2)
    return F.scaled_dot_product_attention(q, k, v)


def later_attention(unet: nn.Module) -> dict[str, Any]:
    """The self-attention modules of the middle and of the way up of a U-Net, by name, in the order they run in.

    Raises:
        ParameterError: there are none.
    """
    needed = ("to_q", "to_k", "to_v", "processor", "set_processor")
    found = {
        name: module
        for part in ("mid_block", "up_blocks")
        for name, module in unet.named_modules()
        if name.startswith(part) and all(hasattr(module, attribute) for attribute in needed)
    }
    if not found:
        raise ParameterError(f"This {type(unet).__name__} has no self-attention in its middle or on its way up.")
    return found


@contextmanager
def shared_attention(
    unet: nn.Module, content_to_style: float | None, style_to_content: float | None = None
) -> Iterator[None]:
    """Let contents (second half of a batch) and styles (first half) attend to each other; see the module's equations.

    Args:
        unet: whose `later_attention` is meant. It is as before when the context closes, also by an exception.
        content_to_style: λ, or None.
        style_to_content: μ, or None.
    """
    modules = later_attention(unet).values()
    before = [module.processor for module in modules]
    try:
        for module in modules:
            module.set_processor(SharedAttention(content_to_style, style_to_content))
        yield
    finally:
        for module, processor in zip(modules, before, strict=True):
            module.set_processor(processor)
