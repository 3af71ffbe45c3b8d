"""Train in a loop of Hugging Face Accelerate; the prepared network is a model like any other.

    accelerate launch examples/10_accelerate.py [epochs]
    accelerate launch --cpu --num_processes 2 examples/10_accelerate.py [epochs]

    prepare_qat ── accelerator.prepare ── your loop ── accelerator.unwrap_model ── convert

Prepare it first: what accelerator.prepare returns may be a wrapper, and the optimizer has to know
the parameters that train. It needs fxquant[accelerate], and for the accuracy torchmetrics.
"""

import sys

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from handwriting import digits, network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import fxquant


def accuracy(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
    """The share of all ranks' images that the model reads right; each is counted once."""
    metric = MulticlassAccuracy(10, average="micro", sync_on_compute=False)
    metric.to(accelerator.device)
    model.eval()
    for images, labels in loader:
        with torch.no_grad():
            found = model(images)
        metric.update(*accelerator.gather_for_metrics((found, labels)))
    return float(metric.compute())


def main(epochs: int = 12) -> None:
    """What each process does."""
    accelerator = Accelerator(gradient_accumulation_steps=2)
    set_seed(0)
    known, held_out = (TensorDataset(*part) for part in digits())
    prepared = fxquant.prepare_qat(network())
    optimizer = torch.optim.AdamW(fxquant.parameter_groups(prepared), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(known) // 64)
    phases = fxquant.PhaseSchedule(prepared, freeze_ranges=epochs - 1, freeze_batch_norm=epochs - 1)
    accelerator.register_for_checkpointing(phases)  # accelerator.save_state takes them along
    model, optimizer, schedule, loader, test_loader = accelerator.prepare(
        prepared, optimizer, schedule,
        DataLoader(known, batch_size=32, shuffle=True), DataLoader(held_out, batch_size=128),
    )  # fmt: skip
    for epoch in range(epochs):
        model.train()
        for images, labels in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(images), labels))
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        phases.step()
        share = accuracy(accelerator, model, test_loader)
        accelerator.print(f"epoch {epoch}: {share:.4f} of the held-out digits read right")

    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(model).eval()
        quantized = fxquant.convert(trained)
        images = held_out.tensors[0].to(accelerator.device)
        print("equal    ", torch.equal(quantized(images), trained(images)))
    accelerator.end_training()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
