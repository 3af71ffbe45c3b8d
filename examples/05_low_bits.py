"""Quantize to 4, 3 and 2 bits, with learned steps, by labels alone and taught by the float network.

    python examples/05_low_bits.py [epochs] [seeds]

    images ──┬── the float network ──────── logits ──┐
             │                                       ├── how far apart, softened ──┐
             └── its copy of few bits ───── logits ──┤                             ├── loss
                                            labels ──┴── cross entropy ────────────┘

LSQ learns the step of each grid like any weight (arXiv:1902.08153). The float network is still
there, and says more of an image than its label does: distillation (arXiv:1503.02531).
"""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from handwriting import Digits, accuracy, digits, network, train
from torch import Tensor, fx, nn

import fxquant
from fxquant import LSQ, QuantConfig, QuantScheme

TEMPERATURE, SHARE = 4.0, 0.9  # how soft the teacher speaks, and its share of the loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of images, their logits and their labels


def few_bits(bits: int) -> QuantConfig:
    """So many bits in all but the first and the last layer, which decide most and cost least."""
    return QuantConfig(
        weight=QuantScheme(bits=bits, narrow=True, per_channel=True),
        activation=QuantScheme(bits=bits, signed=False, symmetric=False),
        fake_quant=LSQ(),
        first_last_bits=8,
    )


def alone(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """What the labels say."""
    return F.cross_entropy(logits, labels)


def taught_by(teacher: nn.Module) -> Loss:
    """Mostly what the teacher says: T²·KL(teacher || student) of softened distributions."""

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            said = teacher.eval()(images)
        soft = [F.log_softmax(each / TEMPERATURE, 1) for each in (logits, said)]
        apart = TEMPERATURE**2 * F.kl_div(*soft, log_target=True, reduction="batchmean")
        return SHARE * apart + (1 - SHARE) * F.cross_entropy(logits, labels)

    return loss


def tune(prepared: fx.GraphModule, known: Digits, epochs: int, loss: Loss) -> None:
    """A short training from the float weights. Each step of a grid learns at a hundredth of what it
    is, since Adam would move all by the same; the first batch says what they are.
    """
    images, labels = known
    prepared.train()(images[:64])
    groups = fxquant.parameter_groups(prepared, grid_rate=0.01)
    optimizer = torch.optim.AdamW(groups, lr=5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            loss(images[batch], prepared(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()


def main(epochs: int = 10, seeds: int = 3) -> None:
    """Each number of bits, both ways, from the same float networks; means over seeds."""
    known, held_out = digits()
    teachers, equal = [], True
    for seed in range(seeds):
        torch.manual_seed(seed)
        teachers.append(network())
        train(teachers[-1], *known, 2 * epochs)
    mean = sum(accuracy(teacher, *held_out) for teacher in teachers) / seeds
    print(f"float     {mean:.4f}\n\n          labels   teacher and labels")
    for bits in (4, 3, 2):
        means = []
        for way in (lambda teacher: alone, taught_by):
            read = 0.0
            for seed, teacher in enumerate(teachers):
                torch.manual_seed(seed)
                prepared = fxquant.prepare_qat(teacher, config=few_bits(bits))
                tune(prepared, known, epochs, way(teacher))
                quantized = fxquant.convert(prepared)
                read += accuracy(quantized, *held_out) / seeds
                equal &= torch.equal(quantized(held_out[0]), prepared.eval()(held_out[0]))
            means.append(read)
        print(f"{bits} bits    {means[0]:.4f}   {means[1]:.4f}", flush=True)
    print("equal    ", equal)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
