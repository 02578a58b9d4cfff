"""LoRA: train a few small matrices beside the model's own (Hu et al. 2021, arXiv 2106.09685)."""

import copy
import math
import re
import warnings
from dataclasses import dataclass, field, fields
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from hsdlab.decoding.families import find_decoder
from hsdlab.errors import UserError
from hsdlab.exits import Exits, attach_exits
from hsdlab.models.adapters import Adapter, beside, read_adapter
from hsdlab.models.embedded import adapter_folder
from hsdlab.models.merging import CURE, tied_names
from hsdlab.models.weights import NO_CODE, load_tokenizer
from hsdlab.stored import quantised_linears

ALL_LINEAR = "all-linear"
_READ_BY_KERNEL = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Models whose fused kernel reads the weight of out_proj by itself, so that peft refuses to adapt it."""

_ALWAYS_NAMED = ("r", "lora_alpha", "lora_dropout", "target_modules")
_NEVER_NAMED = ("peft_version",)  # the same setting under another version of peft is the same setting


@dataclass(repr=False)
class LoRA(LoraConfig):
    """How to train with LoRA: a `peft.LoraConfig` with the defaults of the HSD paper. It takes all of peft's options.

    Args:
        r: Rank of the added matrices; 16 as in the HSD paper (arXiv 2403.14919, section 4.1).
        lora_alpha: The added product is scaled by lora_alpha / r; 32 as in the HSD paper.
        lora_dropout: Dropout on the inputs of the added matrices, from 0 to below 1; 0 is peft's default.
        target_modules: Names of the linear layers to adapt, such as [c_attn], or a regular expression for whole names,
            or "all-linear": every linear layer of the decoder, and of the encoder if there is one, but the head and
            routers, and the matrices of experts.
            Of Mamba and its kin, not out_proj, which peft cannot adapt.
            The HSD paper names none; QLoRA (arXiv 2305.14314) needed all of them to match full fine-tuning. null takes
            peft's own choice for the architecture.
        task_type: Replaced by "CAUSAL_LM", or for an encoder-decoder by "SEQ_2_SEQ_LM".
        loftq_config: Options of peft's LoftQ initialisation. Empty for none.

    Raises:
        UserError: A number out of its range, or options that peft refuses together.
    """

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: list[str] | str | None = "all-linear"
    task_type: str | None = "CAUSAL_LM"
    loftq_config: dict[str, Any] = field(default_factory=dict)  # peft's default is one that it then warns about

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except (ValueError, TypeError) as error:
            raise UserError(f"lora: peft refuses it: {error}") from error
        check_numbers(self)

    def __repr__(self) -> str:
        return described(self)


def described(config: LoraConfig) -> str:
    """Write a setting in one line, the same in every process.

    Args:
        config: A `LoRA`, or another `peft.LoraConfig`.

    Returns:
        The class with r, lora_alpha, lora_dropout, target_modules, and the options that differ from `LoRA`'s defaults.

    Example:
        >>> described(LoRA(r=4, target_modules=["q_proj", "k_proj"], use_rslora=True))
        "LoRA(r=4, lora_alpha=32, lora_dropout=0.0, target_modules=['k_proj', 'q_proj'], use_rslora=True)"
    """
    defaults = {each.name: getattr(LoRA(), each.name) for each in fields(LoRA)}
    values = {name: getattr(config, name) for name in (*_ALWAYS_NAMED, *defaults)}
    named = ", ".join(
        f"{name}={sorted(value) if isinstance(value, set) else value!r}"
        for name, value in values.items()
        if name in _ALWAYS_NAMED or (name not in _NEVER_NAMED and value != defaults[name])
    )
    return f"{type(config).__name__}({named})"


def check_numbers(config: LoraConfig) -> None:
    """Check that the numbers of a setting are in their ranges, and finite.

    Args:
        config: A `LoRA`, or another `peft.LoraConfig`.

    Raises:
        UserError: One is not; the message names the option.
    """
    if config.r < 1:
        raise UserError(f"lora.r={config.r}: expected 1 or more.")
    if not 0 < config.lora_alpha < math.inf:
        raise UserError(f"lora.lora_alpha={config.lora_alpha}: expected more than 0, and finite.")
    if not 0 <= config.lora_dropout < 1:
        raise UserError(f"lora.lora_dropout={config.lora_dropout}: expected 0 or more, and less than 1.")
    for name, value in vars(config).items():
        for key, number in (value if isinstance(value, dict) else {"": value}).items():
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"lora.{name}{f'.{key}' if key else ''}={number}: expected a finite number.")


def add_lora(model: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """Freeze the model's weights and add those of LoRA, in place.

    Args:
        model: A transformers model.
        lora: A `LoRA`, or another `peft.LoraConfig`. It is not changed.

    Returns:
        A peft model around the model.

    Raises:
        UserError: An adapter was merged into the model as it was loaded, a number out of its range, a target that
            matches no layer of the model (the message lists its linear layers), a target whose weights another part of
            the model uses too, or a setting that peft cannot apply to the model.
    """
    check_numbers(lora)
    _check_targets(model, lora)
    _refuse_merged(model, "lora")
    config = copy.deepcopy(lora)  # peft notes the model and the layers that it found in it
    config.task_type = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    if config.target_modules == ALL_LINEAR:
        _name_targets(model, config)
    _say_what_is_left_out(model, config)
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())  # GPT-2's are transposed
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings", category=UserWarning)  # refused below
            warnings.filterwarnings("ignore", message=".*_pattern keys did not match")  # peft's own, for older names
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        raise UserError(f"lora: peft cannot add it to {type(model).__name__}: {error}") from error
    _refuse_tied(adapted, "lora.target_modules")
    return adapted


def continue_lora(
    model: PreTrainedModel, name: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[PeftModel, LoraConfig]:
    """Freeze the model's weights and add an adapter's matrices, in place, to be trained further.

    Args:
        model: The base model, without another adapter in it.
        name: The adapter: a folder, or the name of an installed one.
        tokenizer: Of the base model.

    Returns:
        A peft model around the model, and the adapter's options.

    Raises:
        UserError: No such adapter, one that is not LoRA, has other tokens than the tokenizer or does not fit the model,
            or a model into which an adapter was merged.
    """
    _refuse_merged(model, "initial_adapter")
    try:
        adapter = read_adapter(str(adapter_folder(name) or name))
    except FileNotFoundError as error:
        raise UserError(f"initial_adapter: {error}") from error
    config = adapter.config
    other_tokens = adapter.brings_tokenizer and _vocabulary(adapter) != tokenizer.get_vocab()
    if not isinstance(config, LoraConfig) or other_tokens:
        kind = "brings tokens of its own" if other_tokens else f"is {config.peft_type}, not LoRA"
        raise UserError(f"initial_adapter: {name} {kind}. Load it with --model.name and train all weights.")
    config.inference_mode = False  # else peft freezes the matrices
    adapted = beside(model, adapter, tokens=0)
    _refuse_tied(adapted, "initial_adapter")
    if (exits := Exits.load(adapter.folder)) is not None:
        attach_exits(model, exits)
    return adapted, config


def _vocabulary(adapter: Adapter) -> dict[str, int]:
    folder = str(adapter.folder)
    return load_tokenizer(folder, folder, dict(NO_CODE)).get_vocab()


def _refuse_tied(adapted: PeftModel, option: str) -> None:
    """Take the matrices away again where the head that they change is the embeddings too, and say so."""
    if tied := tied_names(adapted):
        name = type(adapted.get_base_model()).__name__
        adapted.unload()
        raise UserError(
            f"{option}: {', '.join(tied)} of {name} is tied: the embeddings and the head are one matrix, so that the "
            f"merged model would not be the trained one. {CURE}"
        )


def _refuse_merged(model: PreTrainedModel, option: str) -> None:
    if merged := getattr(model, "merged_adapter", None):
        raise UserError(
            f"{option}: the model was loaded with the adapter {merged}. A second adapter would name the base model "
            "alone, and the first one would be lost. Give the base model and --model.initial_adapter, which trains the "
            "adapter further; or write the merged model with FinetuneModule(model, tokenizer).export(folder), and "
            "train on that folder."
        )


def _name_targets(model: PreTrainedModel, config: LoraConfig) -> None:
    """Put names in the place of "all-linear", by which peft would adapt routers and towers, and leave experts out."""
    decoder = _adapted(model)
    outside = next((f"{name}." for name, module in model.named_modules() if name and module is decoder), "")
    stacked = [f"{outside}{name}" for name in _experts(decoder)]
    if stacked and config.lora_dropout > 0:
        raise UserError(
            f"lora.lora_dropout={config.lora_dropout}: peft has no dropout for the experts of {type(model).__name__}. "
            "Set it to 0, or leave the experts out: name the linear layers in lora.target_modules."
        )
    head = model.get_output_embeddings()
    packed = quantised_linears(decoder)
    linear = [
        name
        for name, module in decoder.named_modules()
        if module is not head and (isinstance(module, nn.Linear | Conv1D) or any(module is each for each in packed))
    ]
    if model.config.model_type in _READ_BY_KERNEL:
        linear = [name for name in linear if name.rpartition(".")[2] != "out_proj"]
    config.target_modules = {f"{outside}{name}" for name in linear if not _is_router(decoder, name)}
    config.target_parameters = [*(config.target_parameters or ()), *stacked] or None


def _adapted(model: PreTrainedModel) -> nn.Module:
    """Return what "all-linear" is about: the decoder, of an encoder-decoder the encoder too."""
    return model if model.config.is_encoder_decoder else find_decoder(model)


def _experts(decoder: nn.Module) -> dict[str, nn.Parameter]:
    """Find the matrices of experts, which transformers stacks in parameters [experts, outputs, inputs], by name."""
    return {
        f"{name}.{own}": weight
        for name, module in decoder.named_modules()
        for own, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3 and not isinstance(module, nn.Conv1d)
    }


def _is_router(decoder: nn.Module, name: str) -> bool:
    """Say whether a linear layer chooses experts: it has an output for each, and stands beside them, alone or not."""
    places = name.split(".")
    if len(places) == 1:
        return False  # between the embedding and the layers, or after them (OPT-350m)
    around = [decoder.get_submodule(".".join(places[:-depth])) for depth in (1, 2) if len(places) > depth]
    if sum(isinstance(child, nn.Linear) for child in around[0].children()) > 1:
        around = around[:1]  # a layer among others, as in a shared expert
    beside = [weight for block in around for child in block.children() for weight in child.parameters(recurse=False)]
    outputs = len(decoder.get_parameter(f"{name}.weight"))
    return any(weight.dim() == 3 and len(weight) == outputs for weight in beside)


def _say_what_is_left_out(model: PreTrainedModel, config: LoraConfig) -> None:
    """Warn of experts that keep their weights, which are most of a model's."""
    experts = _experts(_adapted(model))
    if experts and not config.target_parameters:
        share = sum(weight.numel() for weight in experts.values()) / sum(each.numel() for each in model.parameters())
        warnings.warn(
            f"lora.target_modules leaves out the experts of {type(model).__name__}, {share:.0%} of its weights, which "
            f'stay as they are. "{ALL_LINEAR}" adapts them too.',
            stacklevel=3,
        )


def _check_targets(model: PreTrainedModel, lora: LoraConfig) -> None:
    """Refuse target_modules that match no layer of the model."""
    targets = lora.target_modules
    if targets is None or targets == ALL_LINEAR:
        return
    if not targets and not lora.target_parameters:
        raise UserError('lora.target_modules is empty: name layers, or give "all-linear".')
    names = [name for name, _ in model.named_modules()]
    for target in [targets] if isinstance(targets, str) else sorted(targets):
        pattern = target if isinstance(targets, str) else rf"(.*\.)?{re.escape(target)}"  # as peft matches them
        if not any(re.fullmatch(pattern, name) for name in names):
            linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
            there = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise UserError(
                f"lora.target_modules: {target!r} matches no layer of {type(model).__name__}; its linear ones are "
                f'{there}. "all-linear" takes all but the head.'
            )
