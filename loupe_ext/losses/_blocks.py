"""What is made of all regions with all phrases of a batch, without ever holding all their similarities."""

import math
from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from loupe_ext.ops._register import under_transform

# Similarities held at a time: 48 and 256 MiB of float32. glibc gives what is above 32 MiB back to the system; blocks
# below stay in its heap, where those of a large batch left as much memory unused as all similarities together take.
CPU_BLOCK, GPU_BLOCK = 3 << 22, 1 << 26


def in_blocks(
    function: Callable[..., Tensor], rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], each: int
) -> list[list[Tensor]]:
    """function(*some rows, *some columns) for blocks of images (`rows`, along dimension 0) by blocks of captions.

    A pair of them makes `each` numbers on the way, which are made again for backward. Where all fit into one block, and
    under torch.func, it is one ordinary call.
    """
    B, C = len(rows[0]), len(columns[0])
    pairs = (CPU_BLOCK if rows[0].device.type == "cpu" else GPU_BLOCK) // each
    if pairs >= B * C or under_transform():
        return [[function(*rows, *columns)]]
    captions = max(1, min(C, max(math.isqrt(pairs), pairs // B)))
    images = max(1, pairs // captions)
    some = [list(zip(*(x.split(n) for x in side), strict=True)) for side, n in ((rows, images), (columns, captions))]
    return [
        [checkpoint(function, *r, *c, use_reentrant=False, preserve_rng_state=False) for c in some[1]] for r in some[0]
    ]
