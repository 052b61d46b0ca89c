"""Random numbers of rules: a function of (seed, step, parameter, element), and nothing else."""

import pytest
import torch

from compiledopt.rules.random import bits, key, mixed, uniform

MASK = 2**32 - 1


def by_hand(x):
    """lowbias32 as it is published, in whole numbers."""
    x &= MASK
    x ^= x >> 16
    x = x * 0x7FEB352D & MASK
    x ^= x >> 15
    x = x * 0x846CA68B & MASK
    return x ^ (x >> 16)


def numbers(*values):
    return tuple(torch.tensor(value) for value in values)


def test_the_mixer_is_the_published_one():
    values = [
        0,
        1,
        2,
        3,
        2**31 - 1,
        2**31,
        MASK,
        *torch.randint(2**32, (200,), generator=torch.Generator().manual_seed(0)).tolist(),
    ]
    found = mixed(torch.tensor(values).to(torch.int32))
    assert [value & MASK for value in found.tolist()] == [by_hand(value) for value in values]


def test_bits_are_the_same_in_whole_numbers():
    seed, step, parameter = 2**40 + 17, 123456, 7
    words = []
    for begin in (0x9E3779B9, 0x6ED9EBA1):
        word = by_hand((seed & MASK) ^ begin)
        for part in (seed >> 32, step, parameter):
            word = by_hand(word ^ part)
        words.append(word)
    elements = [0, 1, 2**31, 2**32 - 1, 2**32, 2**33 + 5]
    expected = [by_hand(by_hand((e & MASK) ^ words[0]) ^ words[1] ^ (e >> 32)) for e in elements]
    found = bits(key(*numbers(seed, step, parameter)), torch.tensor(elements))
    assert [value & MASK for value in found.tolist()] == expected


def test_all_parameters_at_once_and_any_part_of_one():
    first, second = key(*numbers(3, 5), torch.arange(10))
    for parameter in range(10):
        assert (first[parameter], second[parameter]) == key(*numbers(3, 5, parameter))
    whole = uniform((first[4], second[4]), torch.arange(1000))
    assert torch.equal(uniform((first[4], second[4]), torch.arange(300, 700)), whole[300:700])


@pytest.mark.parametrize("other", ["seed", "step", "parameter"])
def test_streams_are_uniform_and_have_nothing_to_do_with_each_other(other):
    given = {"seed": 1, "step": 1, "parameter": 1}
    elements, count = torch.arange(1 << 20), 1 << 20
    one = uniform(key(*numbers(*given.values())), elements).double()
    two = uniform(key(*numbers(*{**given, other: 2}.values())), elements).double()
    assert one.min() >= 0 and one.max() < 1 and torch.equal((one * 2**24).frac(), torch.zeros(count, dtype=torch.float64))
    for stream in (one, two):
        counts = torch.histc(stream, 256, 0, 1)
        chi = ((counts - count / 256) ** 2 / (count / 256)).sum()
        assert 255 - 5 * (2 * 255) ** 0.5 < chi < 255 + 5 * (2 * 255) ** 0.5
    bound = 5 / count**0.5  # five standard deviations of a correlation
    pairs = torch.stack([one, two, one.roll(1), one.roll(1024), two.roll(1)])
    correlations = torch.corrcoef(pairs) - torch.eye(5)
    assert correlations.abs().max() < bound
    # Not the same numbers in another order either.
    assert not torch.equal(one.sort().values, two.sort().values)


def test_every_bit_is_as_often_one_as_zero():
    found = bits(key(*numbers(0, 0, 0)), torch.arange(1 << 20))
    shares = torch.stack([((found >> place) & 1).double().mean() for place in range(32)])
    assert (shares - 0.5).abs().max() < 5 * 0.5 / (1 << 10)
