"""A step that is called wrongly says what came and what to pass; the policy stays as it was."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical

from natgrad.flat import flatten
from rl_plugins import A2C, NPG, PPO, TRPO

STEPS = [TRPO, NPG, PPO, A2C]


class Policy(nn.Module):
    def __init__(self, logits=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Linear(3, 2)
        self.logits = logits

    def forward(self, x):
        logits = self.net(x)
        return logits if self.logits else Categorical(logits=logits)


def batch(generator):
    x = torch.randn(8, 3, generator=generator)
    return x, torch.arange(8) % 2, torch.randn(8, generator=generator)


@pytest.mark.parametrize("algorithm", STEPS)
@pytest.mark.parametrize("name", ["actions", "advantages", "mask"])
def test_arrays_in_place_of_tensors_are_named(algorithm, name, generator):
    x, actions, advantages = batch(generator)
    given = {"actions": actions, "advantages": advantages, "mask": torch.ones(8, dtype=torch.bool)}
    given[name] = given[name].numpy()
    policy = Policy()
    before = flatten(policy.parameters())
    with pytest.raises(TypeError, match=rf"{name} must be a tensor, got ndarray; use torch\.as_t"):
        algorithm(policy).step(x, **given)
    assert torch.equal(flatten(policy.parameters()), before)


@pytest.mark.parametrize("algorithm", STEPS)
def test_a_policy_that_returns_logits_is_told_which_distribution_to_return(algorithm, generator):
    with pytest.raises(TypeError, match=r"returned a Tensor; .* Categorical\(logits=outputs\)"):
        algorithm(Policy(logits=True)).step(*batch(generator))


@pytest.mark.parametrize("algorithm", STEPS)
@pytest.mark.parametrize("policy", ["MlpPolicy", Policy, lambda x: Categorical(logits=x)])
def test_a_policy_that_is_no_module_is_refused_at_construction(algorithm, policy):
    with pytest.raises(TypeError, match=r"takes a policy, a torch\.nn\.Module"):
        algorithm(policy)
