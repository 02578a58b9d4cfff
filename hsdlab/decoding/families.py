"""Where a transformers model keeps its decoder layers, final norm and head.

The only file that touches attribute paths of transformers models. The tests cover the families that are listed. The
parts of any other model are found by its structure, and a numerical check has to confirm them
(:mod:`hsdlab.decoding.semantics`). To add a family, add one entry to ``FAMILIES`` (CONTRIBUTING.md).

Longer than other files, so that no other one has to know the structure of a model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from hsdlab.errors import UserError
from hsdlab.exits import ATTRIBUTE, Exits
from hsdlab.stored import quantised_linears


class UnsupportedModelError(UserError):
    """The model cannot be decoded with skipped layers; the message names what is missing."""


@dataclass(frozen=True)
class Family:
    """Attribute names, relative to ``model.get_decoder()``, of one model family.

    Attributes:
        layers: The ``ModuleList`` of decoder layers.
        after_layers: The modules between the last layer and the head, in order. A name whose attribute is None is
            ignored (OPT-350m has no final norm, most OPT models no ``project_out``).
        query: The query projection inside one layer, or None where queries, keys and values are one fused matrix, or
            queries are made in several steps.
        after_head: The entries of the config that scale or cap the logits after the head, in order.
        compiled: Whether the tests decode it with ``compile=True``.
        further_outputs: Outputs of a layer after the hidden state, in a tuple; None where it returns that alone.
    """

    layers: str
    after_layers: tuple[str, ...]
    query: str | None
    after_head: tuple[str, ...] = ()
    compiled: bool = False
    further_outputs: int | None = None


def _llama_like(*after_head: str, compiled: bool = False) -> Family:
    return Family("layers", ("norm",), "self_attn.q_proj", after_head, compiled)


def _t5_like() -> Family:
    query = "layer.0.SelfAttention.q"
    return Family("block", ("final_layer_norm",), query, further_outputs=2)


FAMILIES: dict[str, Family] = {
    "bart": Family("layers", (), "self_attn.q_proj"),
    "bloom": Family("h", ("ln_f",), None, further_outputs=1),
    "cohere2": _llama_like("logit_scale"),
    "deepseek_v3": Family("layers", ("norm",), None),
    "falcon": Family("h", ("ln_f",), None, further_outputs=1),
    "falcon_h1": Family("layers", ("final_layernorm",), "self_attn.q_proj", ("lm_head_multiplier",), further_outputs=0),
    "gemma": _llama_like(),
    "gemma2": _llama_like("final_logit_softcapping"),
    "gemma3_text": _llama_like("final_logit_softcapping"),
    "gemma4_text": _llama_like("final_logit_softcapping"),
    "glm4": _llama_like(),
    "gpt2": Family("h", ("ln_f",), None, compiled=True),
    "gpt_neox": Family("layers", ("final_layer_norm",), None, compiled=True),
    "gpt_oss": _llama_like(),
    "gptj": Family("h", ("ln_f",), "attn.q_proj", further_outputs=1),
    "granite": _llama_like("logits_scaling"),
    "granitemoehybrid": _llama_like("logits_scaling"),
    "jamba": Family("layers", ("final_layernorm",), "self_attn.q_proj"),
    "lfm2": Family("layers", ("embedding_norm",), "self_attn.q_proj"),
    "llama": _llama_like(compiled=True),
    "mamba": Family("layers", ("norm_f",), None),
    "mamba2": Family("layers", ("norm_f",), None),
    "marian": Family("layers", (), "self_attn.q_proj"),
    "mbart": Family("layers", ("layer_norm",), "self_attn.q_proj"),
    "ministral": _llama_like(),
    "mistral": _llama_like(compiled=True),
    "mixtral": _llama_like(),
    "mpt": Family("blocks", ("norm_f",), None, further_outputs=1),
    "mt5": _t5_like(),
    "olmo2": _llama_like(),
    "olmo3": _llama_like(),
    "opt": Family("layers", ("final_layer_norm", "project_out"), "self_attn.q_proj", compiled=True),
    "pegasus": Family("layers", ("layer_norm",), "self_attn.q_proj"),
    "phi": Family("layers", ("final_layernorm",), "self_attn.q_proj", compiled=True),
    "phi3": Family("layers", ("norm",), None),
    "qwen2": _llama_like(compiled=True),
    "qwen3": _llama_like(),
    "qwen3_moe": _llama_like(),
    "qwen3_next": _llama_like(),
    "smollm3": _llama_like(),
    "stablelm": _llama_like(),
    "starcoder2": _llama_like(),
    "t5": _t5_like(),
    "t5_gemma_module": _llama_like("final_logit_softcapping"),
}

_NORM_NAMES = (
    "norm",
    "ln_f",
    "norm_f",
    "final_layernorm",
    "final_layer_norm",
    "final_norm",
    "layer_norm",
    "layernorm",
    "embedding_norm",  # LFM2, after the layers in spite of its name
)


def _divided(by: float, logits: Tensor) -> Tensor:
    return logits / by


def _multiplied(by: float, logits: Tensor) -> Tensor:
    return logits * by


def _capped(cap: float, logits: Tensor) -> Tensor:
    return torch.tanh(logits / cap) * cap


_AFTER_HEAD: dict[str, Callable[[float, Tensor], Tensor]] = {
    "logits_scaling": _divided,  # Granite
    "logit_scale": _multiplied,  # Cohere
    "lm_head_multiplier": _multiplied,  # Falcon-H1
    "final_logit_softcapping": _capped,  # Gemma 2
}
"""What an entry of a model's config does to its logits."""


