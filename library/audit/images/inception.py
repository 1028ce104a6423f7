"""The Inception network of FID and KID (TensorFlow's 2015-12-05 weights), fed the way TensorFlow 1 was."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from library.errors import InputError, shortened
from library.incoming.pickles import read_pickle

SIDE = 299  # pixels that the network expects
LAYERS = {"768": "mean over places of Mixed_6e", "2048": "last mean pool"}
Pool = Callable[[Tensor], Tensor]


class Convolution(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if stride > 1 else (sides[0] // 2, sides[1] // 2)
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, D, h', w']."""
        return torch.relu(self.bn(self.conv(inputs)))


def mean_pool(inputs: Tensor) -> Tensor:
    """3 x 3 mean that leaves the border's missing neighbours out, as TensorFlow does."""
    return functional.avg_pool2d(inputs, 3, stride=1, padding=1, count_include_pad=False)


def max_pool(inputs: Tensor) -> Tensor:
    """3 x 3 maximum at full resolution (only in the last block)."""
    return functional.max_pool2d(inputs, 3, stride=1, padding=1)


def halving_pool(inputs: Tensor) -> Tensor:
    """3 x 3 maximum, every second place."""
    return functional.max_pool2d(inputs, 3, stride=2)


# A branch: names of its convolutions with (outputs, kernel, stride); a name that ends in "a" forks into "a" and "b".
Branch = list[tuple[str, int, int | tuple[int, int], int]]


