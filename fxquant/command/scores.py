"""How well a network tells classes apart: loss, top-1 and top-5, as the images go by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.errors import DataError


@dataclass(frozen=True)
class Scores:
    """Of so many images: the mean cross entropy, and how many had their class among the first."""

    images: int = 0
    total_loss: float = 0.0
    first: int = 0
    among_five: int = 0

    @property
    def loss(self) -> float:
        """The mean cross entropy."""
        return self.total_loss / max(self.images, 1)

    @property
    def top1(self) -> float:
        """The share of images whose class comes first."""
        return self.first / max(self.images, 1)

    @property
    def top5(self) -> float:
        """The share of images whose class is among the first five."""
        return self.among_five / max(self.images, 1)

    def and_of(self, logits: Tensor, labels: Tensor) -> Scores:
        """Together with those of a batch: logits [N, classes], labels int64 [N].

        Raises DataError where these do not fit one another.
        """
        if logits.dim() != 2 or len(logits) != len(labels):
            raise DataError(
                f"{len(labels)} labels do not fit outputs of shape {tuple(logits.shape)}"
            )
        if int(labels.max()) >= logits.shape[1]:
            raise DataError(
                f"class {int(labels.max())} is beyond the {logits.shape[1]} that the network tells "
                "apart"
            )
        best = logits.topk(min(5, logits.shape[1]), 1).indices == labels[:, None]
        return Scores(
            self.images + len(labels),
            self.total_loss + float(F.cross_entropy(logits.float(), labels, reduction="sum")),
            self.first + int(best[:, 0].sum()),
            self.among_five + int(best.sum()),
        )

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}, top-1 {100 * self.top1:.2f} %, top-5 {100 * self.top5:.2f} %"


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    tell: Callable[[Scores], None] = lambda scores: None,
) -> Scores:
    """The scores of a model in eval(); `tell` hears them after each batch. Modes are kept."""
    training = model.training
    scores = Scores()
    model.eval()
    try:
        for number, (images, labels) in enumerate(batches):
            scores = scores.and_of(_logits(model, images, number), labels)
            tell(scores)
    finally:
        model.train(training)
    if scores.images == 0:
        raise DataError("there is no image to evaluate on")
    return scores


def _logits(model: nn.Module, images: Tensor, number: int) -> Tensor:
    try:
        output = model(images)
    except Exception as error:
        shape = tuple(images.shape)
        raise DataError(f"batch {number}, of shape {shape}, does not run: {error}") from error
    logits = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(logits, Tensor):
        raise DataError(f"the network gives a {type(output).__name__}, not logits")
    return logits
