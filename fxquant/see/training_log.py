"""How ranges, scales and saturation move while a prepared network trains.

    log = fxquant.TrainingLog(prepared, SummaryWriter("runs/digits"))
    for step, (x, y) in enumerate(loader):
        loss = ...
        log.step(step, loss=loss.item())
    log.plot("training.png")
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, fx, nn

from fxquant.errors import ConfigError
from fxquant.extras import needs_extra
from fxquant.fake_quant import ActivationFakeQuant
from fxquant.files import ending_of, write_whole
from fxquant.graph.edit import called_module
from fxquant.pipeline import need_prepared
from fxquant.sites.call_site import CallSite, InputQuantizer

_PICTURES = ("png", "svg", "pdf")


class Writer(Protocol):
    """What `torch.utils.tensorboard.SummaryWriter` is, as far as it is needed."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """One number of one step."""

    def add_histogram(self, tag: str, values: Tensor, global_step: int) -> Any:
        """Many numbers of one step."""


@dataclass(frozen=True)
class Quantizers:
    """All quantizers of activations at one step, by the name of their node.

    saturated   the share of the batch at an end of the range or beyond, 0 left aside; None where
                none came by in train()
    """

    step: int
    scales: dict[str, float]
    ranges: dict[str, tuple[float, float]]
    saturated: dict[str, float | None]


class TrainingLog:
    """Writes to TensorBoard, or to anything like it, and keeps what it takes to plot.

    Numbers of the loop are written at every step, those of the quantizers at every `every`-th;
    in between, training costs nothing more. As a context manager it lets go of the network.
    """

    def __init__(
        self, prepared: fx.GraphModule, writer: Writer | None = None, every: int = 100
    ) -> None:
        """Watch `prepared`, which prepare_qat returned; `writer` None only to plot.

        Raises StageError, ConfigError.
        """
        need_prepared(prepared, "TrainingLog")
        if not isinstance(every, int) or every < 1:
            raise ConfigError(f"every is a number of steps, at least 1, got {every!r}")
        if writer is not None and not hasattr(writer, "add_scalar"):
            raise ConfigError(f"writer is a SummaryWriter, or like it, got {writer!r}")
        self._writer, self._every = writer, every
        sites = dict(_sites(prepared))
        self._quantizers = {name: site.output for name, site in sites.items()}
        self._saturated: dict[str, float | None] = {}
        self._watching = True  # the first step, then each that is written
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        self.quantizers: list[Quantizers] = []
        self._hooks = [
            site.register_forward_hook(_Watch(self._see, name)) for name, site in sites.items()
        ]

    def step(self, step: int, **scalars: float) -> None:
        """After a training step: write these numbers and, if it is time, the quantizers'.

        Raises ConfigError for what is no number.
        """
        numbers = {name: _number(name, value) for name, value in scalars.items()}
        for name, value in numbers.items():
            self.scalars.setdefault(name, []).append((step, value))
            if self._writer is not None:
                self._writer.add_scalar(f"training/{name}", value, step)
        if step % self._every == 0:
            self._write(step)
        self._watching = (step + 1) % self._every == 0

    def _write(self, step: int) -> None:
        ready = {name: q.qparams for name, q in self._quantizers.items() if q.ready}
        scales = {name: float(q.scale) for name, q in ready.items()}
        ranges = {name: _range(*q) for name, q in ready.items()}
        saturated = {name: self._saturated.get(name) for name in ready}
        self.quantizers.append(Quantizers(step, scales, ranges, saturated))
        self._saturated = {}
        if self._writer is None or not ready:
            return
        for name in ready:
            self._writer.add_scalar(f"scale/{name}", scales[name], step)
            for end, value in zip(("low", "high"), ranges[name], strict=True):
                self._writer.add_scalar(f"range/{name}/{end}", value, step)
        shares = {name: share for name, share in saturated.items() if share is not None}
        for name, share in shares.items():
            self._writer.add_scalar(f"saturated/{name}", share, step)
        widths = [high - low for low, high in ranges.values()]
        for tag, values in (
            ("scales", list(scales.values())),
            ("ranges", widths),
            ("saturated", list(shares.values())),
        ):
            if values:
                self._writer.add_histogram(f"quantizers/{tag}", torch.tensor(values), step)

    def _see(self, name: str, site: nn.Module, output: Tensor) -> None:
        """How much of what a site gave lies at the ends of its range."""
        quantizer = self._quantizers[name]
        if not self._watching or not site.training or not quantizer.ready or not output.numel():
            return
        low, high = _range(*quantizer.qparams)
        less = float(quantizer.qparams.scale) / 4  # a step of the grid is far more than an error
        at_end = torch.zeros_like(output, dtype=torch.bool)
        if low < 0:
            at_end |= output <= low + less
        if high > 0:
            at_end |= output >= high - less
        self._saturated[name] = float(at_end.double().mean())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """The curves as one picture: the loop's numbers, then saturation and scales.

        Raises ConfigError for an ending but .png, .svg, .pdf; WriteError; MissingExtraError without
        matplotlib.
        """
        ending = ending_of(path, _PICTURES, "a plot")
        content = io.BytesIO()
        self._figure().savefig(content, format=ending, dpi=144)
        write_whole(path, content.getvalue())

    def _figure(self) -> Any:
        with needs_extra("see"):
            from matplotlib.figure import Figure
        figure = Figure(figsize=(8, 2.3 * (len(self.scalars) + 2)), layout="constrained")
        plots = figure.subplots(len(self.scalars) + 2, 1, sharex=True)
        for plot, (name, points) in zip(plots, self.scalars.items(), strict=False):
            plot.plot(*zip(*points, strict=True), color="#1f5fbf", linewidth=1.2)
            plot.set_ylabel(name)
        saturation, movement = plots[-2:]
        steps = [record.step for record in self.quantizers]
        _band(saturation, steps, [_percents(record) for record in self.quantizers])
        saturation.set_ylabel("saturated, %")
        _band(movement, steps, _moved(self.quantizers))
        movement.set_ylabel("scale / first scale")
        movement.set_xlabel("step")
        for plot in plots:
            plot.spines[["top", "right"]].set_visible(False)
            plot.grid(axis="y", linewidth=0.4)
        return figure

    def close(self) -> None:
        """Let go of the network; what was written stays."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Watch:
    """A forward hook that stays with its network: copies and pickles of that, as `convert` makes
    one, are not watched, and take no writer with them.
    """

    def __init__(self, see: Callable[[str, nn.Module, Tensor], None], name: str) -> None:
        self._see, self._name = see, name

    def __call__(self, site: nn.Module, inputs: Any, output: Tensor) -> None:
        self._see(self._name, site, output)

    def __reduce__(self) -> Any:
        return _Watch, (_look_away, self._name)


