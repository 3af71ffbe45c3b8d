"""Quantize a small network: train in float, fine-tune with fake-quants, convert to integers.

    python examples/01_quickstart.py     # reads scikit-learn's digits: pip install scikit-learn

It stands alone, to be copied as it is; the other examples share data and loop in handwriting.py.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import fxquant


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Handwritten digits: images [1797, 1, 8, 8] in [0, 1], and what they show."""
    data = load_digits()
    return torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """Any loop will do; this one knows nothing of quantization."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images that the model reads right."""
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == labels).float().mean())


def main() -> None:
    """Train, quantize, compare."""
    torch.manual_seed(0)
    images, labels = digits()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )
    train(model, images[:1400], labels[:1400], epochs=12)

    prepared = fxquant.prepare_qat(model)  # a copy; `model` is untouched
    train(prepared, images[:1400], labels[:1400], epochs=3)
    quantized = fxquant.convert(prepared)  # integers; `prepared` could train on

    held_out = images[1400:]
    for name, net in (("float", model), ("prepared", prepared), ("integers", quantized)):
        print(f"{name:9} {accuracy(net, held_out, labels[1400:]):.4f}")
    print("equal    ", torch.equal(quantized(held_out), prepared.eval()(held_out)))
    print(fxquant.explain(prepared))


if __name__ == "__main__":
    main()
