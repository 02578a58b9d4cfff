"""Tiny random models of every family, and prompts for them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

TINY_FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "opt", "phi", "qwen2")
"""The model families on which every law is tested with every strategy, by transformers' ``model_type``."""

VOCABULARY = 64
PROMPT_TOKENS = 5
WINDOW = 4
"""Tokens of the sliding windows of tiny models: less than a prompt."""


@dataclass(frozen=True)
class TinyFamily:
    """A family on which the laws are tested with a few strategies, chosen for what it adds to the others.

    Attributes:
        model_type: transformers' name.
        models: What people call its models.
        adds: What its layers, its attention or its head do that those of ``TINY_FAMILIES`` do not.
        options: Of its config, for :func:`tiny_model`.
        dtype: float32 where transformers has no attention for it but one that gives NaN at padding in float64, where it
            routes to experts in float32, or where the product of all experts is tested, which has no float64.
    """

    model_type: str
    models: str
    adds: str
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64


_GROUPED = {"num_key_value_heads": 2}
_HEADS = {**_GROUPED, "head_dim": 8}
_IN_TURN = ["sliding_attention", "full_attention", "sliding_attention"] * 2
_WINDOWS = {"sliding_window": WINDOW, "layer_types": _IN_TURN}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_STATES_OF_MAMBA_2 = {
    **_GROUPED,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 4,
}

