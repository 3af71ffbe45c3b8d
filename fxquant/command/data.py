"""Images as a command line names them: a folder with a folder for each class, or 'digits'."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.errors import ConfigError, DataError
from fxquant.extras import needs_extra

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision has them


class Batch(NamedTuple):
    """Images, float [N, C, H, W], and their classes, int64 [N]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Images:
    """Labelled images, batch by batch, as often as they are asked for.

    source     a folder that holds a folder of images for each class, or "digits", scikit-learn's
               handwriting
    size       height and width
    channels   1 or 3
    batch      so many at a time
    limit      so many at most, None for all
    """

    source: str
    size: int = 224
    channels: int = 3
    batch: int = 64
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("size", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is a positive number, got {getattr(self, name)}")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels are 1 or 3, got {self.channels}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is a positive number, got {self.limit}")
        if self.source != "digits" and not Path(self.source).is_dir():
            raise ConfigError(f"'{self.source}' is no folder of images, and not 'digits'")

    def __len__(self) -> int:
        """How many batches there are."""
        return -(-self.count // self.batch)

    @property
    def count(self) -> int:
        """How many images there are."""
        everything = len(self._everything)
        return everything if self.limit is None else min(everything, self.limit)

    def __iter__(self) -> Iterator[Batch]:
        everything = self._everything
        # in an order of their own, or a share of a folder would be a few of its classes
        order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))
        for numbers in torch.split(order[: self.count], min(self.batch, self.count)):
            items = [_read(everything, int(i)) for i in numbers]
            images = torch.stack([image for image, _ in items])
            yield Batch(images, torch.tensor([label for _, label in items]))

    @cached_property
    def _everything(self) -> Any:
        return self._digits() if self.source == "digits" else self._folder()

    def _folder(self) -> Any:
        with needs_extra("vision"):
            from torchvision import datasets, transforms
        steps = [
            transforms.Resize(self.size * 8 // 7),  # 256 for 224
            transforms.CenterCrop(self.size),
            transforms.Grayscale(self.channels) if self.channels == 1 else _in_color,
            transforms.ToTensor(),
        ]
        if self.channels == 3:
            steps.append(transforms.Normalize(_MEAN, _STD))
        try:
            return datasets.ImageFolder(self.source, transforms.Compose(steps))
        except FileNotFoundError as error:
            raise ConfigError(f"'{self.source}' holds no images: {error}") from error

    def _digits(self) -> list[tuple[Tensor, int]]:
        with needs_extra("demo"):
            from sklearn.datasets import load_digits
        data = load_digits()
        small = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
        images = F.interpolate(small, size=(self.size, self.size), mode="bilinear")
        images = images.expand(-1, self.channels, -1, -1)
        return list(zip(images, data.target.tolist(), strict=True))


def _in_color(image: Any) -> Any:
    return image.convert("RGB")


def _read(everything: Any, number: int) -> tuple[Tensor, int]:
    try:
        image, label = everything[number]
    except Exception as error:  # of many kinds, as image files can be wrong
        path = everything.samples[number][0] if hasattr(everything, "samples") else number
        raise DataError(f"image {path} cannot be read: {error}") from error
    return image, int(label)
