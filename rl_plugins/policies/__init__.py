"""Networks that map observations to actions, or to distributions over them, and how they act."""

from rl_plugins.policies.behaviour import Behaviour, Exploring, Remembering, Sampling
from rl_plugins.policies.heads import StochasticPolicy
from rl_plugins.policies.joint import Joint
from rl_plugins.policies.networks import POLICY_OUTPUT_GAIN, Perception, cnn, feature_network, mlp
from rl_plugins.policies.noise import GaussianNoise, Noise, OrnsteinUhlenbeckNoise
from rl_plugins.policies.normalisation import ObservationNormaliser, RunningMoments
from rl_plugins.policies.observations import Features
from rl_plugins.policies.policy import DeterministicPolicy, Policy, RecurrentPolicy
from rl_plugins.policies.rewards import RewardNormaliser
from rl_plugins.policies.sampling import sample

__all__ = [
    "POLICY_OUTPUT_GAIN",
    "Behaviour",
    "DeterministicPolicy",
    "Exploring",
    "Features",
    "GaussianNoise",
    "Joint",
    "Noise",
    "ObservationNormaliser",
    "OrnsteinUhlenbeckNoise",
    "Perception",
    "Policy",
    "RecurrentPolicy",
    "Remembering",
    "RewardNormaliser",
    "RunningMoments",
    "Sampling",
    "StochasticPolicy",
    "cnn",
    "feature_network",
    "mlp",
    "sample",
]
