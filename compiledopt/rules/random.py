"""Random numbers that are a function of (seed, step, parameter, element), so that they are the same for every executor, every
number of threads and every way of cutting a parameter into shards, and need no state of their own.

Everything is int32 arithmetic by torch's operators, which wraps around: eager torch runs it, and Inductor makes vector
instructions of it. int64 would halve the lanes, and AVX2 has no product of such. A key is made once for each parameter and
step, outside of a kernel, for all parameters at once; `bits` is what a kernel computes for each element.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Key = tuple[Tensor, Tensor]
# Where the two words of a key begin: digits of the golden ratio and of √3, as SHA-1 takes its constants.
_BEGIN = (0x9E3779B9 - 2**32, 0x6ED9EBA1)


def mixed(x: Tensor) -> Tensor:
    """A bijection of 32 bits, in which each bit of the input turns over about half of the output's.

        x ← x ^ (x >> 16);  x ← x · 0x7feb352d;  x ← x ^ (x >> 15);  x ← x · 0x846ca68b;  x ← x ^ (x >> 16)

    x: int32. Source: lowbias32 of C. Wellons, "Prospecting for Hash Functions", nullprogram.com/blog/2018/07/31, public domain.
    """
    x = (x ^ _shifted(x, 16)) * 0x7FEB352D
    x = (x ^ _shifted(x, 15)) * (0x846CA68B - 2**32)
    return x ^ _shifted(x, 16)


def _shifted(x: Tensor, places: int) -> Tensor:
    """To the right, filled with zeros: torch fills with the sign."""
    return (x >> places) & ((1 << (32 - places)) - 1)


def key(seed: Tensor, step: Tensor, parameter: Tensor) -> Key:
    """64 bits for each parameter at a step, as two int32 tensors.

    seed: of the optimizer; step: how many updates the parameter has had; parameter: its number among all parameters, as in a
    state_dict. int64, not negative, step and parameter below 2^31; of shapes that broadcast: (parameters,) or ().
    """
    words = [part.to(torch.int32) for part in (seed, seed >> 32, step, parameter)]
    both = []
    for begin in _BEGIN:
        word = mixed(words[0] ^ begin)
        for part in words[1:]:
            word = mixed(word ^ part)
        both.append(word)
    return both[0], both[1]


def bits(key: Key, element: Tensor) -> Tensor:
    """32 random bits for each element, as int32.

    key: two int32, 0-dim; element: int64, not negative, the place of each element in the memory of the whole parameter.
    """
    first, second = key
    low, high = element.to(torch.int32), (element >> 32).to(torch.int32)
    # Two rounds with independent words: after one, the elements of two steps would have the same numbers in another order.
    return mixed(mixed(low ^ first) ^ second ^ high)


def bits_at(key: Key, element: Tensor) -> Tensor:
    """The same for elements that are known by the low 32 bits of their places, as kernels count them: int32."""
    return mixed(mixed(element ^ key[0]) ^ key[1])


def uniform(key: Key, element: Tensor) -> Tensor:
    """Numbers of [0, 1), float32, all multiples of 2^-24: the upper 24 of `bits`, whose arguments these are."""
    return _shifted(bits(key, element), 8).to(torch.float32) * 2.0**-24


def normal(key: Key, shape: tuple[int, ...]) -> Tensor:
    """Numbers of a normal distribution, float32, by the method of Box and Muller. key: two int32, of one element."""
    count = math.prod(shape)
    element = torch.arange(count, device=key[0].device)
    radius = (-2 * torch.log1p(-uniform(key, element))).sqrt()
    return (radius * torch.cos(2 * math.pi * uniform(key, element + count))).reshape(shape)