def _look_away(name: str, site: nn.Module, output: Tensor) -> None:
    """What copies do instead."""


def _number(name: str, value: Any) -> float:
    """A number of the loop: a float, or a tensor of one element."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise ConfigError(
            f"{name} is no number but a {type(value).__name__}{shape}.\n"
            "What to do: give one number a step, such as loss.item()."
        ) from error


def _sites(prepared: fx.GraphModule) -> list[tuple[str, Any]]:
    """The calls that have a quantizer of their own, by their node."""
    found = ((node.name, called_module(prepared, node)) for node in prepared.graph.nodes)
    return [
        (name, module)
        for name, module in found
        if isinstance(module, (CallSite, InputQuantizer))
        and isinstance(module.output, ActivationFakeQuant)
    ]


def _range(scale: Tensor, zero_point: Tensor, scheme: Any) -> tuple[float, float]:
    ends = ((end - int(zero_point)) * float(scale) for end in (scheme.qmin, scheme.qmax))
    low, high = ends
    return low, high


def _moved(records: list[Quantizers]) -> list[list[float]]:
    """Each scale of each record, as a multiple of the first that was seen of it."""
    first: dict[str, float] = {}
    for record in reversed(records):
        first |= record.scales
    return [[scale / first[name] for name, scale in r.scales.items()] for r in records]


def _percents(record: Quantizers) -> list[float]:
    return [100 * share for share in record.saturated.values() if share is not None]


def _band(plot: Any, steps: list[int], values: list[list[float]]) -> None:
    """The median of all quantizers as a line, the middle eight tenths and all of them as bands."""
    seen = [(step, torch.tensor(each)) for step, each in zip(steps, values, strict=True) if each]
    if not seen:
        return
    at = [step for step, _ in seen]
    least, low, median, high, most = (
        [float(each.double().quantile(share)) for _, each in seen]
        for share in (0.0, 0.1, 0.5, 0.9, 1.0)
    )
    plot.fill_between(at, least, most, color="#1f5fbf", alpha=0.12, linewidth=0, label="all")
    plot.fill_between(at, low, high, color="#1f5fbf", alpha=0.25, linewidth=0, label="8 in 10")
    plot.plot(at, median, color="#1f5fbf", linewidth=1.4, label="median")
    plot.legend(loc="upper right", frameon=False, fontsize=8, ncols=3)
