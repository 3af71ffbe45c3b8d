"""What the forms of every engine are tried with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOVES = {
    "view": lambda x: x.view(x.shape[0], -1),
    "flatten from the batch on": lambda x: x.flatten(0, 1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "batch behind": lambda x: x.transpose(0, 1),
    "mT": lambda x: x.mT,
    "slice": lambda x: x[:, 1:3, ::2, -3:],
    "pick": lambda x: x[:, 1],
    "pick rows": lambda x: x[:, [3, 0, 1]],
    "ellipsis and None": lambda x: x[..., None, 1],
    "chunk": lambda x: torch.cat([x.chunk(2, 1)[1], x.chunk(2, 1)[0]], 1),
    "unequal chunks": lambda x: x.chunk(3, 1)[0],
    "split": lambda x: x.split((1, 3), 1)[1],
    "unbind": lambda x: x.unbind(2)[4],
    "flip": lambda x: x.flip(1, 3),
    "roll": lambda x: x.roll((1, -2), (2, 3)),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "tile": lambda x: x.tile(2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "index_select": lambda x: x.index_select(1, torch.tensor([2, 2, 0])),
    "expand": lambda x: x[:, :1].expand(-1, 5, -1, -1),
    "shuffled channels": lambda x: F.channel_shuffle(x, 2),
    "windows": lambda x: (
        x[:, :, :6].reshape(-1, 4, 3, 2, 3, 2).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    ),
    "space from depth": lambda x: F.pixel_shuffle(x, 2),
    "depth from space": lambda x: F.pixel_unshuffle(x[:, :, :6], 2),
    "from the end": lambda x: x[:, [-1, 0]],
    "mask": lambda x: x[:, torch.tensor([True, False, True, True])],
    "squeeze": lambda x: x[:, :, :1].squeeze(2),
}


OF_ROWS = {
    "all but the first": lambda x: x[1:],
    "all but the last": lambda x: x[: x.shape[0] - 1],
    "every other": lambda x: x[::2],
    "two at most": lambda x: x[:2],
    "the last": lambda x: x[-1],
    "the last, counted": lambda x: x[x.shape[0] - 1],
    "backwards": lambda x: x.flip(0),
    "twice": lambda x: torch.cat([x, x + 1]),
    "repeated": lambda x: x.repeat(2, 1, 1, 1),
    "a channel each": lambda x: x.flatten(0, 1)[:, None].expand(-1, 3, -1, -1),
    "all for each": lambda x: x.flatten(0, 1)[None].expand(x.shape[0], -1, -1, -1),
    "zeros beside each": lambda x: torch.cat(
        [x.flatten(0, 1).new_zeros(x.shape[0], 3), x.flatten(1)], 1
    ),
    "one for all": lambda x: x.flatten(0, 1)[:1].expand(x.shape[0], -1, -1),
}
"""What moves rows, in batches of any size."""

BY_ROWS = {
    "half": lambda x: x[: x.shape[0] // 2],
    "nine in ten": lambda x: x[: 9 * x.shape[0] // 10],
    "eight at most, counted": lambda x: x[: min(x.shape[0], 8)],
    "of five alone": lambda x: x[:, : 3 + (x.shape[0] == 5)],
    "up to the twelfth, counted": lambda x: x[: 12 - x.shape[0]],
    "from the seventh last, counted": lambda x: x[x.shape[0] - 7 :],
    "twice as many channels": lambda x: x[:, : 2 * x.shape[0]],
    "as far apart": lambda x: x[:: x.shape[0]],
    "pooled to as many": lambda x: F.adaptive_avg_pool2d(x, (x.shape[0], 2)),
    "padded by as many": lambda x: F.pad(x, (0, x.shape[0])),
    "a quarter less": lambda x: x[x.shape[0] // 4 :],
    "as many channels": lambda x: x[:, : x.shape[0]],
    "two each": lambda x: x.flatten(0, 1)[:1].expand(2 * x.shape[0], -1, -1),
    "rolled": lambda x: x.roll(1, 0),
    "in two": lambda x: x.chunk(2)[0],
    "one by one": lambda x: x.unbind(0)[1],
}
"""What an element becomes depends on how many rows there are."""

NO_FORM = {
    "several dimensions at once": lambda x: x[:, [0, 1], [2, 3]],
    "a mask of several dimensions": lambda x: x[:, (torch.arange(28) % 3 == 0).reshape(4, 7)],
}
"""Moves that no file can hold, and why."""


class Several(nn.Module):
    """Two inputs, one of them picks; nested outputs, None among them, one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.layer = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, i: Tensor):
        y = self.layer(x)
        return {"a": (y, None), "b": [y + self.rows(i), y]}
