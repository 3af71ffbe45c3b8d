"""A fit of Lightning on each of several processes; torchrun starts it.

    torchrun --nproc-per-node 2 -m tests.integrations.parallel <strategy> <folder>

Rank 0 writes whether the ranks agree and the integers are those of eval().
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from fxquant import LSQ, QuantConfig
from fxquant.integrations.lightning import QuantizationAwareTraining
from tests.integrations.modules import Classifier, loader, trainer
from tests.loops.nets import data, state_hash


def main(strategy: str, folder: Path) -> None:
    torch.set_num_threads(1)
    config = QuantConfig(fake_quant=LSQ(), batch_norm="fold")
    callback = QuantizationAwareTraining("net", config, round=1, freeze_ranges=2)
    module = Classifier()
    fit = trainer(callback, strategy=strategy, devices=2, max_epochs=3)
    fit.fit(module, loader(), loader())
    x, _ = data(32, seed=5)
    digests: list[str | None] = [None, None]
    dist.all_gather_object(digests, state_hash(module.net.state_dict()))
    equal = torch.equal(callback.quantized(x), module.eval()(x))
    if fit.is_global_zero:
        torch.save({"agree": len(set(digests)) == 1, "equal": equal}, folder / "result")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
