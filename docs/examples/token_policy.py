"""A small causal transformer learns to count, by TRPO, PPO, NPG and A2C: no environment needed.

A state is a text so far, an action the next token. Every token that follows its predecessor,
(previous + 1) mod V, pays 1. Texts have different lengths; behind its end a text is padding, and
a mask says so. What an algorithm needs is one line: ``step(tokens, actions, advantages, mask)``.
"""

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn.functional import scaled_dot_product_attention

from rl_plugins import A2C, NPG, PPO, TRPO

VOCABULARY = 8
LENGTH = 10
TEXTS = 64
UPDATES = 30

LEARNERS = {
    "TRPO": lambda policy: TRPO(policy, max_kl=0.05),
    "NPG": lambda policy: NPG(policy, max_kl=0.02),
    "PPO": lambda policy: PPO(policy, learning_rate=3e-3, epochs=4),
    "A2C": lambda policy: A2C(policy, learning_rate=3e-3, max_gradient_norm=10.0),
}


class TokenPolicy(nn.Module):
    """Tokens (B, T) -> a distribution over the next token at each position, batch shape (B, T)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Categorical:
        x = self.embedding(tokens)
        queries, keys, values = self.queries_keys_values(x).chunk(3, dim=-1)
        # Causal: a position reads itself and what stands before it, never what comes after.
        x = x + scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return Categorical(logits=self.output(x))


@torch.no_grad()
def write(policy: TokenPolicy) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Texts of different lengths under the policy: tokens, actions, rewards and mask, (B, T)."""
    tokens = torch.randint(VOCABULARY, (TEXTS, 1))
    for _ in range(LENGTH):
        following = policy(tokens).sample()[:, -1:]
        tokens = torch.cat([tokens, following], dim=1)
    states, actions = tokens[:, :-1], tokens[:, 1:]
    rewards = (actions == (states + 1) % VOCABULARY).float()
    ends = torch.randint(1, LENGTH + 1, (TEXTS, 1))
    mask = torch.arange(LENGTH) < ends
    return states.where(mask, 0), actions.where(mask, 0), rewards, mask


def train(name: str, updates: int = UPDATES) -> tuple[float, float, TokenPolicy]:
    """The mean reward a token in the first and in the last batch, and the policy."""
    torch.manual_seed(0)
    policy = TokenPolicy()
    learner = LEARNERS[name](policy)
    means = []
    for _ in range(updates):
        tokens, actions, rewards, mask = write(policy)
        means.append(float(rewards[mask].mean()))
        # A token's reward is all that it earns: the reward less its mean is its advantage.
        learner.step(tokens, actions, rewards - means[-1], mask)
    return means[0], means[-1], policy


def main() -> None:
    for name in LEARNERS:
        first, last, _ = train(name)
        print(f"{name:4}  mean reward a token {first:.2f} -> {last:.2f}, best possible 1.00")


if __name__ == "__main__":
    main()
