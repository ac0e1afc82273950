"""Small networks of transformers, peft, diffusers and torch_geometric, from their own classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import UNet2DModel
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GCNConv
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from .stacks import BATCH, LENGTH, SENTENCES, WORDS, Stack, categorical, noise

PICTURES = noise(48, 1, 16, 16, seed=10)
KINDS = (noise(256, 3, seed=11).T @ PICTURES.flatten(1).T).argmax(0)


def _language(model: nn.Module) -> Stack:
    def loss(model: Any, i: int) -> Tensor:
        words = SENTENCES[BATCH * (i % 3) : BATCH * (i % 3) + BATCH, :-1]
        found: Tensor = model(input_ids=words, labels=words).loss
        return found

    return Stack(model, loss, categorical)


def _pictures(model: nn.Module) -> Stack:
    def loss(model: Any, i: int) -> Tensor:
        found: Tensor = model(PICTURES, labels=KINDS).loss
        return found

    return Stack(model, loss, categorical)


def _bert() -> Stack:
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=LENGTH, num_labels=3,
        )
    )  # fmt: skip
    labels = SENTENCES[:, 0] % 3

    def loss(model: Any, i: int) -> Tensor:
        found: Tensor = model(SENTENCES[:, :-1], labels=labels).loss
        return found

    return Stack(model, loss, categorical)


def _gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def _llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LENGTH,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


class GCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GCNConv(6, 16), GCNConv(16, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        found: Tensor = self.second(torch.tanh(self.first(x, edges)), edges)
        return found


def _graph() -> Stack:
    generator = torch.Generator().manual_seed(12)
    x, edges = noise(60, 6, seed=13), torch.randint(60, (2, 240), generator=generator)
    labels = (noise(6, 3, seed=14).T @ x.T).argmax(0)
    return Stack(GCN(), lambda model, _: F.cross_entropy(model(x, edges), labels), "categorical")


def _unet() -> Stack:
    model = UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )  # fmt: skip
    added, times = noise(48, 1, 16, 16, seed=15), torch.arange(48) * 20

    def loss(model: Any, i: int) -> Tensor:
        rows = slice(16 * (i % 3), 16 * (i % 3) + 16)
        return F.mse_loss(model(PICTURES[rows] + added[rows], times[rows]).sample, added[rows])

    def likelihood(outputs: Any) -> Any:
        return torch.distributions.Independent(torch.distributions.Normal(outputs.sample, 1.0), 3)

    return Stack(model, loss, likelihood)


def stacks() -> Iterator[tuple[str, Callable[[], Stack]]]:
    """Those of libraries, by name."""
    yield "transformers GPT-2", lambda: _language(_gpt2())
    yield "transformers Llama", lambda: _language(_llama())
    yield "transformers BERT, dropout", _bert
    yield "transformers ViT", lambda: _pictures(
        ViTForImageClassification(
            ViTConfig(
                image_size=16, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=2,
                num_attention_heads=2, intermediate_size=32, num_labels=3,
            )
        )
    )  # fmt: skip
    yield "transformers ResNet", lambda: _pictures(
        ResNetForImageClassification(
            ResNetConfig(
                num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2],
                layer_type="basic", num_labels=3,
            )
        )
    )  # fmt: skip
    yield (
        "peft LoRA of GPT-2",
        lambda: _language(
            get_peft_model(_gpt2(), LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
        ),
    )
    yield "torch_geometric GCN", _graph
    yield "diffusers UNet2D", _unet
