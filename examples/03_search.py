"""Search a cell with DARTS, derive its genotype, and train the network that it names; in float.

    python examples/03_search.py

    half of the images ── weights step ─┐
                                        ├─ in turn ── genotype ── final network, from scratch
    the other half ────── alphas step ──┘

First order: the alphas step at the weights as they are now. (DARTS, arXiv:1806.09055)
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from fxquant.darts import Genotype, NetworkCIFAR, SearchNetwork

PRIMITIVES = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3")
BATCH = 64


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Handwritten digits: images [1797, 1, 8, 8] in [0, 1], and what they show."""
    data = load_digits()
    return torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)


def search(images: torch.Tensor, labels: torch.Tensor, epochs: int) -> Genotype:
    """The bilevel loop: neither half ever trains what the other one does."""
    model = SearchNetwork(4, 10, 3, nodes=2, primitives=PRIMITIVES, in_channels=1)
    weights = torch.optim.SGD(
        model.weight_parameters(), lr=0.1, momentum=0.9, weight_decay=3e-4
    )
    alphas = torch.optim.Adam(
        model.arch_parameters(), lr=1e-2, betas=(0.5, 0.999), weight_decay=1e-3
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(weights, epochs, eta_min=1e-3)
    halves = torch.randperm(len(images)).chunk(2)
    for epoch in range(epochs):
        model.train()
        train, validation = (half[torch.randperm(len(half))].split(BATCH) for half in halves)
        for train_batch, validation_batch in zip(train, validation, strict=True):
            alphas.zero_grad()
            F.cross_entropy(model(images[validation_batch]), labels[validation_batch]).backward()
            alphas.step()

            weights.zero_grad()  # which the backward for the alphas has filled, too
            F.cross_entropy(model(images[train_batch]), labels[train_batch]).backward()
            nn.utils.clip_grad_norm_(model.weight_parameters(), 5.0)
            weights.step()
        schedule.step()
        read = accuracy(model, images[halves[1]], labels[halves[1]])
        print(f"epoch {epoch:2}  on the other half {read:.4f}")
    return model.genotype()


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """Any loop will do."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images that the model reads right."""
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == labels).float().mean())


def main() -> None:
    """Search on all but the held-out images, then build and train what was found."""
    torch.manual_seed(0)
    images, labels = digits()
    genotype = search(images[:1400], labels[:1400], epochs=6)
    print(genotype)

    final = NetworkCIFAR(6, 10, 3, genotype, in_channels=1)
    train(final, images[:1400], labels[:1400], epochs=8)
    print(f"final     {accuracy(final, images[1400:], labels[1400:]):.4f}")


if __name__ == "__main__":
    main()
