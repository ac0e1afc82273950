"""Lightning, Accelerate, skorch and transformers around each optimizer, beside the plain loop.

    pip install '.[frameworks]' && python bench/frameworks.py

Lightning, Accelerate and skorch must end at the parameters of the plain loop, bit for bit; a
Trainer must lower the loss of a small BERT. The loops themselves, without the libraries, are in the
tests.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import skorch
import torch
import tyro
from accelerate import Accelerator
from problems.training_loops import OPTIMIZERS, STEPS, Kind, Run, closure, plain
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from natgrad.curvature.metrics import cross_entropy
from natgrad.optim import KFAC, HessianFree, NaturalGradient

OUT = Path(__file__).parent / "results" / "frameworks.json"
PACKAGES = ("lightning", "accelerate", "skorch", "transformers", "torch")


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(64) % 3


class Module(lightning.LightningModule):  # type: ignore[misc]
    """A run whose loop Lightning writes, or whose ``manual`` optimisation it wraps."""

    def __init__(self, kind: Kind, manual: bool) -> None:
        super().__init__()
        self.automatic_optimization = not manual
        self.net = network()
        self.run = Run(kind, self.net, *batch())

    def training_step(self, _: Any, index: int) -> Tensor | None:
        loss = self.run.loss()
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        return self.run.optimizer


def by_lightning(kind: Kind, manual: bool) -> nn.Module:
    module = Module(kind, manual)
    lightning.Trainer(
        max_epochs=STEPS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, DataLoader(TensorDataset(*batch()), batch_size=64))  # fmt: skip
    return module.net


def by_accelerate(kind: Kind) -> nn.Module:
    run, accelerator = Run(kind, network(), *batch()), Accelerator(cpu=True)
    run.call, run.optimizer = accelerator.prepare(run.model, run.optimizer)

    def backward() -> Tensor:
        run.optimizer.zero_grad()
        loss = run.loss()
        accelerator.backward(loss)
        return loss

    run.steps(lambda: run.step(backward))
    return run.model


def by_skorch(kind: Kind) -> nn.Module:
    x, t = batch()

    class Net(skorch.NeuralNet):  # type: ignore[misc]
        def initialize_optimizer(self, *_: Any, **__: Any) -> Net:
            # skorch makes its optimizer of parameters; one of curvature takes the module.
            self.optimizer_ = kind.make(self.module_)
            return self

        def get_loss(self, outputs: Tensor, targets: Tensor, *_: Any, **__: Any) -> Tensor:
            run = Run(kind, self.module_, x, targets, self.optimizer_, call=lambda _: outputs)
            return run.loss()

    net = Net(
        network, criterion=nn.CrossEntropyLoss, max_epochs=STEPS, batch_size=len(x),
        train_split=None, verbose=0,
    )  # fmt: skip
    net.fit(x, t)
    trained: nn.Module = net.module_
    return trained


def beside(act: Callable[[], nn.Module], kind: Kind, loop: Callable[[Run], None]) -> str:
    """The largest difference from the plain loop, or the error's first sentence."""
    try:
        found = act()
    except TypeError as error:
        return str(error).split(":")[0]
    reference = Run(kind, network(), *batch())
    loop(reference)
    pairs = zip(found.parameters(), reference.model.parameters(), strict=True)
    return f"{max(float((a - b).abs().max()) for a, b in pairs):.1e}"


class Sentences(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.words = torch.randint(50, (32, 8), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.words[index], "labels": self.words[index].sum() % 3}


TRAINED: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "NaturalGradient": lambda m: NaturalGradient(
        m, likelihood=lambda outputs: Categorical(logits=outputs.logits)
    ),
    "HessianFree": lambda m: HessianFree(m, loss=lambda outputs: cross_entropy(outputs.logits)),
    "KFAC": lambda m: KFAC(m, likelihood=lambda outputs: Categorical(logits=outputs.logits)),
}


def by_trainer(name: str) -> str:
    """A small BERT's loss before and after, in evaluation mode."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=16, num_labels=3,
        )
    )  # fmt: skip
    sentences = Sentences()
    labels = sentences.words.sum(1) % 3

    def loss() -> float:
        model.eval()
        with torch.no_grad():
            return float(model(sentences.words, labels=labels).loss)

    before = loss()
    optimizer = TRAINED[name](model)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=model,
            args=TrainingArguments(
                folder, num_train_epochs=4, per_device_train_batch_size=32, report_to=[],
                use_cpu=True, disable_tqdm=True, save_strategy="no", logging_strategy="no",
            ),
            train_dataset=sentences,
            optimizers=(optimizer, constant),
        ).train()  # fmt: skip
    return f"{before:.3f} to {loss():.3f}"


def main() -> None:
    """Run each framework with each optimizer, and write results/frameworks.json."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows = {}
    for name, kind in OPTIMIZERS.items():
        rows[name] = {
            "Lightning, automatic": beside(partial(by_lightning, kind, False), kind, closure),
            "Lightning, manual": beside(partial(by_lightning, kind, True), kind, plain),
            "Accelerate": beside(partial(by_accelerate, kind), kind, Run.steps),
            "skorch": beside(partial(by_skorch, kind), kind, closure),
            "Trainer, loss": by_trainer(name) if name in TRAINED else "",
        }
        print(name, rows[name])
    result = {"versions": {name: version(name) for name in PACKAGES}, "optimizers": rows}
    OUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
