"""Search a cell with DARTS, in float and with fake-quants, and take what is found to integers.

    python examples/03_search.py [epochs]

    float       search network ── search ── genotype ── final network ── train
    quantized   the same, with prepare_qat before search and train, and convert at the end

    search      half of the images ── weights step ─┐
                                                    ├─ in turn
                the other half ────── alphas step ──┘

First order: the alphas step at the weights as they are now. (DARTS, arXiv:1806.09055)
The loops do not know which of the two they train. In the quantized search every candidate rounds
as it will in integers, so that the alphas weigh operations by what is left of them.
"""

import sys

import torch
import torch.nn.functional as F
from handwriting import accuracy, digits
from torch import nn

import fxquant
from fxquant.darts import Genotype, NetworkCIFAR, SearchNetwork

PRIMITIVES = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3")
BATCH = 64


def search(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> Genotype:
    """The bilevel loop: neither half ever trains what the other one does."""
    weights = torch.optim.SGD(model.weight_parameters(), lr=0.1, momentum=0.9, weight_decay=3e-4)
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
    return model.genotype()  # the model's own method, also on the prepared one


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


def compare(left: Genotype, right: Genotype) -> None:
    """Two genotypes side by side: what each state reads, and through which operation."""
    print(f"\n{'cell':6} state   {'float':22}quantized")
    for cell in ("normal", "reduce"):
        edges, others = getattr(left, cell), getattr(right, cell)
        for i in range(0, len(edges), 2):  # two edges into each state
            pairs = (sorted(two[i : i + 2], key=lambda edge: edge[1]) for two in (edges, others))
            for a, b in zip(*pairs, strict=True):
                mark = "" if a == b else "   differs"
                print(f"{cell:6} {2 + i // 2:5}   {a[0]:14} of {a[1]}   {b[0]:14} of {b[1]}{mark}")


def main(epochs: int = 6) -> None:
    """Search twice from the same start, then train what each search found."""
    known, held_out = digits()

    torch.manual_seed(0)
    model = SearchNetwork(4, 10, 3, nodes=2, primitives=PRIMITIVES, in_channels=1)
    prepared = fxquant.prepare_qat(model)  # a copy: its weights and alphas are parameters, too
    genotypes = []
    for name, net in (("float", model), ("quantized", prepared)):
        print(f"{name} search")
        torch.manual_seed(1)
        genotypes.append(search(net, *known, epochs))
    compare(*genotypes)

    torch.manual_seed(2)
    final = NetworkCIFAR(6, 10, 3, genotypes[0], in_channels=1)
    train(final, *known, epochs + 2)
    torch.manual_seed(2)
    prepared_final = fxquant.prepare_qat(NetworkCIFAR(6, 10, 3, genotypes[1], in_channels=1))
    train(prepared_final, *known, epochs + 2)
    quantized = fxquant.convert(prepared_final)

    nets = (model, prepared, final, prepared_final, quantized)
    print("\nheld-out digits   float    quantized")
    print(
        "search network    {:.4f}   {:.4f}\nfinal network     {:.4f}   {:.4f}\n"
        "in integers                {:.4f}".format(*(accuracy(net, *held_out) for net in nets))
    )
    print("equal    ", torch.equal(quantized(held_out[0]), prepared_final.eval()(held_out[0])))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
