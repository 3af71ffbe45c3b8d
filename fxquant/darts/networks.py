"""The final networks of the DARTS papers: a stem, cells, a classifier.

    CIFAR      x ── stem ─┬─ s0 ┐
                          └─ s1 ┴─ cells ── pool ── classifier ── logits
    ImageNet   x ── stem0 ─┬─ s0 ─────────┐
                           └─ stem1 ── s1 ┴─ cells ── pool ── classifier ── logits

At one third and at two thirds of the depth stands a reduction cell, which halves the map and
doubles the channels. After the second one, while training, an auxiliary head may classify too.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from fxquant.errors import ConfigError

from .cells import Cell
from .genotypes import Genotype
from .operations import DropPath

__all__ = ["AuxiliaryHeadCIFAR", "AuxiliaryHeadImageNet", "NetworkCIFAR", "NetworkImageNet"]


class AuxiliaryHeadCIFAR(nn.Module):
    """A second classifier for 8 x 8 maps: (N, C, 8, 8) to (N, num_classes).

    Source: Liu, Simonyan, Yang, DARTS, ICLR 2019, arXiv:1806.09055, after Inception and NASNet.
    """

    def __init__(self, C: int, num_classes: int) -> None:
        """`C` channels in."""
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=3, padding=0, count_include_pad=False),  # 8 x 8 to 2 x 2
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 8, 8) to (N, num_classes)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class AuxiliaryHeadImageNet(nn.Module):
    """A second classifier for 7 x 7 maps: (N, C, 7, 7) to (N, num_classes).

    Source: as `AuxiliaryHeadCIFAR`.
    """

    def __init__(self, C: int, num_classes: int) -> None:
        """`C` channels in."""
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=2, padding=0, count_include_pad=False),  # 7 x 7 to 2 x 2
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            # No BN after this one: the published networks were trained without it.
            nn.Conv2d(128, 768, 2, bias=False),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 7, 7) to (N, num_classes)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class _Network(nn.Module, ABC):
    """Everything but the stem: subclasses make theirs, then call `_add_cells`."""

    auxiliary_head: AuxiliaryHeadCIFAR | AuxiliaryHeadImageNet | None
    global_pooling: nn.AdaptiveAvgPool2d
    classifier: nn.Linear

    @abstractmethod
    def _states(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two states that the first cell reads."""

    def _add_cells(
        self,
        genotype: Genotype,
        C: int,
        layers: int,
        C_stems: tuple[int, int],
        after_reduction: bool,
        drop_path_prob: float,
    ) -> tuple[int, int]:
        """Make the cells; return the channels at the auxiliary head and at the classifier."""
        first, second = layers // 3, 2 * layers // 3
        cells: list[nn.Module] = []
        C_prev_prev, C_prev = C_stems
        C_auxiliary = 0
        for i in range(layers):
            reduction = i in (first, second)
            if reduction:
                C *= 2
            cell = Cell(
                genotype, C_prev_prev, C_prev, C, reduction, after_reduction, drop_path_prob
            )
            cells.append(cell)
            C_prev_prev, C_prev = C_prev, cell.multiplier * C
            if i == second:
                C_auxiliary = C_prev
            after_reduction = reduction
        self.cells = nn.ModuleList(cells)
        self._auxiliary_after = second
        return C_auxiliary, C_prev

    @property
    def drop_path_prob(self) -> float:
        """The probability to drop an edge while training; setting it reaches every cell."""
        return next(module.p for module in self.modules() if isinstance(module, DropPath))

    @drop_path_prob.setter
    def drop_path_prob(self, p: float) -> None:
        _check_probability(p)
        for module in self.modules():
            if isinstance(module, DropPath):
                module.p = p

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """Images (N, in_channels, H, W) to logits (N, num_classes).

        With an auxiliary head: (logits, auxiliary logits) while training, (logits, None) in eval.
        """
        s0, s1 = self._states(x)
        logits_aux: Tensor | None = None
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1)
            if i == self._auxiliary_after and self.auxiliary_head is not None and self.training:
                logits_aux = self.auxiliary_head(s1)
        logits: Tensor = self.classifier(self.global_pooling(s1).flatten(1))
        return logits if self.auxiliary_head is None else (logits, logits_aux)


