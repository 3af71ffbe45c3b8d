"""The modules of a converted network. Their buffers are all the numbers there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from fxquant.fake_quant.quantizer import keeping_bits
from fxquant.graph.edit import Site
from fxquant.kernels.kernel import Kernel, KernelChoice, Plain
from fxquant.ops.accumulator import Accumulator, IntegerCall, Operand
from fxquant.ops.spec import OpSpec
from fxquant.rounding import Rounding, need_real
from fxquant.schemes import QParams, QuantScheme, dequantize

_times_written = attrgetter("_version")


class Facts(NamedTuple):
    """What is known of an integer operator beside its numbers, which alone decide what it gives.

    `scale` and `zero_point` say what the codes of its output stand for, `inputs` are the codes it
    reads, `settings` what it is called with beside them (what the graph computes as in the
    example, None where there is none), `accumulator_bits` what its sums were allowed, and
    `computed` says whether the graph computes a setting at each call.
    """

    scale: float
    zero_point: int
    inputs: tuple[Operand, ...]
    settings: Mapping[str, Any]
    accumulator_bits: int
    computed: bool = False


class IntegerOp(Site):
    """One operator on integer tensors; every number it uses is a buffer of that name.

    Beside them stands how it rounds, if it does. `text` says what it came from, such as
    'conv2d → relu': the ReLU is in the clamp. `facts` are for those who audit it. `kernel` computes
    with the numbers in whatever form is quickest: made of the buffers, never saved, and made anew
    when they change. (A network that torch.compile has compiled does not look; load, then compile.)
    """

    MADE_ANEW = ("kernel", "_read", "_seen", "_uncounted")

    def __init__(
        self, op: OpSpec, numbers: tuple[Tensor | Rounding, ...], scheme: QuantScheme, text: str,
        facts: Facts,
    ) -> None:
        super().__init__()
        self.op = op
        self.scheme = scheme
        self.text = text
        self.facts = facts
        self._numbers = type(numbers)
        self._roundings: dict[str, Rounding] = {}  # one or none
        for name, value in numbers._asdict().items():  # type: ignore[attr-defined]
            if isinstance(value, Rounding):
                self._roundings[name] = value
            else:
                self.register_buffer(name, value.clone())
        self.choice: KernelChoice = "auto"
        self.use_kernels("auto")

    def forward(self, *codes: Tensor, **options: Any) -> Tensor:
        """Integer tensors in, one integer tensor out."""
        if not torch.compiler.is_compiling() and self._seen != self._state_of_buffers():
            self.use_kernels(self.choice)
        return self.kernel(*codes, **options)

    def use_kernels(self, choice: KernelChoice) -> None:
        """Make the kernel anew, from the buffers as they are: `auto`, `float32` or `plain`."""
        self.choice = choice
        # held, so that no tensor that comes later has the id of one; not in a list, where a model's
        # own tensors are looked for
        self._read = frozenset(self.buffers())
        self._uncounted = any(buffer.is_inference() for buffer in self._read)
        self._seen = self._state_of_buffers()
        on_cpu = all(buffer.device.type == "cpu" for buffer in self._read)
        stands_still = on_cpu and not self.facts.computed
        dtype = self.scheme.dtype
        with torch.no_grad():
            if self.op.fast is None or choice == "plain" or not stands_still:
                self.kernel: Kernel = Plain(partial(self.op.kernel, self.numbers, dtype))
            else:
                self.kernel = self.op.fast(self._call, dtype, choice)

    def _state_of_buffers(self) -> list[int]:
        """Which tensors they are, and how often each was written, where torch counts that."""
        buffers = self._buffers.values()
        if self._uncounted:
            return [*map(id, buffers)]
        return [*map(id, buffers), *map(_times_written, buffers)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """To another device; of half() and double() the numbers stay what they are."""

        def moved(number: Tensor) -> Tensor:
            found = fn(number)
            return found if found.dtype == number.dtype else number.to(found.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        self.use_kernels(self.choice)  # what .to() moves are the buffers
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.use_kernels(self.choice)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self.MADE_ANEW}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.use_kernels(self.choice)

    @property
    def numbers(self) -> tuple[Tensor | Rounding, ...]:
        """The buffers, and the rounding, as the kernel takes them."""
        return self._numbers(**self._buffers, **self._roundings)

    @property
    def accumulator(self) -> Accumulator | None:
        """What it sums, if anything."""
        return self.op.accumulator(self._call)

    @property
    def _call(self) -> IntegerCall:
        facts = self.facts
        return IntegerCall(self.numbers, facts.inputs, facts.settings, facts.accumulator_bits)

    def extra_repr(self) -> str:
        """The operator and its output's scheme, for print(model)."""
        return f"{self.text}, {self.scheme}"


class _Boundary(Site):
    scale: Tensor
    zero_point: Tensor

    def __init__(self, q: QParams) -> None:
        super().__init__()
        self.scheme = q.scheme
        self.register_buffer("scale", q.scale.clone())
        self.register_buffer("zero_point", q.zero_point.clone())

    @property
    def qparams(self) -> QParams:
        """The parameters of this boundary."""
        return QParams(self.scale, self.zero_point, self.scheme)

    def extra_repr(self) -> str:
        """The scheme, for print(model)."""
        return str(self.scheme)


class Quantize(_Boundary):
    """Real numbers in, integers out."""

    def __init__(self, q: QParams, rounding: Rounding) -> None:
        super().__init__(q)
        self.rounding = rounding

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """half() and bfloat16() leave its numbers alone, which make the codes."""
        return super()._apply(keeping_bits(fn), recurse)  # type: ignore[no-any-return, no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Same shape, of the scheme's integer dtype. Raises DataError for what is not real."""
        need_real(x)
        return self.rounding.quantize(x.detach(), self.qparams)


class Dequantize(_Boundary):
    """Integers in, the real numbers they stand for out."""

    def forward(self, codes: Any) -> Any:
        """Same shape, of the scale's dtype, contiguous; each tensor of a tuple by itself."""
        if isinstance(codes, (tuple, list)):
            return tuple(self.forward(part) for part in codes)
        return dequantize(codes.contiguous(), self.qparams)
