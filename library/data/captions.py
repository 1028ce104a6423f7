"""What a caption becomes each time it is used."""

import torch


def training_caption(
    caption: str, *, shuffle: bool, keep_tokens: int, separator: str, generator: torch.Generator
) -> str:
    """Shuffle the parts of a caption behind the first ``keep_tokens``; joined with a comma and a space as in kohya."""
    if not shuffle:
        return caption
    parts = [part.strip() for part in caption.split(separator)]
    fixed, moving = parts[:keep_tokens], parts[keep_tokens:]
    order = torch.randperm(len(moving), generator=generator).tolist()
    return ", ".join(fixed + [moving[index] for index in order])
