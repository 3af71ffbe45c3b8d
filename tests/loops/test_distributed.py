"""Training on two processes, with torch.distributed and nothing of our own (torchrun, gloo)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import fxquant

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed, gloo"
)
ROOT = Path(__file__).parents[2]


def torchrun(case, folder, *, processes=2):
    """What rank 0 wrote."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), "-m", "tests.loops.distributed"),
            *(case, str(folder)),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(folder / "result")


def test_statistics_of_two_processes_are_those_of_one_on_the_joined_batches(tmp_path):
    """Exactly: the smallest of two smallest values is the smallest. Batches are uneven."""
    from tests.loops.distributed import FOLDED, joined, ranges
    from tests.loops.nets import net

    found = torchrun("statistics", tmp_path)["ranges"]
    prepared = fxquant.prepare_qat(net(), config=FOLDED).train()
    for x, _ in joined():
        prepared(x)
    expected = ranges(prepared)
    assert len(expected) > 10
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one_up_to_the_order_of_sums(tmp_path):
    from tests.loops.distributed import FOLDED, joined
    from tests.loops.nets import net

    found = torchrun("ddp", tmp_path)
    prepared = fxquant.prepare_qat(net(), config=FOLDED).train()
    x, y = joined()[0]
    F.cross_entropy(prepared(x), y).backward()
    for name, parameter in prepared.named_parameters():
        torch.testing.assert_close(found["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-6)
    assert found["integers"].isfinite().all()


def test_fully_sharded_it_trains_and_converts(tmp_path):
    found = torchrun("fsdp", tmp_path)
    assert found["sharded"] == "DTensor"
    assert found["losses"][-1] < found["losses"][0]
    assert "get_model_state_dict with full_state_dict=True" in found["refused"]
    assert found["equal"]


def gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@pytest.mark.skipif(gpus() < 1, reason="needs a CUDA GPU")
def test_on_a_gpu_it_trains_and_converts():
    from tests.loops.nets import data, net

    x, y = (part.cuda() for part in data())
    prepared = fxquant.prepare_qat(net().cuda()).train()
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(prepared(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    quantized = fxquant.convert(prepared)
    on_gpu = quantized(x)
    assert torch.equal(on_gpu, prepared.eval()(x))
    on_cpu = quantized.cpu()(x.cpu())
    assert torch.equal(on_cpu, on_gpu.cpu())
    assert torch.equal(on_cpu, prepared.cpu()(x.cpu()))


@pytest.mark.skipif(gpus() < 2, reason="needs two CUDA GPUs: SyncBatchNorm runs on no CPU")
def test_synchronized_batch_norms_agree(tmp_path):
    found = torchrun("synchronized", tmp_path)
    assert found["equal"]
