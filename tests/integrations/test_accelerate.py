"""A loop of Hugging Face Accelerate needs nothing of ours: it prepares, saves and resumes.

On two processes it is examples/10_accelerate.py, which tests/test_examples.py launches.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import fxquant
from fxquant import LSQ, QuantConfig
from tests import laws
from tests.loops.nets import data, net, state_hash

accelerate = pytest.importorskip("accelerate", reason="accelerate is in the extra `accelerate`")

X, Y = data(32, seed=5)
CONFIGS = {"observed": QuantConfig(), "learned": QuantConfig(fake_quant=LSQ())}


@pytest.fixture(autouse=True)
def nobody_else():
    """Accelerate knows one accelerator a process."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


class Loop:
    """As a user writes it, with all that Accelerate offers."""

    def __init__(self, config=None, **options):
        self.accelerator = accelerate.Accelerator(cpu=True, **options)
        prepared = fxquant.prepare_qat(net(), config=config)
        optimizer = torch.optim.AdamW(fxquant.parameter_groups(prepared), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        self.phases = fxquant.PhaseSchedule(prepared, round=1, freeze_ranges=3)
        self.accelerator.register_for_checkpointing(self.phases)
        loader = DataLoader(TensorDataset(*data()), 16)
        self.model, self.optimizer, self.schedule, self.loader = self.accelerator.prepare(
            prepared, optimizer, schedule, loader
        )

    def train(self, epochs):
        losses = []
        for _ in range(epochs):
            self.model.train()
            for x, y in self.loader:
                with self.accelerator.accumulate(self.model):
                    loss = F.cross_entropy(self.model(x), y)
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                    self.optimizer.step()
                    self.schedule.step()
                    self.optimizer.zero_grad()
                losses.append(loss.item())
            self.phases.step()
        return losses

    @property
    def states(self):
        return state_hash(self.model.state_dict(), self.optimizer.state_dict())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_it_trains_and_converts(config, precision):
    loop = Loop(config, mixed_precision=precision, gradient_accumulation_steps=2)
    losses = loop.train(4)
    assert sum(losses[-4:]) < sum(losses[:4])
    trained = loop.accelerator.unwrap_model(loop.model)
    quantized = fxquant.convert(trained)
    laws.assert_equal(quantized(X), trained.eval()(X))
    plain = loop.accelerator.unwrap_model(loop.model, keep_fp32_wrapper=False)
    laws.assert_equal(quantized(X), plain(X))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("safe", [True, False])
def test_saved_and_loaded_it_goes_on_bit_for_bit(config, safe, tmp_path):
    loop = Loop(config)
    loop.train(2)
    loop.accelerator.save_state(tmp_path, safe_serialization=safe)
    loop.train(2)
    nobody = accelerate.state.AcceleratorState
    nobody._reset_state(reset_partial_state=True)
    again = Loop(config)
    again.accelerator.load_state(tmp_path)
    assert again.phases.steps == 2
    again.train(2)
    assert again.states == loop.states
