"""What a caption tells a UNet as one tensor, so that stacks repeat and choose its rows: SDXL's second state too."""

from typing import Any

import torch
from torch import Tensor

from library.diffusion.conditioning import Conditioning, pooled_width, uncropped
from library.errors import InputError


def packed(told: Conditioning) -> Tensor:
    """[B, T, D] text states; in a family whose captions have a state of their own [B, T + 1, D] with it as last row.

    Raises:
        InputError: a state of the caption that is wider than those of its tokens, as in no released model.
    """
    if told.pooled is None:
        return told.states
    room = told.states.shape[2] - told.pooled.shape[1]
    if room < 0:
        raise InputError(
            f"this base has states of {told.states.shape[2]} numbers for a token and {told.pooled.shape[1]} for a "
            "caption, and the attack on weights reads bases whose captions' states are no wider"
        )
    return torch.cat([told.states, torch.nn.functional.pad(told.pooled, (0, room))[:, None]], dim=1)


def unpacked(context: Tensor, unet_config: Any, size: tuple[int, int]) -> Conditioning:
    """What ``packed`` made, for a UNet of this config.

    Args:
        context: [B, T, D] or [B, T + 1, D].
        size: (width, height) of the picture in pixels; it counts as uncropped.
    """
    if unet_config.addition_embed_type != "text_time":
        return Conditioning(context)
    framing = uncropped(size).to(context.device).expand(len(context), -1)
    return Conditioning(context[:, :-1], context[:, -1, : pooled_width(unet_config)], framing)