class Block(nn.Module):
    """Branches beside each other, their outputs joined; the pooled branch comes last."""

    def __init__(self, inputs: int, branches: list[Branch], pool: Pool, pooled: int) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        for branch in branches:
            width = inputs
            for name, outputs, kernel, stride in branch:
                if name.endswith("b"):  # beside the "a" before it, not after it
                    forked = self.get_submodule(name[:-1] + "a")
                    assert isinstance(forked, Convolution)
                    width = forked.conv.in_channels
                self.add_module(name, Convolution(width, outputs, kernel, stride))
                width = outputs
        if pooled:
            self.branch_pool = Convolution(inputs, pooled, 1)
        self.pooled = pooled

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, D, h', w']."""
        joined = []
        for branch in self.branches:
            here, before = inputs, inputs
            for name, *_ in branch:
                if name.endswith("b"):
                    joined.append(here)
                    here = before
                before = here
                here = self.get_submodule(name)(here)
            joined.append(here)
        beside = self.pool(inputs)
        joined.append(self.branch_pool(beside) if self.pooled else beside)
        return torch.cat(joined, dim=1)


def _row(name: str, *steps: tuple[int, int | tuple[int, int]], last_stride: int = 1) -> Branch:
    count = len(steps)
    return [
        (f"{name}_{place + 1}", outputs, kernel, last_stride if place + 1 == count else 1)
        for place, (outputs, kernel) in enumerate(steps)
    ]


def block_a(inputs: int, pooled: int) -> Block:
    """35 x 35 places."""
    branches: list[Branch] = [[("branch1x1", 64, 1, 1)], _row("branch5x5", (48, 1), (64, 5)),
                _row("branch3x3dbl", (64, 1), (96, 3), (96, 3))]  # fmt: skip
    return Block(inputs, branches, mean_pool, pooled)


def block_b(inputs: int) -> Block:
    """35 to 17."""
    branches: list[Branch] = [[("branch3x3", 384, 3, 2)],
                              _row("branch3x3dbl", (64, 1), (96, 3), (96, 3), last_stride=2)]  # fmt: skip
    return Block(inputs, branches, halving_pool, 0)


def block_c(inputs: int, width: int) -> Block:
    """17 x 17 places."""
    wide, tall = (1, 7), (7, 1)
    branches: list[Branch] = [[("branch1x1", 192, 1, 1)], _row("branch7x7", (width, 1), (width, wide), (192, tall)),
                _row("branch7x7dbl", (width, 1), (width, tall), (width, wide), (width, tall), (192, wide))]  # fmt: skip
    return Block(inputs, branches, mean_pool, 192)


def block_d(inputs: int) -> Block:
    """17 to 8."""
    branches: list[Branch] = [_row("branch3x3", (192, 1), (320, 3), last_stride=2),
                _row("branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), last_stride=2)]  # fmt: skip
    return Block(inputs, branches, halving_pool, 0)


def block_e(inputs: int, pool: Pool) -> Block:
    """8 x 8 places; two branches fork at their end."""
    wide, tall = (1, 3), (3, 1)
    branches: list[Branch] = [
        [("branch1x1", 320, 1, 1)],
        [("branch3x3_1", 384, 1, 1), ("branch3x3_2a", 384, wide, 1), ("branch3x3_2b", 384, tall, 1)],
        [("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 1), ("branch3x3dbl_3a", 384, wide, 1),
         ("branch3x3dbl_3b", 384, tall, 1)],
    ]  # fmt: skip
    return Block(inputs, branches, pool, 192)


class Inception(nn.Module):
    """Inception v3 (arXiv 1512.00567) with the weights and module names of the TensorFlow file of 2015-12-05."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Convolution(3, 32, 3, 2), Convolution(32, 32, 3)
        self.Conv2d_2a_3x3.conv.padding = (0, 0)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = Convolution(32, 64, 3), Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Conv2d_4a_3x3.conv.padding = (0, 0)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = block_a(192, 32), block_a(256, 64), block_a(288, 64)
        self.Mixed_6a, self.Mixed_6b = block_b(288), block_c(768, 128)
        self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = block_c(768, 160), block_c(768, 160), block_c(768, 192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = block_d(768), block_e(1280, mean_pool), block_e(2048, max_pool)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Bytes [B, 3, H, W] -> features by layer: "768" [B, 768] and "2048" [B, 2048]."""
        hidden = (resized_like_tensorflow(pixels.float(), SIDE) - 128) / 128
        hidden = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(hidden)))
        hidden = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halving_pool(hidden)))
        hidden = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(halving_pool(hidden))))
        hidden = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(hidden)))))
        last = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(hidden)))
        return {"768": hidden.mean((2, 3)), "2048": last.mean((2, 3))}


def resized_like_tensorflow(pixels: Tensor, side: int) -> Tensor:
    """Bilinear to side x side with corners at i * in / out: TensorFlow 1's rule, which published FIDs rest on."""
    for dim in (2, 3):
        length = pixels.shape[dim]
        places = torch.arange(side, device=pixels.device, dtype=torch.float32) * (length / side)
        low = places.floor().long().clamp(max=length - 1)
        share = (places - low).view([-1 if axis == dim else 1 for axis in range(4)])
        first = pixels.index_select(dim, low)
        pixels = first + share * (pixels.index_select(dim, (low + 1).clamp(max=length - 1)) - first)
    return pixels


def load_inception(file: Path, device: torch.device) -> Inception:
    """Read the weights (tensors only, nothing is unpickled beyond them).

    Raises:
        InputError: a file of another network, with the names that differ.
    """
    state = read_pickle(file, f"inception_weights '{file}'")
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"inception_weights '{file}' is no table of tensors; fetch it again")
    network = Inception()
    wanted = network.state_dict()
    given = {name: value for name, value in dict(state).items() if not name.startswith("fc.")}
    lacking = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    foreign = [name for name in given if name not in wanted]
    other = [name for name in given if name in wanted and given[name].shape != wanted[name].shape]
    if lacking or foreign or other:
        wrong = shortened(lacking + foreign + other, 3)
        raise InputError(
            f"inception_weights '{file}' are not the FID Inception's: {wrong}; give pytorch-fid's "
            "pt_inception-2015-12-05 or torch-fidelity's weights-inception-2015-12-05"
        )
    network.load_state_dict(given, strict=False)
    return network.to(device).eval().requires_grad_(False)
