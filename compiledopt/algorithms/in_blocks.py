"""Tensors that are cut into blocks along all their dimensions.

Blocks at an end are filled up with zeros to the size of the others, so that all of a tensor are one stack: what is made of
zeros alone stays apart in every product, and is cut off again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

from torch import Tensor
from torch.nn.functional import pad


def sizes(shape: Sequence[int], most: int) -> tuple[list[int], list[int]]:
    """(how many blocks, how long they are), of each dimension."""
    lengths = [max(1, min(size, most)) for size in shape]
    return [-(-size // length) for size, length in zip(shape, lengths, strict=True)], lengths


def cut(tensor: Tensor, most: int) -> Tensor:
    """(blocks, their dimensions)."""
    counts, lengths = sizes(tensor.shape, most)
    more = [(0, count * length - size) for count, length, size in zip(counts, lengths, tensor.shape, strict=True)]
    whole = pad(tensor, [*chain(*reversed(more))]) if any(size for _, size in more) else tensor
    dims = range(2 * len(counts))
    apart = whole.reshape(*chain(*zip(counts, lengths, strict=True))).permute(*dims[::2], *dims[1::2])
    return apart.reshape(math.prod(counts), *lengths)


def joined(blocks: Tensor, shape: Sequence[int], most: int) -> Tensor:
    """What `cut` has cut."""
    counts, lengths = sizes(shape, most)
    apart = blocks.reshape(*counts, *lengths).permute(*chain(*((i, len(counts) + i) for i in range(len(counts)))))
    whole = apart.reshape([count * length for count, length in zip(counts, lengths, strict=True)])
    for dim, size in enumerate(shape):
        whole = whole.narrow(dim, 0, size)
    return whole
