"""Named models as lists of shapes: what an optimizer sees of them."""

from __future__ import annotations

from collections.abc import Callable

Shapes = list[tuple[int, ...]]


def resnet50() -> Shapes:
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for shape in ((width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, (shape[0],), (shape[0],)]
            if block == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def _transformer(width: int, layers: int, hidden: int) -> Shapes:
    layer = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)]
    return ([*layer, (hidden, width), (hidden,), (width, hidden), (width,)]) * layers


def vit_b16() -> Shapes:
    ends: Shapes = [(1, 1, 768), (1, 197, 768), (768, 3, 16, 16), (768,), (768,), (768,), (1000, 768), (1000,)]
    return ends + _transformer(768, 12, 3072)


def gpt2_small() -> Shapes:
    return [(50257, 768), (1024, 768), (768,), (768,), *_transformer(768, 12, 3072)]


def llama_1b(layers: int = 16) -> Shapes:
    """Llama 3.2 1B, tied embeddings."""
    layer: Shapes = [(2048, 2048), (512, 2048), (512, 2048), (2048, 2048), (8192, 2048), (8192, 2048), (2048, 8192)]
    return [(128256, 2048), (2048,), *([*layer, (2048,), (2048,)]) * layers]


def llama_1b_scaled() -> Shapes:
    """Four of the sixteen layers and an eighth of the vocabulary: what fits beside a second optimizer in 24 GiB."""
    return [(16032, 2048), *llama_1b(4)[1:]]


SHAPES: dict[str, Callable[[], Shapes]] = {
    "many_small": lambda: [(1000,)] * 300,
    "small": lambda: [(50, 100)] * 300,
    "tiny": lambda: [(64,)] * 2000,
    "even": lambda: [(1000, 1000)] * 20,
    "matrices": lambda: [(512, 512)] * 24,
    "matrices_128": lambda: [(128, 128)] * 100,
    "one": lambda: [(20_000_000,)],
    "resnet50": resnet50,
    "vit_b16": vit_b16,
    "gpt2_small": gpt2_small,
    "llama_1b": llama_1b,
    "llama_1b_scaled": llama_1b_scaled,
}