_CACHED = (DynamicLayer, DynamicSlidingWindowLayer)
"""How transformers caches layers whose keys and values can be computed late: those of each token are its own."""

_RECURRENT = (LinearAttentionLayer, LinearAttentionAndFullAttentionLayer)
"""How it caches layers with a state, of which the second kind has keys and values too."""

_FREE = ("mlp", "moe")
"""Types of layers without attention and state (Nemotron-H), to which no token owes anything."""

_NO_LIMIT = (0.0, float("inf"))

_T5_SELF, _T5_CROSS, _T5_MLP = "layer.0.SelfAttention", "layer.1.EncDecAttention", "layer.2"
_CROSS_NAMES = ("encoder_attn", "cross_attn", "crossattention", "encoder_attention")

_MIXER_NAMES = ("mamba", "linear_attn", "conv", "mixer", "self_attn")


@dataclass(frozen=True)
class DecoderParts:
    """The parts of one model that decoding with skipped layers needs.

    Attributes:
        model: The model itself (the plain transformers model inside a peft wrapper).
        layers: The decoder layers, 0 … L-1.
        after_layers: The modules between the last layer and the head, in order: the final norm, for some models also
            a projection.
        head: Hidden state [..., d] to vocabulary logits [..., vocabulary]; a Linear, if no adapter wraps it.
        head_scale: What the hidden state is multiplied with before the head (T5); None for nothing.
        after_head: What the model does to the logits after the head, in order: a scale or a cap.
        logits_bias: Added to the logits after the head, [1, vocabulary] (BART, Marian); None for none.
        queries: The query projection of each layer; None where it is fused with keys and values.
        windows: The sliding window (or chunk) of each layer: how many tokens its attention sees at most, the token
            itself included; None where it sees all.
        attends: Whether each layer has keys and values of its own.
        donors: The layer whose keys and values each layer reads in place of its own (Gemma 4); None for none.
        mixers: The recurrent part of each layer (Mamba, linear attention, a short convolution); None where it has none.
        encoder: The encoder whose output the layers attend to; None in a decoder-only model.
        embed_positions: Embeds positions in such a model's decoder (BART); None where no module does.
        position_bias: Makes the bias of relative positions in self-attention, which the first layer shares with all
            others (T5): from the numbers of queries and keys, [1, heads, queries, keys]. None where there is none.
        further_outputs: As in :class:`Family`; None also where it is seen at the layer's first call only.
        proven: Whether the family is in ``FAMILIES``; others are checked before use.
        exits: The exits for which the model was trained; None where it says nothing of that.
    """

    model: PreTrainedModel
    layers: tuple[nn.Module, ...]
    after_layers: tuple[nn.Module, ...]
    head: Any
    head_scale: float | None
    after_head: tuple[Callable[[Tensor], Tensor], ...]
    logits_bias: Tensor | None
    queries: tuple[nn.Module | None, ...]
    windows: tuple[int | None, ...]
    attends: tuple[bool, ...]
    donors: tuple[int | None, ...]
    mixers: tuple[nn.Module | None, ...]
    encoder: nn.Module | None
    embed_positions: nn.Module | None
    position_bias: Callable[..., Tensor] | None
    further_outputs: int | None
    proven: bool
    exits: Exits | None = None

    @property
    def num_layers(self) -> int:
        """L, the number of decoder layers."""
        return len(self.layers)

    @property
    def body(self) -> nn.Module:
        """The model without its head; its forward pass runs the layers and the final norm."""
        return find_decoder(self.model)

    @cached_property
    def recurrent(self) -> bool:
        """Whether some layer keeps a state, which each token overwrites."""
        return any(mixer is not None for mixer in self.mixers)

    @property
    def without_keys(self) -> list[bool]:
        """Whether each layer attends to nothing."""
        return [not own and donor is None for own, donor in zip(self.attends, self.donors, strict=True)]

    @cached_property
    def shares(self) -> bool:
        """Whether some layer reads another layer's keys and values."""
        return any(donor is not None for donor in self.donors)

    def users(self, layer: int) -> list[int]:
        """List the layers that need the keys and values, or the state, of a layer.

        Args:
            layer: Index of the layer.

        Returns:
            The layer itself, and those that read from it.
        """
        return [layer, *(reader for reader, donor in enumerate(self.donors) if donor == layer)]

    def owes(self, layer: int) -> bool:
        """Say whether a token that skips a layer owes it something.

        Args:
            layer: Index of the layer.

        Returns:
            Whether it has keys and values, or a state.
        """
        return self.attends[layer] or self.mixers[layer] is not None

    @cached_property
    def cache_argument(self) -> str:
        """The name under which the model takes its cache."""
        return "cache_params" if "cache_params" in signature(self.model.forward).parameters else "past_key_values"

    @property
    def hidden_size(self) -> int:
        """d, the width of the hidden state between the layers."""
        return decoder_config(self.model.config).hidden_size

    @cached_property
    def vocabulary_size(self) -> int:
        """Number of logits that the head gives."""
        return _shape(self.head)[0]

    @cached_property
    def head_weights(self) -> tuple[int, int]:
        """Weights that a hidden state is multiplied with: between the last layer and the head, and for one logit."""
        return sum(matrix_weights(module) for module in self.after_layers), _shape(self.head)[1]

    def logits(self, hidden: Tensor, layer: int | None = None) -> Tensor:
        """Apply the final norm and the head to a layer's output (an intermediate prediction).

        Args:
            hidden: [..., d], before the final norm.
            layer: The layer, whose exit may have an adapter. None for the model's last one, which has none.

        Returns:
            [..., vocabulary], in the model's dtype.
        """
        return self.scaled(self.head_output(hidden, layer))

    def head_output(self, hidden: Tensor, layer: int | None = None) -> Tensor:
        """Compute what the head gives, before the model scales or caps it.

        Args:
            hidden: As for ``logits``.
            layer: As for ``logits``.

        Returns:
            [..., vocabulary], in the model's dtype.
        """
        return self.head(self.before_head(hidden, layer))

    def scaled(self, logits: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Scale or cap logits as the model does after its head.

        Args:
            logits: The output of the head, or of some of its rows, [..., tokens].
            tokens: Which tokens these are, LongTensor [rows, tokens] or [tokens]; None for all, in their order.

        Returns:
            The model's logits of these tokens.
        """
        for step in self.after_head:
            logits = step(logits)
        if self.logits_bias is None:
            return logits
        return logits + (self.logits_bias[0] if tokens is None else self.logits_bias[0, tokens])

    def token_logits(self, hidden: Tensor, tokens: Tensor, layer: int | None = None) -> Tensor:
        """Compute ``logits`` for candidate tokens only, from their rows of the head (:meth:`check_head_rows`).

        Args:
            hidden: [rows, d], before the final norm.
            tokens: The K candidate tokens of each row, LongTensor [rows, K].
            layer: As for ``logits``.

        Returns:
            [rows, K], in the order of ``tokens``.
        """
        hidden = self.before_head(hidden, layer)
        logits = torch.bmm(self.head.weight[tokens], hidden[:, :, None]).squeeze(2)  # (rows, K, e) @ (rows, e, 1)
        return self.scaled(logits if self.head.bias is None else logits + self.head.bias[tokens], tokens)

    def check_masks(self) -> None:
        """Check that the model takes a mask of four dimensions, with which a pass carries several tokens of each row.

        Raises:
            UnsupportedModelError: It computes a bias of attention from a mask of two (ALiBi), has chunked attention,
                has an encoder and is not known, or has recurrent layers, whose states cannot be taken back.
        """
        if self.encoder is not None and not self.proven:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} is an encoder-decoder model of a family that hsdlab does not know, whose "
                "drafts cannot be verified. Decode without Verified."
            )
        if self.recurrent:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has recurrent layers: what a rejected draft has added to their states "
                "cannot be taken back. Decode without Verified."
            )
        if self.shares:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has layers that read another layer's keys and values, which is not "
                "supported in passes over several tokens. Decode without Verified."
            )
        config = decoder_config(self.model.config)
        if hasattr(self.body, "build_alibi_tensor") or getattr(config, "alibi", False):
            reason = "computes the bias of its attention (ALiBi) from the padding"
        elif "chunked_attention" in (getattr(config, "layer_types", None) or ()):
            reason = "attends in chunks"
        else:
            return
        raise UnsupportedModelError(
            f"{type(self.model).__name__} {reason}, so that no forward pass can carry tokens of texts of different "
            "lengths, by which drafts are verified. Decode without Verified."
        )

    def check_head_rows(self) -> None:
        """Check that the head is a plain matrix, so that the rows of candidate tokens can be taken from it.

        Raises:
            UnsupportedModelError: The head is something else (an adapter on the head, quantised weights).
        """
        quantised, away = bool(quantised_linears(self.head)), self.head.weight.device.type == "meta"
        if type(self.head) is not nn.Linear or quantised or away:
            kind = "has quantised weights" if quantised else f"is a {type(self.head).__name__}"
            kind = "is not on the device that computes (device_map)" if away else kind
            raise UnsupportedModelError(
                f"The head of {type(self.model).__name__} {kind}; candidate tokens need a plain torch.nn.Linear (merge "
                "adapters first, leave the head out of quantisation), or leave shortlist, check_vocabulary and "
                "draft_vocabulary out."
            )

    def before_head(self, hidden: Tensor, layer: int | None = None) -> Tensor:
        """Compute what the head is applied to: the final norm, an exit's adapter, the model's scale.

        Args:
            hidden: As for ``logits``.
            layer: As for ``logits``.

        Returns:
            [..., e].
        """
        for module in self.after_layers:
            hidden = module(hidden)
        hidden = hidden if self.exits is None else self.exits(hidden, layer)
        return hidden if self.head_scale is None else hidden * self.head_scale


def plain_model(model: nn.Module) -> PreTrainedModel:
    """Take the transformers model out of a peft wrapper, if there is one.

    Args:
        model: A transformers model, or a peft model around one.

    Returns:
        The transformers model; LoRA matrices stay in its layers.

    Raises:
        UnsupportedModelError: It is not a transformers model, or the adapter adds virtual tokens (prompt tuning,
            prefix tuning).
    """
    from peft import PeftModel  # slow to import

    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise UnsupportedModelError(
            f"The adapter around the model is {model.peft_type.value}: its virtual tokens would be lost in decoding "
            "with skipped layers. Train with LoRA, which can be merged."
        )
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        raise UnsupportedModelError(
            f"Got a {type(base).__name__}; expected a transformers causal language model "
            "(for example from hsdlab.load_model)."
        )
    return base


def decoder_config(config: PreTrainedConfig) -> Any:
    """Take the config of the decoder out of a model's config.

    Args:
        config: Of a model of any architecture.

    Returns:
        A config whose ``num_hidden_layers`` are those of the decoder: the given one, its text config, or a copy.
    """
    text = config.get_text_config(decoder=True)
    layers = getattr(text, "num_decoder_layers", None)
    if layers is not None and config.is_encoder_decoder:  # T5, whose num_hidden_layers are those of the encoder
        text.num_hidden_layers = layers
    return text


def context_length(model: PreTrainedModel) -> int | None:
    """Look up the context of a model.

    Args:
        model: Its config is read (``max_position_embeddings``).

    Returns:
        The largest number of positions the model was built for, tokens; None where the config does not say.
    """
    return getattr(decoder_config(model.config), "max_position_embeddings", None)


def feed_forward(layer: nn.Module) -> nn.Module:
    """Find the feed-forward part of a decoder layer, which must not be called in a skipped layer.

    Args:
        layer: A decoder layer of a model of any architecture.

    Returns:
        The MLP, or the first of its matrices where the layer has no module for the whole (OPT). In a layer that is a
        recurrent part and nothing else (Mamba), the output projection of that part.

    Raises:
        UnsupportedModelError: The layer has none under a known name.
    """
    mixer: Any = getattr(layer, "mixer", None)
    if mixer is not None:  # Nemotron-H has layers that are an MLP and nothing else
        return getattr(mixer, output_projection(mixer), mixer)
    return layer.get_submodule(feed_forward_names(layer)[0])


def feed_forward_names(layer: nn.Module) -> tuple[str, ...]:
    """Find the paths of the modules that make up the feed-forward part of a decoder layer.

    Args:
        layer: A decoder layer of a model of any architecture.

    Returns:
        The name of the MLP, or those of its first and its last matrix where the layer has no module for the whole.

    Raises:
        UnsupportedModelError: The layer has none under a known name.
    """
    if _is_t5_block(layer):
        return (f"{_T5_MLP}.{_first_child(layer.get_submodule(_T5_MLP), ('DenseReluDense', 'mlp'))}",)
    name = _first_child(layer, ("mlp", "fc1", "feed_forward", "ffn", "shared_mlp"))
    return (name, "fc2") if name == "fc1" else (name,)


def attention(layer: nn.Module) -> nn.Module:
    """Find the self-attention of a decoder layer, or its recurrent part if it has none.

    A skipped layer calls it only up to its keys and values, or to its state.

    Args:
        layer: A decoder layer of a model of any architecture.

    Returns:
        The module with the projections and the attention, or the recurrence, itself.

    Raises:
        UnsupportedModelError: The layer has none under a known name.
    """
    return layer.get_submodule(attention_name(layer))


def cross_attention(layer: nn.Module) -> nn.Module | None:
    """Find the attention of a decoder layer to the encoder.

    Args:
        layer: A decoder layer of a model of any architecture.

    Returns:
        The module with its projections; None in a decoder-only model.
    """
    name = cross_attention_name(layer)
    return None if name is None else layer.get_submodule(name)


def cross_attention_name(layer: nn.Module) -> str | None:
    """Find the path of the attention of a decoder layer to the encoder.

    Args:
        layer: A decoder layer of a model of any architecture.

    Returns:
        The path from the layer; None in a decoder-only model.
    """
    if _is_t5_block(layer):
        return _T5_CROSS
    return next((name for name in _CROSS_NAMES if _has(layer, name)), None)


def _is_t5_block(layer: nn.Module) -> bool:
    """Say whether a layer is a list of parts: self-attention, cross-attention and MLP, each with its norm."""
    return isinstance(getattr(layer, "layer", None), nn.ModuleList)


def attention_name(layer: nn.Module) -> str:
    """Find the path of the self-attention of a decoder layer, or of its recurrent part if it has none.

    Args:
        layer: A decoder layer of a model of any architecture.

    Returns:
        The path from the layer.

    Raises:
        UnsupportedModelError: The layer has none under a known name.
    """
    if _is_t5_block(layer):
        return _T5_SELF
    return _first_child(layer, ("self_attn", "attn", "attention", "self_attention", *_MIXER_NAMES))


def output_projection(mixer: nn.Module) -> str:
    """Find the attribute of the recurrent part of a layer that makes its output.

    Args:
        mixer: A part of :attr:`DecoderParts.mixers`.

    Returns:
        The name of the last matrix. What it is multiplied with is computed when the state holds the token.
    """
    return "o_proj" if _has(mixer, "o_proj") else "out_proj"


def _has(module: nn.Module, name: str) -> bool:
    """Say whether a module has a part; an attribute that is None (Granite 4) is none."""
    return getattr(module, name, None) is not None


def _first_child(layer: nn.Module, names: tuple[str, ...]) -> str:
    for name in names:
        if _has(layer, name):
            return name
    raise UnsupportedModelError(f"Found no {', '.join(names[:-1])} or {names[-1]} in {type(layer).__name__}.")


def matrix_weights(module: nn.Module) -> int:
    """Count the weights in a module's matrices: each is multiplied and added once for a token.

    Args:
        module: Any module; parameters with one dimension (biases, norms) do not count, nor do embeddings.

    Returns:
        Number of weights; of quantised ones, which are stored packed, as many as the matrix has.
    """
    looked_up = {id(each.weight) for each in module.modules() if isinstance(each, nn.Embedding)}
    quantised = quantised_linears(module)
    apart = looked_up | {id(weight) for each in quantised for weight in each.parameters()}
    whole = sum(weight.numel() for weight in module.parameters() if weight.dim() > 1 and id(weight) not in apart)
    return whole + sum(each.in_features * each.out_features for each in quantised)


def _shape(head: Any) -> tuple[int, int]:
    """Outputs and inputs of a head."""
    return (head.out_features, head.in_features) if isinstance(head, nn.Linear) else tuple(head.weight.shape)


def groups_queries(model: PreTrainedModel) -> bool:
    """Say whether several query heads share the keys and values of one head.

    Args:
        model: Its config gives the numbers of heads.

    Returns:
        Whether there are fewer key and value heads than query heads.
    """
    config = decoder_config(model.config)
    heads = getattr(config, "num_attention_heads", 0)
    return (getattr(config, "num_key_value_heads", None) or heads) < heads


def query_width(model: PreTrainedModel, layer: int) -> int:
    """Compute the width of all query heads of a layer together.

    Args:
        model: Its config gives the heads and their width, which differ by layer in Gemma 4.
        layer: Index of the layer.

    Returns:
        Channels; 0 for a model without attention (Mamba).
    """
    config = decoder_config(model.config).per_layer_config[layer]
    heads: int = getattr(config, "num_attention_heads", None) or 0
    return heads and heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)


def decoder_parts(module: nn.Module) -> DecoderParts:
    """Find the parts of a model, or say what is missing.

    Args:
        module: A transformers language model, decoder-only or encoder-decoder, or a peft model around one.

    Returns:
        The parts. They are the model's own modules, so changes to one are changes to the other.

    Raises:
        UnsupportedModelError: For models that read no text or have an encoder inside of their decoder, layers of an
            unknown kind, models that compute on several devices, and architectures whose parts are not found.
    """
    model = plain_model(module)
    name = type(model).__name__
    config = decoder_config(model.config)
    has_encoder = bool(model.config.is_encoder_decoder)
    if has_encoder and model.main_input_name != "input_ids":
        raise UnsupportedModelError(f"{name} reads {model.main_input_name}; hsdlab decodes models that read text.")
    if getattr(config, "add_cross_attention", False) and not has_encoder:
        raise UnsupportedModelError(
            f"{name} has cross-attention to an encoder that is no part of it (add_cross_attention=True); hsdlab "
            "decodes decoder-only and encoder-decoder models."
        )
    _check_devices(model)
    cached = DynamicCache(config=config).layers
    types = getattr(config, "layer_types", None) or [None] * len(cached)
    free = [kind in _FREE for kind in types]
    donors = _donors(config, len(cached))
    without = [alone or donor is not None for alone, donor in zip(free, donors, strict=True)]
    known = [nothing or type(layer) in _CACHED + _RECURRENT for layer, nothing in zip(cached, without, strict=True)]
    other = sorted({type(layer).__name__ for layer, is_known in zip(cached, known, strict=True) if not is_known})
    if other:
        raise UnsupportedModelError(
            f"{name} has {', '.join(other)} in its KV cache; skipped layers need attention with keys and values of "
            "their own, over the whole text or in a sliding window, or a recurrent state."
        )
    if any(getattr(layer, "number_of_states", 1) > 1 for layer in cached):
        raise UnsupportedModelError(f"{name} has several recurrent states in one layer; hsdlab decodes one.")
    windows = tuple(
        getattr(cached[index if donor is None else donor], "sliding_window", None) for index, donor in enumerate(donors)
    )

    decoder = find_decoder(model)
    family = FAMILIES.get(config.model_type)
    layers = getattr(decoder, family.layers, None) if family else _find_layers(decoder, config.num_hidden_layers)
    if not isinstance(layers, nn.ModuleList) or len(layers) != config.num_hidden_layers:
        raise UnsupportedModelError(
            f"{name} ({config.model_type}): found no list of {config.num_hidden_layers} decoder layers in "
            f"{type(decoder).__name__}. CONTRIBUTING.md, 'Add a model family', says how to name it."
        )
    if len(set(layers)) < len(layers):
        raise UnsupportedModelError(
            f"{name} uses one layer several times; each of its layers needs weights of its own."
        )
    if any(hasattr(layer, "altup") for layer in layers):
        raise UnsupportedModelError(
            f"{name} passes several hidden states of each token between its layers (AltUp); hsdlab decodes with one."
        )
    if len(cached) != len(layers):
        raise UnsupportedModelError(f"{name} has a KV cache of {len(cached)} layers for {len(layers)} decoder layers.")
    held = [type(layer) for layer in cached]
    mixers = tuple(_mixer(layer) if kind in _RECURRENT else None for layer, kind in zip(layers, held, strict=True))
    if any(tuple(getattr(mixer, "time_step_limit", None) or _NO_LIMIT) != _NO_LIMIT for mixer in mixers):
        raise UnsupportedModelError(
            f"{name} limits its time steps (time_step_min, time_step_limit), which transformers does in passes over "
            "several tokens and not in decode steps, so that its own generate and forward differ."
        )
    attends = tuple(kind in (*_CACHED, LinearAttentionAndFullAttentionLayer) for kind in held)
    names = family.after_layers if family else [n for n in _NORM_NAMES if hasattr(decoder, n)][:1]
    head = model.get_output_embeddings()
    if head is None:
        raise UnsupportedModelError(
            f"{name} ({config.model_type}): found no output head (get_output_embeddings() is None). CONTRIBUTING.md, "
            "'Add a model family', says how to name it."
        )
    after_layers = tuple(m for m in (getattr(decoder, n) for n in names) if m is not None)
    queries = tuple(_query(layer, family) for layer in layers)
    scales = family.after_head if family else tuple(_AFTER_HEAD)
    values = {entry: getattr(config, entry, None) for entry in scales}
    after_head = tuple(partial(_AFTER_HEAD[entry], value) for entry, value in values.items() if value is not None)
    return DecoderParts(
        model=model,
        layers=tuple(layers),
        after_layers=after_layers,
        head=head,
        head_scale=_head_scale(config),
        after_head=after_head,
        logits_bias=getattr(model, "final_logits_bias", None),
        queries=queries,
        windows=windows,
        attends=attends,
        donors=donors,
        mixers=mixers,
        encoder=model.get_encoder() if has_encoder else None,
        embed_positions=getattr(decoder, "embed_positions", None) if has_encoder else None,
        position_bias=_position_bias(layers) if has_encoder else None,
        further_outputs=family.further_outputs if family else None,
        proven=family is not None,
        exits=getattr(model, ATTRIBUTE, None),
    )


def _check_devices(model: PreTrainedModel) -> None:
    """Refuse a model that computes on several devices. Weights that wait elsewhere for their layer are no problem."""
    name, places = type(model).__name__, set(getattr(model, "hf_device_map", {}).values())
    computing = places - {"disk"} if places <= {"cpu", "disk"} else places - {"cpu", "disk"}
    if len(computing) > 1:
        raise UnsupportedModelError(
            f"{name} computes on several devices ({', '.join(sorted(map(str, computing)))}) by its device_map; hsdlab "
            "decodes on one. Load it on one device, with layers on the CPU or the disk if it does not fit."
        )
    if places and model.device.type == "meta":
        raise UnsupportedModelError(
            f"The embeddings of {name} are not on the device that computes; leave them there in device_map."
        )


def find_decoder(model: PreTrainedModel) -> nn.Module:
    """Take the decoder out of a model.

    Args:
        model: A model of any architecture; of a multimodal one, the decoder of its language model.

    Returns:
        The model without its head. transformers' own ``get_decoder`` gives Llama 4's language model itself, and
        ModernBERT's head.
    """
    decoder = model.get_decoder()
    return getattr(model, "model", decoder) if decoder in (model, model.get_output_embeddings()) else decoder


def _find_layers(decoder: nn.Module, num_layers: int) -> nn.ModuleList | None:
    """The one list of ``num_layers`` modules among the children, or else among all modules (BERT's encoder.layer)."""
    for modules in (decoder.children(), decoder.modules()):
        lists = [m for m in modules if isinstance(m, nn.ModuleList) and len(m) == num_layers]
        if len(lists) == 1:
            return lists[0]
    return None


def _head_scale(config: Any) -> float | None:
    """What T5 and its kin multiply the last hidden state with, some of them only where the head is the embedding."""
    scales = getattr(config, "scale_decoder_outputs", False)
    if config.model_type in ("umt5", "switch_transformers"):
        scales = config.tie_word_embeddings
    return config.hidden_size**-0.5 if scales else None


def _position_bias(layers: nn.ModuleList) -> Callable[..., Tensor] | None:
    """What makes the bias of relative positions in the first layer, if the others have none of their own."""
    makers = [
        [module for module in layer.modules() if getattr(module, "has_relative_attention_bias", False)]
        for layer in layers
    ]
    if not makers[0] or (len(layers) > 1 and makers[-1]):
        return None
    return makers[0][0].compute_bias  # type: ignore[return-value]


def _query(layer: nn.Module, family: Family | None) -> nn.Module | None:
    if family is None or family.query is None or not _has(layer, family.query.split(".")[0]):
        return None
    return layer.get_submodule(family.query)


def _donors(config: Any, num_layers: int) -> tuple[int | None, ...]:
    """For each layer, the one whose keys and values it reads: of those that lend theirs, the one of its type."""
    modes = getattr(config, "kv_sharing_modes", None) or [None] * num_layers
    types = getattr(config, "layer_types", None) or [None] * num_layers
    lenders = {types[index]: index for index, mode in enumerate(modes) if mode == "store"}
    return tuple(lenders[types[index]] if mode == "reuse" else None for index, mode in enumerate(modes))


def _mixer(layer: nn.Module) -> nn.Module:
    """The recurrent part of a layer that has one."""
    return getattr(layer, _first_child(layer, _MIXER_NAMES))


def position_ids(attention_mask: Tensor) -> Tensor:
    """Compute the positions that transformers' ``generate`` gives the tokens of left-padded sequences.

    Args:
        attention_mask: [rows, length], 1 for tokens and 0 for padding.

    Returns:
        LongTensor [rows, length], which counts 0, 1, 2 … from the first token of each sequence; 0 at padding.
    """
    return (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 0)
