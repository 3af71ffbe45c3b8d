"""What observers saw, in a YAML file: calibrate once, choose bits and calibrators later.

    fxquant: 1
    statistics:
      - {value: conv1, calibrator: KL, low: -1.5, high: 2.0, data: -10.0 0x2040 3.0 5.0 …}

`data` is the calibrator's statistic, a number behind the other, 0x2040 for so many zeros. A file
serves any calibrator that asks for the same statistic, and `MinMax`, which only asks for extremes.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, fx

from fxquant.calibration import forgotten, quantizers_of
from fxquant.errors import ConfigError, UncalibratedError
from fxquant.fake_quant import ActivationFakeQuant
from fxquant.observers import Calibrator, Fixed, MinMax, Observer, Statistical
from fxquant.overrides import near_misses
from fxquant.pipeline import need_prepared
from fxquant.records import Part, plain, read_file, read_record, versioned, write_file
from fxquant.schemes import LARGEST

_MOST = 1 << 16  # numbers, more than any statistic has


@dataclass(frozen=True)
class Seen:
    """What one observer saw of the value of that name; `data` of a `Statistical` alone."""

    value: str
    calibrator: Calibrator
    low: float
    high: float
    data: str | None = None

    def __post_init__(self) -> None:
        if not -LARGEST <= self.low <= self.high <= LARGEST:
            raise ConfigError(f"low and high are finite and in order, got {self.low}, {self.high}")
        if isinstance(self.calibrator, Statistical):
            self.statistics(self.calibrator)
        elif self.data is not None:
            raise ConfigError(f"{self.calibrator} has no data")

    def statistics(self, calibrator: Statistical) -> Tensor:
        """`data` as the vector it was."""
        numbers = [] if self.data is None else _numbers(self.data)
        expected = calibrator.statistic.empty().numel()
        if len(numbers) != expected or not all(map(math.isfinite, numbers)):
            raise ConfigError(f"data of {calibrator} are {expected} finite numbers")
        return torch.tensor(numbers, dtype=torch.float64)


def save_statistics(prepared: fx.GraphModule, path: str | os.PathLike[str]) -> None:
    """Write what every observer of `prepared` saw to `path`, as YAML, whole or not at all.

    Raises UncalibratedError where one has seen nothing.
    """
    need_prepared(prepared, "save_statistics")
    quantizers = quantizers_of(prepared)
    missing = [node.name for node, q in quantizers.items() if not q.ready]
    if missing:
        raise UncalibratedError(
            f"save_statistics needs ranges, but '{missing[0]}' has seen no data.\n"
            "What to do: calibrate it first."
        )
    seen = [_seen(node.name, q.observer) for node, q in quantizers.items()]
    write_file(path, statistics=[plain(each) for each in seen])


def load_statistics(prepared: fx.GraphModule, path: str | os.PathLike[str]) -> None:
    """Give `prepared` what `save_statistics` wrote to `path` of a network of the same graph; its
    own calibrators and schemes decide what becomes of it.

    Raises ConfigError, with the file's name and the line: the file cannot be read, names another
    value than the network has, misses one, or holds a statistic that a calibrator cannot use.
    Nothing is changed then.
    """
    need_prepared(prepared, "load_statistics")
    quantizers = {node.name: q for node, q in quantizers_of(prepared).items()}
    document = read_file(path)
    parts = versioned(document, "statistics")
    if "statistics" not in parts:
        raise document.error("there is no 'statistics' here")
    found: dict[str, tuple[Seen, Part]] = {}
    for part in parts["statistics"].items():
        seen = read_record(part, Seen)
        if seen.value in found:
            raise part.error(f"'{seen.value}' stands here a second time")
        if seen.value not in quantizers:
            near = near_misses(seen.value, quantizers)
            raise part.error(f"the network has no value '{seen.value}'{near}")
        found[seen.value] = seen, part
    missing = [name for name in quantizers if name not in found]
    if missing:
        raise document.error(f"nothing is said of '{missing[0]}', which the network has")
    with forgotten(quantizers.values()):
        for name, (seen, part) in found.items():
            _take(quantizers[name], seen, part)


def _seen(name: str, observer: Observer) -> Seen:
    low, high = float(observer.low), float(observer.high)
    data = None
    if isinstance(observer.calibrator, Statistical):
        data = _text(observer.statistics)
    return Seen(name, observer.calibrator, low, high, data)


def _take(quantizer: ActivationFakeQuant, seen: Seen, part: Part) -> None:
    observer = quantizer.observer
    ours, theirs = observer.calibrator, seen.calibrator
    low, high = seen.low, seen.high
    state = observer.state_dict()
    if isinstance(ours, Statistical):
        same = isinstance(theirs, Statistical) and type(theirs.statistic) is type(ours.statistic)
        if not same:
            raise part.error(f"{ours} cannot use what {theirs} asks for")
        state["statistics"] = seen.statistics(ours)
    elif isinstance(ours, Fixed):
        low, high = ours.low, ours.high
    elif ours != theirs and not (isinstance(ours, MinMax) and isinstance(theirs, Statistical)):
        raise part.error(f"{ours} cannot use what {theirs} asks for")
    observer.load_state_dict(state | {"low": torch.tensor(low), "high": torch.tensor(high)})
    quantizer.follow_observer()


def _text(numbers: Tensor) -> str:
    runs = ((value, len(list(run))) for value, run in groupby(numbers.tolist()))
    return " ".join(
        f"0x{count}" if value == 0 else " ".join([repr(value)] * count) for value, count in runs
    )


def _numbers(text: str) -> list[float]:
    """The numbers of such a text; raises ConfigError where one is none."""
    found: list[float] = []
    for word in text.split():
        try:
            if word.startswith("0x"):
                found += [0.0] * min(int(word[2:]), _MOST)
            else:
                found.append(float(word))
        except ValueError as error:
            raise ConfigError(f"data holds '{word[:20]}', which is no number") from error
        if len(found) > _MOST:  # before a short text fills the memory
            raise ConfigError(f"data are more than {_MOST} numbers")
    return found
