"""Who acts: networks that map observations to distributions over actions."""

from rl_plugins.policies.networks import mlp
from rl_plugins.policies.normalisation import ObservationNormaliser, RunningMoments
from rl_plugins.policies.policy import (
    CategoricalPolicy,
    GaussianPolicy,
    Policy,
    build_policy,
    observation_shape,
    to_environment,
)
from rl_plugins.policies.sampling import sample

__all__ = [
    "CategoricalPolicy",
    "GaussianPolicy",
    "ObservationNormaliser",
    "Policy",
    "RunningMoments",
    "build_policy",
    "mlp",
    "observation_shape",
    "sample",
    "to_environment",
]
