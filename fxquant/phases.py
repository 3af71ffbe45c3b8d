"""The phases of training: observe, round, freeze the ranges, freeze the batch norms.

    step        0 ─────── round ─────── freeze_ranges ─────── freeze_batch_norm ──▶
    observe     yes       yes           no                    no
    round       no        yes           yes                   yes
    batch norm  live      live          live                  frozen

Batch statistics and moving ranges are noise that eval() does not have: late in training a
network should get used to the numbers that it will ship with. Source: Krishnamoorthi 2018,
"Quantizing deep convolutional networks for efficient inference", section 3.2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from fxquant.calibration import quantizers_of
from fxquant.errors import ConfigError, UncalibratedError
from fxquant.graph.edit import called_module
from fxquant.graph.place import describe
from fxquant.pipeline import need_prepared
from fxquant.sites.phase import Phase, PhasedSite


def set_phase(prepared: fx.GraphModule, phase: Phase) -> None:
    """Let the training of `prepared` go on as `phase` says; its state_dict() has it.

    Learned scales of activations stand still with the ranges: under DistributedDataParallel they
    are parameters without gradient then (find_unused_parameters=True).

    Args:
        prepared: what prepare_qat returned; changed in place.
        phase: such as `Phase(observe=False)`.

    Raises:
        StageError: `prepared` did not come from prepare_qat.
        ConfigError: `phase` is none.
        UncalibratedError: ranges are to stand still that have seen no data yet.
    """
    need_prepared(prepared, "set_phase")
    if not isinstance(phase, Phase):
        raise ConfigError(f"phase is a Phase, such as Phase(observe=False), got {phase!r}")
    if phase.round and not phase.observe:
        missing = [node for node, q in quantizers_of(prepared).items() if not q.ready]
        if missing:
            raise UncalibratedError(
                f"{describe(missing[0])} has seen no finite data: its range cannot stand still.\n"
                "What to do: run some batches through the prepared model in train() mode first."
            )
    for node in prepared.graph.nodes:
        site = called_module(prepared, node)
        if isinstance(site, PhasedSite):
            site.phase = phase


@dataclass(frozen=True)
class PhasePlan:
    """After how many steps, or epochs, each phase begins; None for never."""

    round: int = 0
    freeze_ranges: int | None = None
    freeze_batch_norm: int | None = None

    def __post_init__(self) -> None:
        starts = (self.round, self.freeze_ranges, self.freeze_batch_norm)
        given = [n for n in starts if n is not None]
        if any(type(n) is not int or n < 0 for n in given) or given != sorted(given):
            raise ConfigError(
                "round, freeze_ranges and freeze_batch_norm are numbers of steps, in this order, "
                f"got {self.round!r}, {self.freeze_ranges!r} and {self.freeze_batch_norm!r}"
            )

    def after(self, steps: int) -> Phase:
        """The phase once so many steps are done."""

        def begun(start: int | None) -> bool:
            return start is not None and steps >= start

        return Phase(
            observe=not begun(self.freeze_ranges),
            round=begun(self.round),
            batch_statistics=not begun(self.freeze_batch_norm),
        )


class PhaseSchedule:
    """Sets the phase of a prepared network by the number of steps, or epochs, done.

        phases = PhaseSchedule(prepared, round=1, freeze_ranges=8, freeze_batch_norm=9)
        for epoch in range(10):
            train(prepared)
            phases.step()               # after each epoch, or after each step: the unit is yours

    Like a learning-rate scheduler it has a state_dict of its own, of the steps done; the phase
    itself is in that of the network.
    """

    def __init__(
        self,
        prepared: fx.GraphModule,
        round: int = 0,
        freeze_ranges: int | None = None,
        freeze_batch_norm: int | None = None,
    ) -> None:
        """Each phase begins after so many steps; None for never.

        Raises:
            ConfigError: not in this order, or no number of steps.
            StageError: `prepared` did not come from prepare_qat.
            UncalibratedError: ranges are to stand still from the start and have seen no data.
        """
        self.plan = PhasePlan(round, freeze_ranges, freeze_batch_norm)
        self.prepared = prepared
        self.steps = 0
        set_phase(prepared, self.phase)

    @property
    def phase(self) -> Phase:
        """The phase after the steps done so far."""
        return self.plan.after(self.steps)

    def step(self) -> None:
        """One more step, or epoch, is done. Raises UncalibratedError as set_phase does."""
        self.steps += 1
        set_phase(self.prepared, self.phase)

    def state_dict(self) -> dict[str, Any]:
        """The steps done."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind those steps; load the network's own state first. Raises ConfigError where
        they are no number.
        """
        steps = state.get("steps") if isinstance(state, dict) else None
        if type(steps) is not int or steps < 0:
            raise ConfigError(f"the state of a schedule is its steps, got {state!r}")
        self.steps = steps
        set_phase(self.prepared, self.phase)
