"""Quantize a LightningModule: one callback prepares, leads through the phases, converts, verifies.

    pip install 'fxquant[lightning,see]'
    python examples/09_lightning.py [epochs] [folder]
    tensorboard --logdir folder       # loss, accuracy, and how scales and ranges moved

    Trainer(callbacks=[QuantizationAwareTraining("net", …)]).fit(module)
"""

import sys

import torch
import torch.nn.functional as F
from handwriting import digits, network
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import fxquant
from fxquant.integrations.lightning import QuantizationAwareTraining


class Reader(LightningModule):
    """As it was before: but for `TrainingLog`, which is there to look at, it knows no integers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss of a batch."""
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Prepared networks compute on integers here."""
        images, labels = batch
        self.accuracy(self.net(images), labels)
        self.log("accuracy", self.accuracy)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The callback has prepared the network by now: these are the parameters of its copy."""
        return torch.optim.Adam(fxquant.parameter_groups(self.net), lr=5e-3)

    def on_train_start(self) -> None:
        """Write scales, ranges and saturation to TensorBoard, every tenth step."""
        self.watch = fxquant.TrainingLog(self.net, self.logger.experiment, every=10)

    def on_train_batch_end(self, *_: object) -> None:
        """After each step."""
        self.watch.step(self.global_step)

    def on_train_end(self) -> None:
        """Let go of the network."""
        self.watch.close()


def main(epochs: str = "15", folder: str = "lightning_logs") -> None:
    """Fit, test in integers, compare."""
    seed_everything(0, verbose=False)
    known, held_out = digits()
    training = DataLoader(TensorDataset(*known), batch_size=64, shuffle=True)
    testing = DataLoader(TensorDataset(*held_out), batch_size=256)

    module = Reader()
    qat = QuantizationAwareTraining("net", freeze_ranges=10, freeze_batch_norm=13)
    trainer = Trainer(
        max_epochs=int(epochs),
        callbacks=[qat],
        logger=TensorBoardLogger(folder, name=None),
        accelerator="cpu",
        log_every_n_steps=10,
    )
    trainer.fit(module, training, testing)
    trainer.test(module, testing)

    images = held_out[0]
    print("equal    ", torch.equal(qat.quantized(images), module.eval().net(images)))


if __name__ == "__main__":
    main(*sys.argv[1:])
