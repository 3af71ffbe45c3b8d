"""Which functions draw random numbers, and so give something else at every call."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fxquant.graph.modes import DROPOUT_CALLS

# those written in Python; torch's own operators say so themselves
_RANDOM = {F.gumbel_softmax, *DROPOUT_CALLS}


def is_random(target: Any) -> bool:
    """Whether a function, or the method of that name, draws random numbers."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    packet = getattr(torch.ops.aten, name, None)
    overloads = [] if packet is None else [getattr(packet, kind) for kind in packet.overloads()]
    draws = any(torch.Tag.nondeterministic_seeded in overload.tags for overload in overloads)
    return draws or target in _RANDOM