MORE_FAMILIES: dict[str, TinyFamily] = {
    "bloom": TinyFamily("bloom", "BLOOM", "ALiBi; residual inside attention and MLP", dtype=torch.float32),
    "cohere2": TinyFamily(
        "cohere2",
        "Command R7B, Command A (Cohere 2)",
        "windows, no rotation without; parallel MLP; scale after the head",
        {**_HEADS, **_WINDOWS, "logit_scale": 0.5},
    ),
    "deepseek_v3": TinyFamily(
        "deepseek_v3",
        "DeepSeek V3, R1",
        "latent attention; some layers with experts, one shared",
        {**_LATENT, **_EXPERTS, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 2},
        dtype=torch.float32,
    ),
    "falcon": TinyFamily("falcon", "Falcon 7B", "parallel MLP; one key and value head", {"multi_query": True}),
    "falcon_alibi": TinyFamily(
        "falcon",
        "Falcon-RW 1B, 7B",
        "ALiBi inside the mask",
        {"alibi": True, "multi_query": False, "parallel_attn": False},
    ),
    "falcon_new": TinyFamily(
        "falcon",
        "Falcon 40B, Falcon2",
        "parallel MLP with a norm of its own",
        {"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon_h1": TinyFamily(
        "falcon_h1",
        "Falcon-H1",
        "Mamba 2 beside attention in every layer; scale after the head",
        {**_STATES_OF_MAMBA_2, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
        dtype=torch.float32,
    ),
    "gemma": TinyFamily("gemma", "Gemma 1", "scaled embeddings; norms with 1 + weight", _HEADS),
    "gemma2": TinyFamily(
        "gemma2",
        "Gemma 2",
        "windows in every second layer; caps on attention and after the head; norms around each part",
        {**_HEADS, "sliding_window": WINDOW, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 8},
        dtype=torch.float32,
    ),
    "gemma3": TinyFamily("gemma3_text", "Gemma 3", "windows; rotation by layer type", {**_HEADS, **_WINDOWS}),
    "gemma4_shared": TinyFamily(
        "gemma4_text",
        "Gemma 4 E2B, E4B",
        "upper layers read keys and values of lower ones; an embedding for each layer; windows",
        {
            **_HEADS,
            "sliding_window": WINDOW,
            "layer_types": [*_IN_TURN[:4], "sliding_attention", "full_attention"],
            "num_kv_shared_layers": 3,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
        },
    ),
    "glm4": TinyFamily("glm4", "GLM-4-0414", "norms around each part; interleaved, partial rotation", _HEADS),
    "gpt_oss": TinyFamily(
        "gpt_oss",
        "GPT-OSS",
        "windows; attention sinks; experts with biases",
        {**_HEADS, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
        dtype=torch.float32,
    ),
    "gptj": TinyFamily("gptj", "GPT-J", "parallel MLP; interleaved rotation", {"rotary_dim": 4}, dtype=torch.float32),
    "granite": TinyFamily(
        "granite",
        "Granite 3",
        "scales of embeddings, residuals and logits",
        {**_GROUPED, "logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    ),
    "granite_hybrid": TinyFamily(
        "granitemoehybrid",
        "Granite 4.0 H",
        "Mamba 2 in most layers, attention without rotation in the others",
        {
            **_STATES_OF_MAMBA_2,
            "layer_types": ["mamba", "mamba", "attention"] * 2,
            "num_local_experts": 0,
            "shared_intermediate_size": 64,
            "logits_scaling": 4.0,
        },
        dtype=torch.float32,
    ),
    "jamba": TinyFamily(
        "jamba",
        "Jamba",
        "Mamba 1 in most layers; experts in every second layer",
        {**_GROUPED, "mamba_d_state": 8, "mamba_dt_rank": 4, "attn_layer_period": 3, "attn_layer_offset": 2}
        | {"num_experts": 4, "expert_layer_period": 2, "expert_layer_offset": 1},
        dtype=torch.float32,
    ),
    "lfm2": TinyFamily(
        "lfm2",
        "LFM2",
        "short convolutions with a state in most layers",
        {**_GROUPED, "layer_types": ["conv", "conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    ),
    "mamba": TinyFamily("mamba", "Mamba", "Mamba 1 in every layer; no MLP", {"state_size": 8}, dtype=torch.float32),
    "mamba2": TinyFamily(
        "mamba2",
        "Mamba 2",
        "Mamba 2 in every layer; no MLP",
        {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 4},
        dtype=torch.float32,
    ),
    "ministral": TinyFamily("ministral", "Ministral 8B", "windows in some layers", {**_HEADS, **_WINDOWS}),
    "mistral_window": TinyFamily(
        "mistral", "Mistral 7B 0.1", "a window in every layer", {**_GROUPED, "sliding_window": WINDOW}
    ),
    "mixtral": TinyFamily(
        "mixtral",
        "Mixtral",
        "experts in every layer, all in one product",
        {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
        dtype=torch.float32,
    ),
    "mpt": TinyFamily("mpt", "MPT", "ALiBi for all rows; inverted mask", {"max_seq_len": 64}, dtype=torch.float32),
    "olmo2": TinyFamily("olmo2", "OLMo 2", "norms after each part; norms of queries and keys", _GROUPED),
    "olmo3": TinyFamily("olmo3", "OLMo 3", "windows; rotation by layer type", {**_GROUPED, **_WINDOWS}),
    "phi3": TinyFamily("phi3", "Phi-3 128k, Phi-4", "fused projections of grouped heads", _GROUPED),
    "phi3_window": TinyFamily("phi3", "Phi-3 4k", "a window in every layer", {**_GROUPED, "sliding_window": WINDOW}),
    "qwen2_window": TinyFamily(
        "qwen2",
        "Qwen2 with a window",
        "windows in the upper layers",
        {**_GROUPED, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3},
    ),
    "qwen3": TinyFamily("qwen3", "Qwen3", "norms of queries and keys", _HEADS),
    "qwen3_moe": TinyFamily(
        "qwen3_moe",
        "Qwen3-MoE",
        "experts in every second layer",
        {**_HEADS, **_EXPERTS, "num_experts": 4, "decoder_sparse_step": 2},
    ),
    "qwen3_next": TinyFamily(
        "qwen3_next",
        "Qwen3-Next",
        "gated delta rule in most layers, gated attention in the others; experts",
        {
            **_HEADS,
            **_EXPERTS,
            "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "shared_expert_intermediate_size": 32,
            "initializer_range": 0.1,  # with 0.3, transformers' own two orders of arithmetic differ by up to 2e-4
        },
        dtype=torch.float32,
    ),
    "smollm3": TinyFamily("smollm3", "SmolLM3", "layers without rotation", {**_GROUPED, "no_rope_layer_interval": 3}),
    "stablelm": TinyFamily(
        "stablelm",
        "StableLM 2",
        "partial rotation; norms of each head; parallel residual",
        {**_GROUPED, "qk_layernorm": True, "use_parallel_residual": True},
    ),
    "starcoder2": TinyFamily("starcoder2", "StarCoder2", "biases everywhere", _GROUPED),
}
"""Further families and variants of families, by a name of ours: each mechanism, and what people use much."""


_ENCODER = {
    "d_model": 32,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_POST_NORM = {**_ENCODER, "initializer_range": 0.1}  # with 0.3, each part hides the ones before it
_T5 = {"initializer_factor": 4.0, "d_kv": 8, "d_ff": 64, "num_heads": 4, "decoder_start_token_id": 0}
_T5GEMMA = {
    **_HEADS,
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": None,
}

_SPREAD = 1.2
"""Standard deviation of the head of the families below, whose own initialisation differs: about that of the others."""

ENCODER_DECODERS: dict[str, TinyFamily] = {
    "bart": TinyFamily("bart", "BART", "encoder; learned positions; norms after the residual", _POST_NORM),
    "marian": TinyFamily("marian", "Marian (OPUS-MT)", "encoder; a bias of the logits", _POST_NORM),
    "mbart": TinyFamily("mbart", "mBART", "encoder; norms before each part", _ENCODER),
    "mt5": TinyFamily("mt5", "mT5", "encoder; gated MLP; relative positions of the first layer", _T5),
    "pegasus": TinyFamily("pegasus", "Pegasus", "encoder; sinusoidal positions", _ENCODER),
    "t5": TinyFamily(
        "t5",
        "T5, Flan-T5",
        "encoder; relative positions of the first layer; scale before the head",
        {**_T5, "scale_decoder_outputs": True},
    ),
    "t5gemma": TinyFamily("t5gemma", "T5Gemma", "encoder; windows; caps on attention and logits", dtype=torch.float32),
}
"""Families with an encoder, by transformers' ``model_type``."""


def tiny_model(
    family: str = "llama",
    *,
    num_layers: int = 6,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    **options: Any,
) -> PreTrainedModel:
    """Make a small random model of one family, in which every layer matters.

    The weights have a wider distribution than transformers' and the embeddings are untied. As transformers initialises
    them, tiny models repeat one token, and dropping a layer hardly changes the logits. The weights of the head are four
    times as large, so that confidences spread over 0 to 1.

    Args:
        family: One of ``TINY_FAMILIES``, ``MORE_FAMILIES`` or ``ENCODER_DECODERS``, or another ``model_type`` of
            transformers.
        num_layers: L.
        dtype: Dtype of the weights. In float64, two orders of the same arithmetic differ by far less than any law
            allows. None means float64, or the dtype of one of ``MORE_FAMILIES``.
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
    known = (MORE_FAMILIES | ENCODER_DECODERS).get(family, TinyFamily(family, family, ""))
    if family == "t5gemma":
        sizes["encoder"] = sizes["decoder"] = {**_T5GEMMA, "num_hidden_layers": num_layers}
    elif family in ENCODER_DECODERS:
        del sizes["num_hidden_layers"], sizes["num_attention_heads"]
        sizes |= dict.fromkeys(("encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers"), num_layers)
    config = AutoConfig.for_model(known.model_type, **{**sizes, **known.options, **options})
    loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = loader.from_config(config).to(dtype or known.dtype).eval()
    if known.dtype == torch.float64 and getattr(config, "num_experts_per_tok", None):
        model.set_experts_implementation("eager")  # torch's product of all experts at once has no float64
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        if family in ENCODER_DECODERS:
            scale = config.d_model**0.5 if getattr(config, "scale_decoder_outputs", False) else 1
            head *= _SPREAD * scale / head.std() / getattr(config, "initializer_factor", 1)
        else:
            head *= 4
        if family == "marian":
            model.final_logits_bias += torch.linspace(-1, 1, VOCABULARY)
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


def prompts_for(model: PreTrainedModel, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Draw random prompts, padded as a model reads them.

    Args:
        model: A tiny model.
        rows: Number of prompts.

    Returns:
        As :func:`prompts`; padded on the right where an encoder reads them.
    """
    ids, mask = prompts(rows)
    return (ids.flip(1), mask.flip(1)) if model.config.is_encoder_decoder else (ids, mask)
