"""batch_norm: its integers by hand."""

import torch

from fxquant.intmath import Target
from fxquant.ops import op_named
from fxquant.ops.spec import Affine, RealCall
from fxquant.schemes import UINT8, QParams


def codes_of(factor, offset, codes):
    """[1, C] through factor · x + offset, from (q - 10)·0.5 to (q - 20)·0.25."""
    zeros = [torch.tensor(zero, dtype=torch.int32) for zero in (10, 20)]
    x, y = (QParams(torch.tensor(s), z, UINT8) for s, z in zip((0.5, 0.25), zeros, strict=True))
    ends = (torch.tensor(end, dtype=torch.int32) for end in (0, 255))
    affine = Affine(torch.tensor(factor), torch.tensor(offset))
    op = op_named("batch_norm")
    numbers = op.numbers(RealCall((x,), Target(y, *ends), None, affine, {}))
    return op.kernel(numbers, torch.uint8, torch.tensor([codes], dtype=torch.uint8)).tolist()[0]


def test_by_hand():
    """x = 4: 1.5·4 + 2 = 32·0.25;  -0.75·4 + 2 = -4·0.25;  0.125 is half a step, hence one."""
    assert codes_of([1.5, -0.75, 0.0], [2.0, 2.0, 0.125], [18, 18, 18]) == [52, 16, 21]


def test_offsets_beyond_all_integers_saturate():
    assert codes_of([1.0, 1.0], [1e30, -1e30], [18, 18]) == [255, 0]
