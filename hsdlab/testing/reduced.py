"""Any model's config with small sizes, for a random model of the same mechanisms.

Reduced are widths, heads, layers, experts, windows, vocabulary and positions. What decides how a layer is computed
stays as it is: the kinds of the layers and their order, grouped heads, scales, norms, partial rotation, shared experts.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hsdlab.decoding.families import decoder_config
from hsdlab.errors import UserError
from hsdlab.reasons import reason
from hsdlab.testing.tiny import VOCABULARY, WINDOW

WIDTH, HEADS, HEAD_DIM = 64, 4, 16
LAYERS, MOST_LAYERS = 6, 16
"""Decoder layers: six, or as many as the first ones of each kind take."""

_POSITIONS = 128
_SCALE = 0.2
"""Of the initial weights: with transformers' own, dropping a layer hardly changes the logits of a random model."""

_FORGOTTEN = ("quantization_config", "auto_map", "architectures", "torch_dtype", "dtype", "_name_or_path")
_WIDTHS = ("hidden_size", "d_model", "n_embd", "emb_dim")
_NUM_LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "encoder_layers",
    "num_blocks",
)
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads")

_TOKENS = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}

_Sizes = dict[str, Any]
_Rule = Callable[[int, _Sizes], int | None]


def _scaled_to(new: int, *names: str) -> _Rule:
    """Keep the ratio to another entry of the config, which becomes ``new``."""

    def rule(value: int, sizes: _Sizes) -> int:
        base = next((sizes[name] for name in names if isinstance(sizes.get(name), int) and sizes[name]), value)
        return max(1, round(value * new / base))

    return rule


def _at_most(most: int) -> _Rule:
    return lambda value, _: min(value, most)


