"""Quantization-aware training as a callback of Lightning.

    setup             module.net = prepare_qat(module.net)       before optimizers are made
    epoch, or step    the phase that has begun by then
    the end of fit    quantized = convert(module.net)            equal to it on a batch

The prepared network keeps its place in the LightningModule: `trainer.test` behind `trainer.fit`
measures what the integers compute, and another `trainer.fit` trains on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

from torch import Tensor, fx, nn

from fxquant.api import convert, prepare_qat
from fxquant.config import QuantConfig
from fxquant.errors import ConfigError, VerifyError
from fxquant.extras import needs_extra
from fxquant.graph.around import unwrap
from fxquant.graph.compare import arguments_apart, equal_in_eval
from fxquant.graph.tensors import is_sharded
from fxquant.phases import PhasePlan, set_phase
from fxquant.pipeline import Stage, need_prepared, stage_of
from fxquant.sites.phase import Phase

with needs_extra("lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
    from lightning.pytorch.utilities import rank_zero_warn


class QuantizationAwareTraining(Callback):
    """Prepares one network of a LightningModule, leads it through its phases, and converts it.

        qat = QuantizationAwareTraining("net", round=1, freeze_ranges=8, freeze_batch_norm=9)
        Trainer(max_epochs=10, callbacks=[qat]).fit(module)
        qat.quantized                      # the integer network, on the CPU

    It has no state of its own: where training is comes from the trainer's counters, and all else
    is in the state_dict of the network. List it before callbacks that copy the module, such as
    EMAWeightAveraging.
    """

    def __init__(
        self,
        network: str,
        config: QuantConfig | None = None,
        example_inputs: Sequence[Any] | Tensor | None = None,
        *,
        round: int = 0,
        freeze_ranges: int | None = None,
        freeze_batch_norm: int | None = None,
        interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        """Of the network at this path; each phase begins after so many epochs or steps.

        Args:
            network: where it stands in the LightningModule, such as "net" for `self.net`. One that
                prepare_qat made is trained on as it is.
            config: as prepare_qat takes it.
            example_inputs: likewise.
            round: as PhaseSchedule takes it, like the next two.
            freeze_ranges: learned scales have no gradient from then on, which DDP has to be told
                (strategy="ddp_find_unused_parameters_true").
            freeze_batch_norm: normalise with running statistics from then on.
            interval: what is counted, epochs or `trainer.global_step`.

        Raises:
            ConfigError: no path, phases that are not in this order, or another interval.
        """
        if not network:
            raise ConfigError(
                "a LightningModule is no network alone: it also knows how to train.\n"
                "What to do: put its layers into a module of their own, and name that."
            )
        if interval not in ("epoch", "step"):
            raise ConfigError(f"interval is 'epoch' or 'step', got {interval!r}")
        self.network, self.config, self.example_inputs = network, config, example_inputs
        self.plan = PhasePlan(round, freeze_ranges, freeze_batch_norm)
        self.interval = interval
        self.quantized: fx.GraphModule | None = None
        self._prepared: fx.GraphModule | None = None  # what this callback made
        self._phase: Phase | None = None  # the last one that began in this fit
        self._seen: tuple[Any, Any] | None = None  # arguments of a call in training
        self._watching = ExitStack()  # the hook that waits for it

    # -------------------------------------------------------------------- before

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before anything else, whatever the trainer is to do: a checkpoint has to fit in.

        Raises:
            ConfigError: there is no such network, it cannot be taken out, or what it was prepared
                with is not what this callback was given.
            CaptureError, UnsupportedOperatorError: as prepare_qat does.
        """
        net = self._find(pl_module)
        inner, _ = unwrap(net)  # it may be compiled
        if isinstance(inner, fx.GraphModule) and stage_of(inner) is Stage.FAKE_QUANT:
            self._refuse_settings(inner)
            return
        if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            raise ConfigError(
                f"this strategy trains in processes of its own, and '{self.network}' would come "
                "back from them without its quantizers.\nWhat to do: strategy='ddp', or, before "
                f"trainer.fit, module.{self.network} = fxquant.prepare_qat(module.{self.network})."
            )
        self._refuse_sharing(pl_module, net)
        self._prepared = prepare_qat(net, self.example_inputs, self.config)
        pl_module.set_submodule(self.network, self._prepared)

    def _find(self, pl_module: LightningModule) -> nn.Module:
        try:
            return pl_module.get_submodule(self.network)
        except AttributeError as error:
            names = ", ".join(f"'{name}'" for name, _ in pl_module.named_children())
            raise ConfigError(
                f"{type(pl_module).__name__} has no network '{self.network}' when training is set "
                f"up; it holds {names or 'no modules'}.\nWhat to do: name one, and make it in "
                "__init__; layers of the LightningModule itself go into a module of their own."
            ) from error

    def _refuse_settings(self, net: fx.GraphModule) -> None:
        if net is self._prepared or (self.config is None and self.example_inputs is None):
            return
        raise ConfigError(
            f"'{self.network}' is prepared already: this config, or these example inputs, would be "
            "for nothing.\nWhat to do: leave them out to train it on, or begin with a network in "
            "float."
        )

    def _refuse_sharing(self, pl_module: LightningModule, net: nn.Module) -> None:
        """What the rest of the module shares with the network would not be shared with a copy."""
        inside = {id(tensor) for tensor in (*net.parameters(), *net.buffers())}
        everywhere = (
            *pl_module.named_parameters(remove_duplicate=False),
            *pl_module.named_buffers(remove_duplicate=False),
        )
        for path, tensor in everywhere:
            if id(tensor) in inside and not path.startswith(f"{self.network}."):
                raise ConfigError(
                    f"'{path}' is also in '{self.network}', which is replaced by a prepared copy: "
                    "the two would part.\nWhat to do: give both one module, and name that; or, in "
                    f"__init__, prepare '{self.network}' before '{path}' is made of it."
                )

    # -------------------------------------------------------------------- in training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the arguments of the first call, to verify with.

        Raises:
            ConfigError: the network is in eval().
            StageError: something has put another one in its place.
        """
        self._phase = self._seen = None
        net = self._net(pl_module)
        if not net.training:  # the trainer leaves modes as they are, and so would the loss fail
            raise ConfigError(
                f"'{self.network}' is in eval(), where it computes on integers and has no "
                "gradient.\nWhat to do: module.train() before trainer.fit."
            )
        hook = net.register_forward_pre_hook(self._keep, with_kwargs=True)
        self._watching.callback(hook.remove)

    def _keep(self, net: nn.Module, *arguments: Any) -> None:
        self._seen = arguments_apart(arguments)
        self._watching.close()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The phase of this epoch. Raises UncalibratedError as set_phase does."""
        if self.interval == "epoch":
            self._let_begin(pl_module, self.plan.after(trainer.current_epoch))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The phase of this step. Raises UncalibratedError as set_phase does."""
        if self.interval == "step":
            self._let_begin(pl_module, self.plan.after(trainer.global_step))

    def _let_begin(self, pl_module: LightningModule, phase: Phase) -> None:
        if phase != self._phase:
            set_phase(self._net(pl_module), phase)
            self._phase = phase

    def _net(self, pl_module: LightningModule) -> fx.GraphModule:
        """The network, which nobody has replaced since it was prepared."""
        net, _ = unwrap(pl_module.get_submodule(self.network))
        need_prepared(net, f"QuantizationAwareTraining of '{self.network}'")
        assert isinstance(net, fx.GraphModule)
        return net

    # -------------------------------------------------------------------- behind

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Convert, and compare on what the network was first called with.

        Raises: as convert does; VerifyError where the two differ.
        """
        self._watching.close()
        net = self._net(pl_module)
        if is_sharded(net):
            rank_zero_warn(
                f"'{self.network}' is sharded, hence not converted: load its checkpoint into a "
                "module that is whole, and convert that"
            )
            return
        self.quantized = convert(net)
        if self._seen is None:
            rank_zero_warn(
                f"'{self.network}' was not called in this fit: what it converted to is not verified"
            )
            return
        if not equal_in_eval(net, self.quantized, *self._seen):
            raise VerifyError(
                f"'{self.network}' and what it converted to differ on a batch of this fit.\n"
                "What to do: this is a bug in fxquant; please report it with the network."
            )
        self._seen = None
