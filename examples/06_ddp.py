"""Train on two processes, each on its share of the digits; both end with the same integers.

    torchrun --nproc-per-node 2 examples/06_ddp.py [epochs]

    rank 0   its images ──┐                 ┌── the same ranges and gradients
                          ├── all-reduce ───┤
    rank 1   its images ──┘                 └── the same ranges and gradients

It is DistributedDataParallel as ever: observers agree by themselves, uneven batches included. On
GPUs, take "nccl" and nn.SyncBatchNorm.convert_sync_batchnorm(model) before prepare_qat; on CPUs
each rank's batch norms see its own batches, and rank 0 hands its statistics to the others.
"""

import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from handwriting import accuracy, digits, network
from torch import fx
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import fxquant


def tune(prepared: fx.GraphModule, data: TensorDataset, epochs: int) -> None:
    """A loop as it is without fxquant; each rank runs it."""
    parallel = DistributedDataParallel(prepared)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=32, sampler=sampler)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=5e-3)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        parallel.train()
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(parallel(images), labels).backward()
            optimizer.step()


def same_everywhere(prepared: fx.GraphModule) -> bool:
    """Whether all ranks hold the same parameters and ranges, bit for bit."""
    mine = [*prepared.parameters(), *(b for n, b in prepared.named_buffers() if "observer" in n)]
    flat = torch.cat([part.detach().flatten().float() for part in mine])
    all_ranks = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(all_ranks, flat)
    return all(torch.equal(flat, other) for other in all_ranks)


def main(epochs: int = 15) -> None:
    """What each process does."""
    if "RANK" not in os.environ:
        sys.exit(f"Start it with: torchrun --nproc-per-node 2 {sys.argv[0]}")
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    known, held_out = digits()
    prepared = fxquant.prepare_qat(network())
    tune(prepared, TensorDataset(*known), epochs)
    agree = same_everywhere(prepared)
    if dist.get_rank() == 0:
        quantized = fxquant.convert(prepared)
        print(f"held-out digits read right: {accuracy(quantized, *held_out):.4f}")
        print("all ranks agree", agree)
        print("equal    ", torch.equal(quantized(held_out[0]), prepared.eval()(held_out[0])))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
