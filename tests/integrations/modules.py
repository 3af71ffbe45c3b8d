"""A LightningModule as its users write one, and a trainer that keeps quiet."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import fxquant
from tests.loops.nets import data, net


class Classifier(pl.LightningModule):
    """`net` under any name, a metric, and hyper-parameters that are saved."""

    def __init__(self, network: nn.Module | None = None, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network"])
        self.net = net() if network is None else network
        self.accuracy = MulticlassAccuracy(3)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, _):
        x, y = batch
        self.accuracy(self(x), y)
        self.log("accuracy", self.accuracy)

    test_step = validation_step

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)]


def loader(count: int = 64, batch_size: int = 16) -> DataLoader:
    """The same batches every time."""
    return DataLoader(TensorDataset(*data(count)), batch_size)


def trainer(*callbacks, **options) -> pl.Trainer:
    """On the CPU, without a word; checkpoints only where asked for."""
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    defaults = {"max_epochs": 3, "accelerator": "cpu", "devices": 1}
    return pl.Trainer(
        callbacks=list(callbacks), **defaults | dict.fromkeys(quiet, False) | options
    )


def phases(module: pl.LightningModule) -> set[fxquant.Phase]:
    """Of all calls of its network."""
    sites = module.net.modules()
    return {site.phase for site in sites if hasattr(site, "phase")}
