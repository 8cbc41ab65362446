"""A small convolutional image encoder."""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, gelu, interpolate

from loupe_ext._checks import check_int, check_tensor

PATCH = 4  # pixels on a patch token's side


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position; statistics over space would tie the positions together."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Residual(nn.Module):
    """A 3 x 3 and a 1 x 1 convolution. One 3 x 3 a block keeps the field of view small, so that objects don't bleed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(width), ChannelNorm(width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(gelu(self.norm2(self.conv1(gelu(self.norm1(x))))))


class ConvNeXt(nn.Module):
    """A block that sees far and costs little: a depthwise convolution, then a perceptron per position.

    (Liu et al., "A ConvNet for the 2020s", CVPR 2022, with half the perceptron's width. `kernel` is odd.)
    """

    def __init__(self, width: int, kernel: int = 7) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.widen, self.narrow = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(gelu(self.widen(self.norm(self.depthwise(x)))))


class Context(nn.Module):
    """What lies around each position, added to it: ConvNeXt blocks at half the resolution.

    There they see twice as far for a quarter of the time. `gated`: each position says how much of it, per channel; the
    ground beside a thing is then not taken for the thing.
    """

    def __init__(self, width: int, blocks: int, kernel: int = 7, gated: bool = False) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ConvNeXt(width, kernel) for _ in range(blocks)))
        self.gate = nn.Sequential(ChannelNorm(width), nn.Conv2d(width, width, 1), nn.Sigmoid()) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> the same shape."""
        around = self.blocks(avg_pool2d(x, 2, ceil_mode=True))
        around = interpolate(around, scale_factor=2, mode="bilinear")[..., : x.shape[2], : x.shape[3]]
        return x + (around if self.gate is None else self.gate(x) * around)


class ImageEncoder(nn.Module):
    """Images to one token per patch of 4 x 4 pixels.

    Two 4 x 4 convolutions of stride 2 (an even kernel keeps a token centred on its patch), then residual `blocks`, then
    a gated `Context` of so many blocks, if any, which see three cells of two patches across: what a thing is takes more
    than a patch sees, but a heat map is to end where the thing does.
    """

    def __init__(self, width: int = 64, blocks: int = 1, context: int = 1) -> None:
        super().__init__()
        self.width = width = check_int("width", width, 2, 2**31 - 1)
        blocks, context = check_int("blocks", blocks, 0, 1000), check_int("context", context, 0, 1000)
        self.stem = nn.Sequential(nn.Conv2d(3, width // 2, 4, 2, 1), nn.GELU(), nn.Conv2d(width // 2, width, 4, 2, 1))
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        if context:
            self.blocks.append(Context(width, context, kernel=3, gated=True))
        self.norm = ChannelNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] uint8, H and W multiples of 4 -> [B, H/4, W/4, width]."""
        check_tensor("images", images)
        sides = images.shape[2:]
        if images.dim() != 4 or images.shape[1] != 3 or 0 in sides or sides[0] % PATCH or sides[1] % PATCH:
            raise ValueError(
                f"images: expected shape [B, 3, H, W] with H and W multiples of {PATCH}, got {tuple(images.shape)}"
            )
        if images.dtype != torch.uint8:
            raise TypeError(f"images: expected uint8, got {images.dtype}")
        x = images.to(memory_format=torch.channels_last).float()
        x = x - x.mean((1, 2, 3), keepdim=True)  # a scene's light says nothing about what is in it
        x = x / x.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1)
        return self.norm(self.blocks(self.stem(x))).permute(0, 2, 3, 1)