def _key_value_heads(value: int, sizes: _Sizes) -> int:
    heads = next((sizes[name] for name in _HEADS if isinstance(sizes.get(name), int)), value)
    return HEADS if value >= heads else min(value, HEADS // 2)


def _layer_number(value: int, sizes: _Sizes) -> int:
    return min(value, round(value / sizes["layers"] * sizes["kept"]) or min(value, 1))


_RULES: tuple[tuple[str, _Rule], ...] = (
    (r"vocab_size.*|.*_vocab_size", lambda value, _: VOCABULARY if value else value),
    (r".*_token_ids?|.*_token_index|.*_idx|.*_index", _at_most(VOCABULARY - 1)),
    (
        r"(original_)?max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length|max_\w+_positions|"
        r"context_length",
        _scaled_to(_POSITIONS, "original_max_position_embeddings", "max_position_embeddings"),
    ),
    (
        r"(attention_)?(sliding_)?window(_size)?|\w*_window(_size|_len)?|attention_chunk_size|local_attention",
        _at_most(WINDOW),
    ),
    ("|".join(_NUM_LAYERS), lambda value, sizes: sizes["kept"] if value == sizes["layers"] else min(value, 2)),
    (
        r"num_kv_shared_layers|max_window_layers|first_k_dense_replace|num_dense_layers|moe_layer_\w+_index",
        _layer_number,
    ),
    (r"(\w*_)?(num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups)", _key_value_heads),
    (r"\w*num_(local_)?experts|(n|num)_routed_experts|moe_num_experts|n_experts", _at_most(4)),
    (r"num_experts_per_tok\w*|moe_top_?k|moe_k|top_?k_experts", _at_most(2)),
    (r"n_group|num_expert_group|n_groups", _at_most(2)),
    (r"topk_group", _at_most(1)),
    (r"zero_expert_num|index_topk_?\w*", _at_most(2)),
    (r"\w*_rank", _at_most(8)),
    (r"qk_head_dim", lambda *_: 2 * HEAD_DIM),
    (r"(qk_nope|qk_rope|v|index)_head_dim", _at_most(HEAD_DIM)),
    (
        r"rotary_dim|(global_|swa_|attention_)?head_dim|kv_channels|dim_head|d_kv|d_head|head_size",
        _scaled_to(HEAD_DIM, "old_head_dim"),
    ),
    (r"mamba_(n|num)_heads", lambda *_: 2 * WIDTH // HEAD_DIM),
    (r"mamba_(d_head|head_dim)", lambda *_: HEAD_DIM),
    (r"mamba_d_ssm", lambda *_: 2 * WIDTH),
    (r"\w*heads\w*|n_head", lambda value, sizes: _scaled_to(HEADS, *_HEADS)(value, sizes) if value > HEADS else value),
    (r"\w*chunk_size|\w*block_size", _at_most(8)),
    (r"\w*(d_state|state_size)", _at_most(8)),
    (
        r"(\w*_)?(intermediate_size|ffn_dim|ffn_hidden_size|inner_dim|n_inner|dim_ff|dff|feed_forward_size)\w*",
        lambda value, _: min(value, 2 * WIDTH),
    ),
)


def reduced_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Make the sizes of a config small.

    Args:
        config: Of any decoder-only language model; not changed. Of a multimodal one, its language model is taken where
            transformers can build that alone.

    Returns:
        A config of the same class.
    """
    sizes = config.to_dict()
    text = decoder_config(config)
    own = text.to_dict()
    heads = next((own[name] for name in _HEADS if isinstance(own.get(name), int)), HEADS)
    width = next((own[name] for name in _WIDTHS if isinstance(own.get(name), int)), WIDTH)
    layers = text.num_hidden_layers
    known = {"layers": layers, "kept": _kept_layers(own, layers), "width": width}
    known["old_head_dim"] = own.get("head_dim") or max(1, width // max(1, heads))
    changed = _reduced(sizes, known | {name: value for name, value in own.items() if isinstance(value, int)})
    return type(config).from_dict(changed)


def _kept_layers(sizes: _Sizes, layers: int) -> int:
    """Return how many layers to keep: so many that each kind is among them."""
    kept = LAYERS
    for value in sizes.values():
        if isinstance(value, list) and len(value) == layers and all(isinstance(each, str) for each in value):
            kept = max(kept, *(value.index(kind) + 1 for kind in set(value)))
    for name in ("attn_layer_period", "expert_layer_period", "sliding_window_pattern"):
        if isinstance(sizes.get(name), int):
            kept = max(kept, sizes[name])
    if sizes.get("num_kv_shared_layers"):
        kept = max(kept, 10)
    return min(kept, MOST_LAYERS)


def _reduced(sizes: _Sizes, known: _Sizes) -> _Sizes:
    known = known | {name: value for name, value in sizes.items() if isinstance(value, int)}
    out: _Sizes = {}
    for name, value in sizes.items():
        if name in _FORGOTTEN or name in ("id2label", "label2id"):
            continue
        out[name] = _reduced_entry(name, value, known)
    for name in ("initializer_range", "init_std", "initializer_factor"):
        if out.get(name):
            out[name] = _SCALE
    return out


def _reduced_entry(name: str, value: Any, known: _Sizes) -> Any:
    if isinstance(value, dict):
        if re.search(r"vision|audio|image|vq|encoder_config|patcher", name):
            return value | {each: 1 for each in _NUM_LAYERS if isinstance(value.get(each), int)}
        if value and all(re.fullmatch(r"\d+", str(key)) for key in value):  # by layer
            value = {key: item for key, item in value.items() if int(key) < known["kept"]}
        return _reduced(value, known)
    if name == "head_dim" and value is None:
        return HEAD_DIM
    if isinstance(value, bool) or value is None:
        return False if name == "tie_word_embeddings" else value
    if isinstance(value, (list, tuple)):
        return _reduced_list(name, list(value), known)
    if not isinstance(value, int):
        return value
    if name in _TOKENS:
        return _TOKENS[name]
    for pattern, rule in _RULES:
        if re.fullmatch(pattern, name):
            return rule(value, known)
    if re.search(r"size|dim|width|channels|d_model|n_embd|d_inner", name) and value > 2 and "conv" not in name:
        width = known["width"]
        return value * WIDTH // width if value % width == 0 else min(value, WIDTH)
    return value


def _reduced_list(name: str, values: list[Any], known: _Sizes) -> Any:
    if name in _TOKENS:
        return _TOKENS[name]
    if re.fullmatch(r"mrope_section|(short|long)_factor", name):
        size = HEAD_DIM / known["old_head_dim"]
        if name != "mrope_section":
            return values[: max(1, round(len(values) * size))]
        counts = [round(each * size) for each in values[:-1]]
        return [*counts, round(sum(values) * size) - sum(counts)]
    if len(values) == known["layers"]:
        values = [values[i % len(values)] for i in range(known["kept"])]
    elif re.search(r"_idxs|_ids$|mlp_only_layers|attention_layers", name):
        return [each for each in values if each < known["kept"]]
    return [_reduced_entry(name, each, known) if isinstance(each, int) else each for each in values]


def reduced_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Make a random model from a config with small sizes, in which every layer matters.

    Args:
        config: Of any decoder-only language model; not changed.
        seed: Of the weights; torch's global random state is not changed.

    Returns:
        A model in float32, in eval mode, on the CPU.

    Raises:
        UserError: transformers cannot build it.
    """
    try:
        model = _built(config, seed)
    except Exception as error:  # of any class, by family
        text = decoder_config(config)
        if text is not config and text.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return reduced_model(text, seed)
        raise UserError(
            f"transformers builds no small {config.model_type} model from this config: {reason(error)}."
        ) from error
    model.generation_config = GenerationConfig(bos_token_id=1, pad_token_id=0)  # no tokens that a family forces
    with torch.no_grad():
        head = model.get_output_embeddings()
        if isinstance(getattr(head, "weight", None), torch.Tensor):
            head.weight *= 4
    return model


def _built(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(reduced_config(config)).float().eval()
