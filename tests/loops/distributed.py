"""What each rank of a distributed training does; torchrun starts it.

    torchrun --nproc-per-node 2 -m tests.loops.distributed <case> <folder>

Rank 0 writes what came of it into the folder, where the test compares it.
"""

import os
import sys
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fxquant
from tests.loops.nets import data, net, state_hash

X, Y = data(48)
FOLDED = fxquant.QuantConfig(batch_norm="fold")


def batches_of(rank: int) -> list[tuple[Tensor, Tensor]]:
    """Two uneven batches: 16 and 8 images on one rank, 8 and 16 on the other."""
    cuts = ((0, 16, 24), (24, 32, 48))[rank]
    return [(X[a:b], Y[a:b]) for a, b in pairwise(cuts)]


def joined() -> list[tuple[Tensor, Tensor]]:
    """The batches of both ranks, step by step, as one process would have them."""
    pairs = zip(batches_of(0), batches_of(1), strict=True)
    return [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in pairs]


def ranges(prepared: nn.Module) -> dict[str, Tensor]:
    """All that observers know, and what quantizers made of it."""
    kinds = (".observer.", ".scale", ".zero_point")
    return {n: v for n, v in prepared.named_buffers() if any(kind in n for kind in kinds)}


def statistics() -> dict[str, object]:
    """What observers see of fixed weights."""
    prepared = fxquant.prepare_qat(net(), config=FOLDED).train()
    parallel = DistributedDataParallel(prepared)
    for x, _ in batches_of(dist.get_rank()):
        parallel(x).sum().backward()
    return {"ranges": ranges(prepared)}


def ddp() -> dict[str, object]:
    """Training; the ranks agree, and the first gradients are those of the joined batch."""
    prepared = fxquant.prepare_qat(net(), config=FOLDED).train()
    parallel = DistributedDataParallel(prepared)
    optimizer = torch.optim.SGD(fxquant.parameter_groups(prepared), lr=0.05)
    gradients = {}
    for step, (x, y) in enumerate(batches_of(dist.get_rank())):
        optimizer.zero_grad()
        # every image weighs the same, however many this rank has: DDP averages over ranks
        total = F.cross_entropy(parallel(x), y, reduction="sum")
        (total * dist.get_world_size() / 24).backward()
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in prepared.named_parameters()}
        optimizer.step()
    same_everywhere(prepared)
    return {"gradients": gradients, "integers": fxquant.convert(prepared)(X)}


def fsdp() -> dict[str, object]:
    """Shards of all parameters; gathered at the end, they convert."""
    prepared = fxquant.prepare_qat(net()).train()
    fully_shard(prepared, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        for x, y in batches_of(dist.get_rank()):
            optimizer.zero_grad()
            loss = F.cross_entropy(prepared(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    sharded = type(prepared.get_parameter("4.weight")).__name__
    evaluated = prepared.eval()(X)
    try:
        fxquant.convert(prepared)
        refused = ""
    except fxquant.FxQuantError as error:
        refused = str(error)
    state = get_model_state_dict(prepared, options=StateDictOptions(full_state_dict=True))
    whole = fxquant.prepare_qat(net())
    whole.load_state_dict(state) if dist.get_rank() == 0 else None
    equal = dist.get_rank() != 0 or torch.equal(fxquant.convert(whole)(X), evaluated)
    return {"losses": losses, "sharded": sharded, "equal": equal, "refused": refused}


def same_everywhere(prepared: nn.Module) -> None:
    """Refuse ranks that hold different networks."""
    digests: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, state_hash(prepared.state_dict()))
    if len(set(digests)) > 1:
        raise RuntimeError("the ranks hold different networks")


def synchronized() -> dict[str, object]:
    """Live batch norms with the statistics of all ranks, on a GPU each."""
    device = torch.device("cuda", dist.get_rank())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net()).to(device)
    prepared = fxquant.prepare_qat(model).train()
    parallel = DistributedDataParallel(prepared, device_ids=[device.index])
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
    for x, y in batches_of(dist.get_rank()):
        optimizer.zero_grad()
        F.cross_entropy(parallel(x.to(device)), y.to(device)).backward()
        optimizer.step()
    same_everywhere(prepared)
    x = X.to(device)
    return {"equal": torch.equal(fxquant.convert(prepared)(x), prepared.eval()(x))}


CASES = {"statistics": statistics, "ddp": ddp, "fsdp": fsdp, "synchronized": synchronized}


def main(case: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if case == "synchronized" else "gloo")
    result = CASES[case]()
    if dist.get_rank() == 0:
        torch.save(result, folder / "result")
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(sys.argv[1], Path(sys.argv[2]))