class NetworkCIFAR(_Network):
    """The network for small images: (N, in_channels, H, W) to logits (N, num_classes).

    The papers take C=36, layers=20, 32 x 32 images. The auxiliary head wants 32 x 32 exactly.

    Source: Liu, Simonyan, Yang, DARTS, ICLR 2019, arXiv:1806.09055.
    """

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        genotype: Genotype,
        auxiliary: bool = False,
        in_channels: int = 3,
        drop_path_prob: float = 0.0,
        stem_multiplier: int = 3,
    ) -> None:
        """`C` channels in the first cell's nodes; the stem has `stem_multiplier` times as many."""
        super().__init__()
        _check_genotype(genotype)
        _check_layers(layers)
        _check_probability(drop_path_prob)
        _check_positive("C", C)
        _check_positive("num_classes", num_classes)
        _check_positive("in_channels", in_channels)
        _check_positive("stem_multiplier", stem_multiplier)

        C_stem = stem_multiplier * C
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, C_stem, 3, padding=1, bias=False),
            nn.BatchNorm2d(C_stem),
        )
        C_auxiliary, C_last = self._add_cells(
            genotype, C, layers, (C_stem, C_stem), False, drop_path_prob
        )
        self.auxiliary_head = AuxiliaryHeadCIFAR(C_auxiliary, num_classes) if auxiliary else None
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_last, num_classes)

    def _states(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stem: Tensor = self.stem(x)
        return stem, stem


class NetworkImageNet(_Network):
    """The network for large images: (N, in_channels, H, W) to logits (N, num_classes).

    The papers take C=48, layers=14, 224 x 224 images, which the stems make 28 x 28. The auxiliary
    head wants 224 x 224 (193 to 224 do). The published code pools 7 x 7 at the end; pooling
    whatever is left gives the same there, and takes other sizes too.

    Source: Liu, Simonyan, Yang, DARTS, ICLR 2019, arXiv:1806.09055.
    """

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        genotype: Genotype,
        auxiliary: bool = False,
        in_channels: int = 3,
        drop_path_prob: float = 0.0,
    ) -> None:
        """`C`, even, channels in the stems and in the first cell's nodes."""
        super().__init__()
        _check_genotype(genotype)
        _check_layers(layers)
        _check_probability(drop_path_prob)
        _check_positive("C", C)
        _check_positive("num_classes", num_classes)
        _check_positive("in_channels", in_channels)
        if C % 2:
            raise ConfigError(f"C: expected an even number, because stem0 has C/2 too, got {C}")

        self.stem0 = nn.Sequential(
            nn.Conv2d(in_channels, C // 2, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C // 2),
            nn.ReLU(),
            nn.Conv2d(C // 2, C, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C),
        )
        self.stem1 = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, C, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C),
        )
        C_auxiliary, C_last = self._add_cells(genotype, C, layers, (C, C), True, drop_path_prob)
        self.auxiliary_head = (
            AuxiliaryHeadImageNet(C_auxiliary, num_classes) if auxiliary else None
        )
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_last, num_classes)

    def _states(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s0: Tensor = self.stem0(x)
        s1: Tensor = self.stem1(s0)
        return s0, s1


def _check_genotype(genotype: object) -> None:
    if not isinstance(genotype, Genotype):
        # The published constructors take `auxiliary` here, so a ported call arrives mixed up.
        raise ConfigError(
            f"genotype: expected a fxquant.darts.Genotype, got {type(genotype).__name__}; "
            "the order is (C, num_classes, layers, genotype, auxiliary), and Genotype(*other) "
            "converts another library's"
        )


def _check_layers(layers: int) -> None:
    if layers < 3:
        raise ConfigError(
            f"layers: expected at least 3, got {layers}; "
            "cells layers // 3 and 2 * layers // 3 are reduction cells, after a normal one"
        )


def _check_probability(p: float) -> None:
    if not 0.0 <= p < 1.0:
        raise ConfigError(f"drop_path_prob: expected 0 <= p < 1, got {p}")


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name}: expected at least 1, got {value}")
