"""The local part of a distributed tensor, as the object that it is. Tried on torch 2.11.0 and 2.13.0."""

from __future__ import annotations

import torch

ATTRIBUTE = "_local_tensor"


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """to_local(), which in torch 2.13 makes a new object at each call for a parameter: then every step would look as if the
    parameter had been exchanged. Where the attribute is gone, that is what happens: right, and slower."""
    part: torch.Tensor | None = getattr(tensor, ATTRIBUTE, None)
    if part is not None:
        return part
    with torch.no_grad():
        return tensor.to_local()  # type: ignore[attr-defined,no-any-return]
