"""Several independent actions as one: the distribution of a Dict or Tuple action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl

from natgrad import register_metric
from natgrad.curvature import OutputMetric, metrics, output_metric


class Joint(Distribution):
    """Independent components of one batch shape; a value is their values side by side, (…, k).

    Log-probability, entropy, KL and Fisher metric are sums over the components.

    Parameters
    ----------
    components
        Their distributions. One of event shape () takes one column of a value.

    Raises
    ------
    ValueError
        Where their batch shapes differ.

    Examples
    --------
    >>> from torch.distributions import Bernoulli, Independent, Normal
    >>> move = Independent(Normal(torch.zeros(5, 2), torch.ones(5, 2)), 1)
    >>> joint = Joint([Bernoulli(torch.full((5,), 0.5)), move])
    >>> joint.log_prob(torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(self, components: Sequence[Distribution]) -> None:
        self.components = list(components)
        self.widths = [component.event_shape.numel() for component in components]
        batch = components[0].batch_shape
        if any(component.batch_shape != batch for component in components):
            shapes = [tuple(component.batch_shape) for component in components]
            raise ValueError(f"the components must have one batch shape, got {shapes}")
        super().__init__(batch, torch.Size([sum(self.widths)]), validate_args=False)

    def split(self, value: Tensor) -> list[Tensor]:
        """The components' own values.

        Parameters
        ----------
        value
            Columns (…, k).
        """
        pieces = torch.split(value, self.widths, dim=-1)
        return [
            piece.reshape(value.shape[:-1] + component.event_shape)
            for piece, component in zip(pieces, self.components, strict=True)
        ]

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Columns (…, k), in the components' common floating-point type.

        Parameters
        ----------
        values
            One for each component, in order.
        """
        columns = [
            value.reshape(*self.batch_shape, width).to(
                torch.promote_types(value.dtype, torch.float32)
            )
            for value, width in zip(values, self.widths, strict=True)
        ]
        return torch.cat(columns, dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum of the components' log-probabilities.

        Parameters
        ----------
        value
            Columns (…, k).
        """
        pairs = zip(self.components, self.split(value), strict=True)
        return torch.stack([component.log_prob(part) for component, part in pairs]).sum(dim=0)

    def entropy(self) -> Tensor:
        """Sum of the components' entropies."""
        return torch.stack([component.entropy() for component in self.components]).sum(dim=0)

    @property
    def mode(self) -> Tensor:
        """The components' modes, side by side."""
        return self.join([component.mode for component in self.components])

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """One draw for each element of the batch, with torch's global generator.

        Parameters
        ----------
        sample_shape
            Only ().
        """
        if sample_shape:
            raise NotImplementedError("Joint draws one value for each element of its batch")
        return self.join([component.sample() for component in self.components])


@register_kl(Joint, Joint)  # type: ignore[no-untyped-call, untyped-decorator]
def _joint_kl(p: Joint, q: Joint) -> Tensor:
    pairs = zip(p.components, q.components, strict=True)
    return torch.stack([metrics.kl_divergence(a, b) for a, b in pairs]).sum(dim=0)


@register_metric(Joint)
def _joint_metric(distribution: Joint) -> OutputMetric:
    return output_metric(distribution.components)
