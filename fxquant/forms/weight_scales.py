"""The scales of a weight, found again from what was made of them.

    multiplier · 2^-shift = rescale(s_x·s_w/s_y)

The numbers of a layer keep multipliers and shifts alone; files that say what codes stand for ask
for s_w, and their engines make the same multipliers of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.errors import ExportError
from fxquant.intmath import LayerNumbers
from fxquant.schemes import SMALLEST_SCALE

_NEAR = 8  # so many float32 numbers beside an estimate are looked at


def weight_scales(n: LayerNumbers, s_x: Tensor, s_y: Tensor, place: str) -> Tensor:
    """The scales of a layer's weight, float32 [C], from its numbers and the scales of its input and
    its output, both 0-dim.

    Raises ExportError, which names the node `place`, where no scales give these numbers.
    """
    factor = torch.ldexp(n.multiplier.double(), -n.shift)
    estimate = (factor * s_y.double() / s_x.double()).float().clamp(min=SMALLEST_SCALE)
    ulp = torch.nextafter(estimate, torch.full_like(estimate, torch.inf)) - estimate
    near = (estimate + ulp * torch.arange(-_NEAR, _NEAR + 1)[:, None]).clamp(min=SMALLEST_SCALE)
    reals = n.rounding.reals
    found = n.rounding.rescale(s_x.to(reals) * near.to(reals) / s_y.to(reals))
    fits = (found.multiplier == n.multiplier) & (found.shift == n.shift)
    if not fits.any(0).all():
        raise ExportError(
            f"node '{place}' has multipliers that no float32 scale of its weight gives.\n"
            "What to do: export what `convert` gave, of a network in float32."
        )
    return near.gather(0, fits.to(torch.int8).argmax(0)[None])[0]
