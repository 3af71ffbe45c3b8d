"""What a kernel is: one operator, its numbers in the form that its sums like best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from torch import Tensor

from fxquant.errors import ConfigError

KernelChoice = Literal["auto", "float32", "plain"]


class Kernel(Protocol):
    """Integer tensors and settings in, one integer tensor out.

    `name` says what adds up, `why` why nothing faster does; empty where nothing faster is known.
    """

    @property
    def name(self) -> str: ...

    @property
    def why(self) -> str: ...

    def __call__(self, *codes: Tensor, **settings: Any) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Plain:
    """The operator's own kernel; without a name, what its accumulator says adds up."""

    kernel: Callable[..., Tensor]
    name: str = ""
    why: str = ""

    def __call__(self, *codes: Tensor, **settings: Any) -> Tensor:
        """As the operator's record has it."""
        return self.kernel(*codes, **settings)


def checked(choice: str) -> KernelChoice:
    """`choice`, if there are such kernels; else a ConfigError that lists them."""
    for known in get_args(KernelChoice):
        if choice == known:
            return known  # type: ignore[no-any-return]
    names = ", ".join(map(repr, get_args(KernelChoice)))
    raise ConfigError(f"kernels are one of {names}; got {choice!r}")
