"""Fine-tune a network of timm, with timm's optimizer, schedule and moving average.

    python examples/11_timm.py [epochs] [network]

    timm.create_model ── float ── prepare_qat ── observe ── train ── convert the average

The average is begun once every range has seen a batch: an average that starts from a range that
nobody has seen stays unknown. It needs fxquant[timm].
"""

import sys

import timm
import torch
import torch.nn.functional as F
from handwriting import accuracy, digits
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import fxquant


def enlarged(images: Tensor) -> Tensor:
    """[N, 1, 8, 8] to [N, 1, 32, 32]: timm's networks halve an image five times."""
    return F.interpolate(images, scale_factor=4)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """A loop as timm's own script has it; it knows nothing of quantization. Gives the average."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.01)
    schedule = CosineLRScheduler(optimizer, t_initial=epochs, lr_min=1e-5)
    average = ModelEmaV3(model, decay=0.9)
    for epoch in range(epochs):
        model.train()
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch], label_smoothing=0.1).backward()
            optimizer.step()
            average.update(model)
        schedule.step(epoch + 1)
    return average.module


def main(epochs: int = 6, name: str = "test_efficientnet") -> None:
    """Train in float, then with fake-quants; ship the average."""
    torch.manual_seed(0)
    (images, labels), (held_out, expected) = digits()
    images, held_out = enlarged(images), enlarged(held_out)
    model = timm.create_model(name, in_chans=1, num_classes=10)
    tuned = train(model, images, labels, 2 * epochs)
    print(f"float     {accuracy(tuned, held_out, expected):.4f}")

    prepared = fxquant.prepare_qat(tuned, images[:2])
    prepared.train()(images[:64])  # every range has seen a batch
    averaged = train(prepared, images, labels, epochs)
    quantized = fxquant.convert(averaged)
    print(f"integers  {accuracy(quantized, held_out, expected):.4f}")
    print("equal    ", torch.equal(quantized(held_out), averaged.eval()(held_out)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
