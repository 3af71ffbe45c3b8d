"""The script of 04_existing_loop_float.py, and five lines: what it trains ends in integers.

    python examples/04_existing_loop_qat.py [epochs]
    diff examples/04_existing_loop_float.py examples/04_existing_loop_qat.py

The integers read what the last epoch read: eval() computes on them all along. From the eleventh
epoch on ranges stand still, so that the network gets used to those it ships with.
"""

import sys

import torch
import torch.nn.functional as F
from handwriting import accuracy, digits, network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxquant

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
torch.manual_seed(0)
known, held_out = digits()
loader = DataLoader(TensorDataset(*known), batch_size=64, shuffle=True)

model = fxquant.prepare_qat(network())
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
phases = fxquant.PhaseSchedule(model, freeze_ranges=10)

for epoch in range(epochs):
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels, label_smoothing=0.05)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    schedule.step()
    phases.step()
    print(f"epoch {epoch:2}  loss {loss:.3f}  read {accuracy(model, *held_out):.4f}")

model = fxquant.convert(model)
print(f"held-out digits read right: {accuracy(model, *held_out):.4f}")
