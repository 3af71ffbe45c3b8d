"""A training script as it stood before anybody thought of integers.

    python examples/04_existing_loop_float.py [epochs]

04_existing_loop_qat.py is the same script with fxquant in it: look at the two side by side.
"""

import sys

import torch
import torch.nn.functional as F
from handwriting import accuracy, digits, network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
torch.manual_seed(0)
known, held_out = digits()
loader = DataLoader(TensorDataset(*known), batch_size=64, shuffle=True)

model = network()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)

for epoch in range(epochs):
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels, label_smoothing=0.05)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    schedule.step()
    print(f"epoch {epoch:2}  loss {loss:.3f}  read {accuracy(model, *held_out):.4f}")

print(f"held-out digits read right: {accuracy(model, *held_out):.4f}")
