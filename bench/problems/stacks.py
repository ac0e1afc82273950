"""Losses and networks as people train them, at a size at which twenty steps of anything are quick.

A :class:`Stack` names what an optimizer needs of one: the network, its batches, the loss, the
likelihood. Those of libraries are in ``library_stacks``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal
from torch.nn import functional as F

Likelihood = Callable[[Any], Any] | str
Loss = Callable[[Any, int], Tensor]


@dataclass(frozen=True)
class Stack:
    """A network with ``loss(model, i)``, that of batch i, and the likelihood of its outputs.

    ``residuals(model, i)``, given where squared errors are not those of the outputs alone.
    """

    model: nn.Module
    loss: Loss
    likelihood: Likelihood
    residuals: Loss | None = None


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = noise(96, 6)
LABELS = (noise(6, 4, seed=1).T @ X.T).argmax(0)
SIGNS = (noise(6, 3, seed=2).T @ X.T > 0).T.float()
VALUES = torch.sin(X @ noise(6, 2, seed=3))


def _rows(i: int) -> slice:
    return slice(32 * (i % 3), 32 * (i % 3) + 32)


def _network(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, outputs))


def _of(criterion: Callable[..., Tensor], target: Tensor) -> Loss:
    return lambda model, i: criterion(model(X[_rows(i)]), target[_rows(i)])


def _classes(criterion: Callable[..., Tensor]) -> Stack:
    return Stack(_network(4), _of(criterion, LABELS), "categorical")


def _bits(criterion: Callable[..., Tensor]) -> Stack:
    return Stack(_network(3), _of(criterion, SIGNS), "bernoulli")


def _numbers(criterion: Callable[..., Tensor]) -> Stack:
    return Stack(_network(2), _of(criterion, VALUES), "normal")


def focal(logits: Tensor, target: Tensor) -> Tensor:
    p = torch.softmax(logits, -1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return -((1 - p) ** 2 * p.log()).mean()


def _penalised() -> Stack:
    stack = _classes(F.cross_entropy)

    def loss(model: Any, i: int) -> Tensor:
        penalty: Tensor = sum(p.square().sum() for p in model.parameters())
        return stack.loss(model, i) + 1e-3 * penalty

    return Stack(stack.model, loss, stack.likelihood)


def _weighted_samples() -> Stack:
    weight = noise(96, 1, seed=4).square()

    def residuals(model: Any, i: int) -> Tensor:
        difference: Tensor = model(X[_rows(i)]) - VALUES[_rows(i)]
        return weight[_rows(i)].sqrt() * difference

    def loss(model: Any, i: int) -> Tensor:
        return residuals(model, i).square().mean()

    return Stack(_network(2), loss, "normal", residuals)


class TwoTasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
        self.kind, self.value = nn.Linear(16, 4), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        return {"kind": self.kind(h), "value": self.value(h)}


def _two_tasks() -> Stack:
    def loss(model: Any, i: int) -> Tensor:
        outputs = model(X[_rows(i)])
        return F.cross_entropy(outputs["kind"], LABELS[_rows(i)]) + F.mse_loss(
            outputs["value"], VALUES[_rows(i)]
        )

    def likelihood(outputs: Any) -> Any:
        return [Categorical(logits=outputs["kind"]), Independent(Normal(outputs["value"], 1.0), 1)]

    return Stack(TwoTasks(), loss, likelihood)


def _vae() -> Stack:
    class VAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8))
            self.decoder = nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 16))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mean, log_std = self.encoder(x).chunk(2, -1)
            z = mean + log_std.exp() * torch.randn_like(mean)
            return self.decoder(z), mean, log_std

    pictures = (noise(96, 3, seed=5) @ noise(3, 16, seed=6) > 0).float()

    def loss(model: Any, i: int) -> Tensor:
        x = pictures[_rows(i)]
        logits, mean, log_std = model(x)
        surprise = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        divergence = 0.5 * (mean**2 + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1)
        total: Tensor = surprise + divergence
        return total.mean()

    def likelihood(outputs: Any) -> Any:
        logits, mean, log_std = outputs
        return [
            Independent(Bernoulli(logits=logits), 1),
            Independent(Normal(mean, log_std.exp()), 1),
        ]

    return Stack(VAE(), loss, likelihood)


WORDS, LENGTH, BATCH = 12, 10, 16


def _sentences() -> Tensor:
    """Words that follow from the last one, but for some noise."""
    generator = torch.Generator().manual_seed(7)
    words = torch.randint(WORDS, (48, LENGTH + 1), generator=generator)
    for t in range(1, LENGTH + 1):
        known = torch.rand(48, generator=generator) < 0.8
        words[:, t] = torch.where(known, (words[:, t - 1] * 5 + 3) % WORDS, words[:, t])
    return words


SENTENCES = _sentences()


def categorical(outputs: Any) -> Categorical:
    return Categorical(logits=getattr(outputs, "logits", outputs))


def _language(model: nn.Module) -> Stack:
    """Next words, of a model that returns logits or something with ``.logits``."""

    def loss(model: Any, i: int) -> Tensor:
        words = SENTENCES[BATCH * (i % 3) : BATCH * (i % 3) + BATCH]
        logits = categorical(model(words[:, :-1])).logits
        return F.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten())

    return Stack(model, loss, categorical)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 12)
        self.rnn, self.head = kind(12, 16, batch_first=True), nn.Linear(16, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rnn(self.embedding(words))[0])
        return logits


class Attention(nn.Module):
    """One block. ``how``: plain softmax, torch's fused attention, or two heads that share keys."""

    def __init__(self, how: str, tied: bool = False, padded: bool = False) -> None:
        super().__init__()
        self.how, self.padded, size = how, padded, 16
        shared = 8 if how == "grouped" else size
        self.embedding, self.norm = nn.Embedding(WORDS, size), nn.LayerNorm(size)
        self.q, self.o = nn.Linear(size, size), nn.Linear(size, size)
        self.k, self.v = nn.Linear(size, shared), nn.Linear(size, shared)
        self.head = nn.Linear(size, WORDS, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
            nn.init.normal_(self.embedding.weight, std=0.2)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words)
        z = self.norm(x)
        q, k, v = (f(z).unflatten(-1, (-1, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        seen = torch.ones(words.shape[1], words.shape[1], dtype=torch.bool).tril()
        if self.padded:  # the first two words of a sentence are padding, seen by themselves only
            seen = seen & ((torch.arange(words.shape[1]) > 1) | torch.eye(words.shape[1]).bool())
        if self.how == "plain":
            scores = (q @ k.mT / 8**0.5).masked_fill(~seen, -torch.inf)
            mixed = scores.softmax(-1) @ v
        else:
            grouped = self.how == "grouped"
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=grouped)
        return self.head(x + self.o(mixed.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]


def _ctc() -> Stack:
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5))
    sound = noise(96, 8, 6, seed=8)
    letters = torch.randint(1, 5, (96, 3), generator=torch.Generator().manual_seed(9))

    def loss(model: Any, i: int) -> Tensor:
        log_probabilities = model(sound[_rows(i)]).log_softmax(-1).transpose(0, 1)
        lengths = torch.full((32,), 8), torch.full((32,), 3)
        return F.ctc_loss(log_probabilities, letters[_rows(i)], *lengths)

    return Stack(model, loss, categorical)


def stacks() -> Iterator[tuple[str, Callable[[], Stack]]]:
    """Those of torch alone, by name."""
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    yield "cross-entropy", lambda: _classes(F.cross_entropy)
    yield "class weights", lambda: _classes(nn.CrossEntropyLoss(weight=weights))
    yield "label smoothing", lambda: _classes(nn.CrossEntropyLoss(label_smoothing=0.1))
    yield "cross-entropy, sum", lambda: _classes(nn.CrossEntropyLoss(reduction="sum"))
    yield "focal loss", lambda: _classes(focal)
    yield "weight penalty", _penalised
    yield "binary cross-entropy", lambda: _bits(F.binary_cross_entropy_with_logits)
    yield "pos_weight", lambda: _bits(nn.BCEWithLogitsLoss(pos_weight=weights[:3]))
    yield "Huber", lambda: _numbers(F.huber_loss)
    yield "squared error", lambda: _numbers(F.mse_loss)
    yield "squared error, sum", lambda: _numbers(nn.MSELoss(reduction="sum"))
    yield "weighted samples", _weighted_samples
    yield "two tasks, a dict", _two_tasks
    yield "CTC", _ctc
    yield "VAE", _vae
    yield "LSTM", lambda: _language(Recurrent(nn.LSTM))
    yield "GRU", lambda: _language(Recurrent(nn.GRU))
    yield "attention, plain", lambda: _language(Attention("plain"))
    yield "attention, fused", lambda: _language(Attention("fused"))
    yield "attention, grouped", lambda: _language(Attention("grouped"))
    yield "attention, tied", lambda: _language(Attention("fused", tied=True))
    yield "attention, padded", lambda: _language(Attention("fused", padded=True))
