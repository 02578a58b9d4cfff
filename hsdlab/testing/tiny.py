"""Tiny random models of every family, and prompts for them."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

TINY_FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "opt", "phi", "qwen2")
"""The model families that the laws are proven for, by transformers' ``model_type``."""

VOCABULARY = 64
PROMPT_TOKENS = 5


def tiny_model(
    family: str = "llama",
    *,
    num_layers: int = 6,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> PreTrainedModel:
    """A small random model of one family, in which every layer matters.

    Weights are drawn wider than transformers does and the embeddings are untied: as initialised, tiny models repeat
    themselves and dropping a layer is hardly seen. The head is sharper still, so that confidences spread over 0 to 1.
    float64 makes equality of two orders of arithmetic sharp.

    Args:
        family: One of ``TINY_FAMILIES``, or another ``model_type`` of transformers.
        num_layers: L.
        dtype: Of the weights.
        seed: Of the weights.
        **options: More of the model's config.
    """
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "ffn_dim": 64,
        "n_inner": 64,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "init_std": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    if family in ("llama", "mistral", "qwen2"):
        sizes["num_key_value_heads"] = 2
    if family == "mistral":
        sizes["sliding_window"] = None
    if family == "opt":
        sizes["word_embed_proj_dim"] = 16  # with the projections of OPT-350m
    config = AutoConfig.for_model(family, **{**sizes, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight *= 4
    return model


def prompts(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random prompts and their mask, [rows, PROMPT_TOKENS]; rows after the first are left-padded, each differently."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(7, VOCABULARY, (rows, PROMPT_TOKENS), generator=generator)
    padding = torch.arange(rows)[:, None] % 3  # 0, 1, 2 tokens
    mask = (torch.arange(PROMPT_TOKENS)[None] >= padding).long()
    return ids * mask, mask
