"""Deep autoencoders after Hinton & Salakhutdinov 2006 and Martens 2010: curves and digits.

The task of Martens, *Deep learning via Hessian-free optimization*, ICML 2010: sigmoid layers, a
linear code, logits of the pixels. Trained on the cross-entropy, judged by the squared error.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 28
MARGIN = 2.0  # pixels
PEN = 0.8  # pixels: the standard deviation of a stroke's profile
STROKE_POINTS = 128
CHUNK = 2_000


def curves(count: int, seed: int) -> Tensor:
    """Images (count, 784) in [0, 1], float32: one cubic Bézier curve each, of uniform controls.

    A pixel holds min(1, ∫ exp(−dist² / 2 PEN²) ds / (PEN √2π)), the integral along the curve: 1 on
    a straight stroke. The Gaussian factors into columns and rows, so that an image is a product of
    two matrices (28, points) and (points, 28).
    """
    generator = torch.Generator().manual_seed(seed)
    controls = torch.rand(count, 4, 2, generator=generator)
    return torch.cat([draw(chunk) for chunk in torch.split(controls, CHUNK)])


def draw(controls: Tensor) -> Tensor:
    """Images (n, 784) of the curves with the control points (n, 4, 2) in the unit square."""
    t = torch.linspace(0, 1, STROKE_POINTS + 1)
    bernstein = torch.stack([math.comb(3, i) * t**i * (1 - t) ** (3 - i) for i in range(4)], 1)
    ends = MARGIN + (SIDE - 1 - 2 * MARGIN) * (bernstein @ controls)
    lengths = ends.diff(dim=1).norm(dim=2)
    points = (ends[:, 1:] + ends[:, :-1]) / 2
    offsets = points.unsqueeze(-1) - torch.arange(SIDE)  # (n, points, 2, 28)
    columns, rows = torch.exp(-0.5 * (offsets / PEN).square()).unbind(2)
    ink = rows.mT @ (columns * lengths.unsqueeze(-1)) / (PEN * math.sqrt(2 * math.pi))
    images: Tensor = ink.clamp(max=1).flatten(1)
    return images


def digits() -> Tensor:
    """scikit-learn's 8 x 8 digits, (1797, 64) in [0, 1], float32."""
    return torch.as_tensor(load_digits().data / 16, dtype=torch.float32)


@torch.no_grad()
def autoencoder(sizes: tuple[int, ...], seed: int, incoming: int | None = 15) -> nn.Sequential:
    """From ``sizes[0]`` pixels to a linear code of ``sizes[-1]`` and back to logits of the pixels.

    Weights: ``incoming`` of a unit's are normal(0, 1), the others 0 (Martens 2010); with None, all
    are normal(0, 1 / inputs). Biases are 0.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = list(itertools.pairwise((*sizes, *sizes[-2::-1])))
    layers: list[nn.Module] = []
    for depth, (inputs, outputs) in enumerate(pairs, start=1):
        linear: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, inputs, outputs
        )
        weight = torch.randn(outputs, inputs, generator=generator)
        if incoming is None:
            weight /= inputs**0.5
        else:
            rank = torch.rand(outputs, inputs, generator=generator).argsort(1).argsort(1)
            weight *= rank < incoming
        linear.weight.copy_(weight)
        linear.bias.zero_()
        layers.append(linear)
        if depth not in (len(sizes) - 1, len(pairs)):
            layers.append(nn.Sigmoid())
    return nn.Sequential(*layers)


def cross_entropy(model: nn.Module, x: Tensor) -> Tensor:
    """The loss: binary cross-entropy of the pixels, summed over them, averaged over images."""
    return F.binary_cross_entropy_with_logits(model(x), x, reduction="sum") / len(x)


@torch.no_grad()
def squared_error(model: nn.Module, x: Tensor) -> float:
    """The mean over images of Σ (sigmoid(logits) − x)²."""
    return float(F.mse_loss(model(x).sigmoid(), x, reduction="sum") / len(x))


@dataclass(frozen=True)
class AutoencoderTask:
    """Training images (N, pixels), the encoder's sizes, and batch sizes worth a try."""

    name: str
    data: Tensor
    sizes: tuple[int, ...]
    batch_sizes: tuple[int, ...]

    def model(self, seed: int) -> nn.Sequential:
        return autoencoder(self.sizes, seed)

    @property
    def entropy(self) -> float:
        """The loss of a perfect reconstruction, not 0 since pixels are grey: none goes below."""
        x = self.data
        return float(F.binary_cross_entropy(x, x, reduction="sum") / len(x))


def tasks(images: int = 20_000) -> tuple[AutoencoderTask, AutoencoderTask]:
    """Curves, that many ``images``, and digits."""
    x = digits()
    return (
        AutoencoderTask("curves", curves(images, 0), (784, 400, 200, 100, 50, 25, 6), (128, 512)),
        AutoencoderTask("digits", x, (64, 128, 64, 32, 8), (128, 512, len(x))),
    )
