"""Tiny random models of every family, and prompts for them."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

TINY_FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "opt", "phi", "qwen2")
"""The model families on which the laws are tested, by transformers' ``model_type``."""

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
    """Make a small random model of one family, in which every layer matters.

    The weights have a wider distribution than transformers' and the embeddings are untied. As transformers initialises
    them, tiny models repeat one token, and dropping a layer hardly changes the logits. The weights of the head are four
    times as large, so that confidences spread over 0 to 1.

    Args:
        family: One of ``TINY_FAMILIES``, or another ``model_type`` of transformers.
        num_layers: L.
        dtype: Dtype of the weights. In float64, two orders of the same arithmetic differ by far less than any law
            allows.
        seed: Seed of the weights; torch's global random state is not changed.
        **options: Further entries of the model's config, which win over those set here.

    Returns:
        A model in eval mode on the CPU, with 32 channels, 4 heads, ``VOCABULARY`` tokens, a context of 64 tokens, no
        end-of-sequence token.
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
    """Draw random prompts for a tiny model.

    Args:
        rows: Number of prompts. Prompt i has i mod 3 tokens of left padding, so the first has none.
        seed: Seed of the tokens; torch's global random state is not changed.

    Returns:
        Token ids and their mask, LongTensor [rows, PROMPT_TOKENS] each. The ids are from 7 to ``VOCABULARY`` - 1, and 0
        at padding.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(7, VOCABULARY, (rows, PROMPT_TOKENS), generator=generator)
    padding = torch.arange(rows)[:, None] % 3  # 0, 1, 2 tokens
    mask = (torch.arange(PROMPT_TOKENS)[None] >= padding).long()
    return ids * mask, mask
