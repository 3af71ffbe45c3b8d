"""`fxquant export`: what is written follows from the name of what is to be written.

    net.onnx    ONNX, in integer operators or, with --form qdq, between QuantizeLinear and its kin
    net.tflite  a file for LiteRT
    net.pt2     a program of torch.export
    a folder    a golden model for hardware: numbers, schedule, integers of every node; --c adds C99
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.command.data import Images
from fxquant.errors import ConfigError
from fxquant.export import export_bundle, export_onnx, export_program, export_tflite, verify
from fxquant.files import write_whole


@dataclass(frozen=True)
class Export:
    """What to write, and how; None where an option is not given.

    out      the file or the folder
    form     of ONNX
    batch    the size of batches, None for any
    c        whether the folder has C99, too
    check    whether the ONNX or .tflite file is run in the engines that are installed, and compared
    """

    out: Path
    form: str | None = None
    batch: int | None = None
    c: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        folder = self.out.is_dir() or not self.out.suffix
        if not folder and self.out.suffix not in (".onnx", ".tflite", ".pt2"):
            raise ConfigError(
                f"'{self.out}' is none of .onnx, .tflite and .pt2, nor a folder: a name without a "
                "suffix"
            )
        runs = self.out.suffix in (".onnx", ".tflite")
        for given, name, kind, fits in (
            (self.form is not None, "--form", ".onnx", self.out.suffix == ".onnx"),
            (self.check, "--verify", ".onnx and .tflite", runs),
            (self.batch is not None, "--batch", "a file", not folder),
            (self.c, "--c", "a folder", folder),
        ):
            if given and not fits:
                raise ConfigError(f"{name} is for {kind}, and '{self.out}' is not that")

    def write(self, quantized: fx.GraphModule, images: Tensor) -> str:
        """Write it, whole or not at all; what to say of it. Raises the errors of the export."""
        if self.out.suffix == ".onnx":
            form: Any = self.form or "operators"  # which export_onnx checks
            export_onnx(quantized, self.out, images, self.batch, form)
            return self._verified(quantized, images)
        if self.out.suffix == ".tflite":
            export_tflite(quantized, self.out, images, self.batch)
            return self._verified(quantized, images)
        if self.out.suffix == ".pt2":
            program = io.BytesIO()
            torch.export.save(export_program(quantized, images, self.batch), program)
            write_whole(self.out, program.getvalue())
            return ""
        export_bundle(quantized, self.out, images, self.c)
        return f"with the integers of every node for {len(images)} images"

    def _verified(self, quantized: fx.GraphModule, images: Tensor) -> str:
        if not self.check:
            return ""
        batches = torch.split(images, self.batch or len(images))
        whole = [batch for batch in batches if len(batch) == (self.batch or len(images))]
        return str(verify(quantized, self.out, whole))


def images_for(data: str | None, size: int, channels: int, count: int) -> Tensor:
    """So many images, [N, C, H, W]: the first of a folder or of the digits, else random ones."""
    if data is not None:
        return next(iter(Images(data, size, channels, count, count))).images
    for name, value in (("size", size), ("channels", channels), ("limit", count)):
        if value < 1:
            raise ConfigError(f"{name} is a positive number, got {value}")
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))
