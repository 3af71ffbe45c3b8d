"""A training that writes a checkpoint after every step and goes on from the last one.

    python -m tests.loops.resumed <checkpoint> <steps> <how scales move>

Prints the step it starts from, each step when it is done, and at the end a digest of all states.
"""

import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import fxquant
from tests.loops.nets import data, net, state_hash

KINDS = {"observed": fxquant.StraightThrough(), "learned": fxquant.LSQ()}


def main(path: Path, steps: int, kind: str) -> None:
    torch.manual_seed(0)
    x, y = data()
    prepared = fxquant.prepare_qat(net(), config=fxquant.QuantConfig(fake_quant=KINDS[kind]))
    prepared.train()
    optimizer = torch.optim.Adam(fxquant.parameter_groups(prepared), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    phases = fxquant.PhaseSchedule(
        prepared, round=2, freeze_ranges=steps - 4, freeze_batch_norm=steps - 2
    )
    if path.exists():
        state = torch.load(path, weights_only=True)
        for part, name in ((prepared, "model"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(state[name])
        phases.load_state_dict(state["phases"])
        torch.set_rng_state(state["random"])
    print("from", phases.steps, flush=True)
    while phases.steps < steps:
        batch = torch.randperm(len(x))[:32]
        optimizer.zero_grad()
        F.cross_entropy(F.dropout(prepared(x[batch]), 0.1), y[batch]).backward()
        optimizer.step()
        schedule.step()
        phases.step()
        parts = {"model": prepared, "optimizer": optimizer, "schedule": schedule, "phases": phases}
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"random": torch.get_rng_state()}, beside := path.with_suffix(".part"))
        os.replace(beside, path)
        print("done", phases.steps, flush=True)
    integers = fxquant.convert(prepared)(x)
    print("digest", state_hash(prepared.state_dict(), optimizer.state_dict(), integers), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
