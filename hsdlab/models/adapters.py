"""Adapters: the base model that they name, what is saved beside their matrices, and how they are merged.

An adapter's folder may hold more than matrices: the tokenizer, the chat template and the generation config with which
it was trained, and embeddings with rows for added tokens. These are used in place of the base model's.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from hsdlab.errors import UserError
from hsdlab.models.embedded import EMBEDDED_MODELS, embedded_folder
from hsdlab.models.merging import check_same_logits, few_logits, tied_names
from hsdlab.models.weights import read_generation_config
from hsdlab.reasons import reason

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

CONFIG_FILE = "adapter_config.json"
_WRAPPED = "base_model.model."  # peft's prefix of the names of the model's own modules
_ADAPTER = "default"


@dataclass(frozen=True)
class Adapter:
    """The folder of an adapter.

    Attributes:
        folder: Where it is.
        config: Its adapter_config.json, as peft reads it.
    """

    folder: Path
    config: "PeftConfig"

    def base(self, revision: str | None) -> tuple[str, str | None]:
        """Find the model on which the adapter was trained.

        A relative path is searched first from the adapter's folder, then from the working directory.

        Args:
            revision: Branch, tag or commit of a base model on the hub; None for the one that the adapter names.

        Returns:
            The model's folder, .gguf file or hub id, and its revision or None.

        Raises:
            UserError: The adapter names none, or a relative path at which there is none.
        """
        name = self.config.base_model_name_or_path
        if not name:
            raise UserError(
                f"{self.folder} does not name its base model; use load_model(base, adapter={str(self.folder)!r}), or "
                "--model.name with --model.adapter"
            )
        places = [self.folder / name, Path(name).expanduser()]
        for place in places:
            if (place / "config.json").is_file() or (place.suffix == ".gguf" and place.is_file()):
                return str(place), revision or self.config.revision
        if name.startswith((".", "/", "~")):
            looked = " and ".join(dict.fromkeys(str(place.absolute()) for place in places))
            raise UserError(
                f"the adapter {self.folder} names {name!r} as its base model; there is no model folder at {looked}. "
                "Give the base with --model.name and the adapter with --model.adapter"
            )
        return name, revision or self.config.revision

    @property
    def brings_tokenizer(self) -> bool:
        """Whether a tokenizer is saved beside the adapter."""
        return any((self.folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))

    @property
    def chat_template(self) -> str | None:
        """The chat template that is saved beside the adapter without a tokenizer; None where there is none."""
        file = self.folder / "chat_template.jinja"
        return file.read_text(encoding="utf-8") if file.is_file() and not self.brings_tokenizer else None

    def generation_config(self) -> GenerationConfig | None:
        """Read the generation config that is saved beside the adapter.

        Returns:
            The generation config; None where there is none.

        Raises:
            UserError: It cannot be read.
        """
        return read_generation_config(self.folder)


def read_adapter(adapter: str) -> Adapter:
    """Read an adapter's configuration, and none of its weights.

    Args:
        adapter: Its folder on this machine; "~" is expanded.

    Returns:
        The adapter.

    Raises:
        FileNotFoundError: There is none.
        UserError: It cannot be read, or the adapter is of a kind that cannot be merged.
    """
    from peft import PeftConfig  # slow to import, seldom needed

    folder = Path(adapter).expanduser()
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"no adapter at {folder.absolute()}: expected a folder with {CONFIG_FILE}")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{folder / CONFIG_FILE} cannot be read as the configuration of an adapter: {reason(error)}"
        ) from error
    if config.is_prompt_learning or config.peft_type is None:
        kind = getattr(config.peft_type, "value", "of no kind that peft names")
        raise UserError(
            f"{adapter} cannot be merged: it is {kind}, not LoRA. Its virtual tokens would be lost in decoding; train "
            "with LoRA, which is"
        )
    return Adapter(folder, config)


def beside(model: PreTrainedModel, adapter: Adapter, tokens: int) -> "PeftModel":
    """Put the adapter's matrices beside the model's own, in place.

    Args:
        model: The base model.
        adapter: The adapter, of any kind that peft can merge.
        tokens: Number of the tokenizer's tokens. Embeddings with fewer rows are resized.

    Returns:
        A peft model around the model, in eval mode.

    Raises:
        UserError: The adapter does not fit the model, or some of its weights are not loaded.
    """
    from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

    folder = adapter.folder
    try:
        weights = _once(load_peft_weights(str(folder), device="cpu"))
    except Exception as error:  # safetensors, pickle and the hub raise errors of any class
        raise UserError(
            f"{folder}: the adapter's weights cannot be read (truncated or garbage?): {reason(error)}. Expected a "
            "whole adapter_model.safetensors; copy or export the adapter again"
        ) from error
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{folder}: the adapter's {name} holds numbers that are not finite; export it again")
    _resize(model, weights, tokens, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns of tied weights in general; merge checks them
            adapted = PeftModel(model, adapter.config).eval()
            loaded = set_peft_model_state_dict(adapted, weights, adapter_name=_ADAPTER)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"the adapter {folder} does not fit {model.name_or_path}: {reason(error)}. Is it the model that the "
            "adapter was trained on?"
        ) from error
    _check_arrived(adapted, loaded, folder, model.name_or_path)
    return adapted


def merge(model: PreTrainedModel, adapter: Adapter, tokens: int) -> PreTrainedModel:
    """Add the adapter's weights to the model's own, and check on a few tokens that the logits stay the same.

    Args:
        model: The base model, changed in place.
        adapter: As for `beside`.
        tokens: As for `beside`.

    Returns:
        The merged model; all its weights can be trained.

    Raises:
        UserError: As `beside`, or the merged model differs from the model with the adapter beside it.
    """
    adapted: Any = beside(model, adapter, tokens)
    folder = adapter.folder
    if not hasattr(adapted, "merge_and_unload"):
        raise UserError(f"{folder} cannot be merged: it is {adapter.config.peft_type}, not LoRA")
    tied = tied_names(adapted)
    before = few_logits(adapted)
    try:
        merged = adapted.merge_and_unload()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(f"{folder} cannot be merged: peft says: {reason(error)}") from error
    _note_untied(merged)
    check_same_logits(before, few_logits(merged), f"the adapter {folder}", tied)
    # peft froze the weights. Frozen, they could not be trained further, and torch's linear copies a frozen weight once
    # for each row of an input that is a slice, as the head's is in the prefill: seconds for a batch of 64.
    return merged.requires_grad_(True)


def leave_beside(model: PreTrainedModel, adapter: Adapter, tokens: int) -> PreTrainedModel:
    """Put an adapter beside quantised weights. Merged into them, it would be rounded as they are.

    Args:
        model: The base model, changed in place.
        adapter: As for `beside`.
        tokens: As for `beside`.

    Returns:
        The model itself, with the adapter's matrices in its layers.

    Raises:
        UserError: As `beside`.
    """
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    adapted: Any = beside(model, adapter, tokens)
    for weight in trainable:  # peft froze them; see `merge`
        weight.requires_grad_(True)
    return adapted.get_base_model()


def _once(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each weight under one name only: peft 0.21 writes embeddings of modules_to_save under a second one."""
    return {name.replace(".modules_to_save.", "."): tensor for name, tensor in weights.items()}


def _check_arrived(adapted: "PeftModel", loaded: Any, folder: Path, base: str) -> None:
    """Refuse weights for which the model has no module, and modules of the adapter that got no weights."""
    places = adapted.state_dict()
    missing = {name for name in loaded.missing_keys if f".{_ADAPTER}" in name or "vblora" in name}
    arrived = {places[name].data_ptr() for name in places if name not in loaded.missing_keys}
    missing = {name for name in missing if name in places and places[name].data_ptr() not in arrived}  # shared ones
    for names, what in ((loaded.unexpected_keys, "have no place in"), (sorted(missing), "are missing for")):
        if names:
            first = ", ".join(name.removeprefix(_WRAPPED).replace(f".{_ADAPTER}", "") for name in names[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"the adapter {folder} cannot be loaded completely: weights {what} {base}: {first}{more}. Is it the "
                "model that the adapter was trained on, and is the adapter's file complete?"
            )


def was_resized(model: PreTrainedModel) -> bool:
    """Say whether a model's embeddings have another number of rows than those of the folder that it was loaded from.

    Args:
        model: Its `name_or_path` names the folder.

    Returns:
        False also for a hub id, where there is no folder on this machine to compare with.
    """
    name = model.name_or_path
    folder = embedded_folder(name) if name in EMBEDDED_MODELS else Path(name).expanduser()
    file = folder / "config.json"
    if not file.is_file():
        return False
    rows = AutoConfig.from_pretrained(str(folder), trust_remote_code=False).get_text_config(decoder=True).vocab_size
    return rows != model.get_input_embeddings().weight.shape[0]


def _resize(model: PreTrainedModel, weights: Mapping[str, Tensor], tokens: int, folder: Path) -> None:
    """Give the embeddings as many rows as the adapter's own have, or at least one for each token."""
    rows = model.get_input_embeddings().num_embeddings
    sizes = set(_rows_of(model, weights))
    wanted = sizes.pop() if len(sizes) == 1 else max(rows, tokens)
    if wanted == rows:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the new rows are drawn at random around the mean: the same ones each time
        model.resize_token_embeddings(wanted)
    own = [
        name for name in _embedding_names(model) if any(f"{_WRAPPED}{name}.{suffix}" in weights for suffix in _MATRICES)
    ]
    if wanted > rows and len(own) < len({id(module.weight) for module in _embeddings(model)}):
        warnings.warn(
            f"the tokenizer of the adapter {folder} has {wanted - rows} more tokens than {model.name_or_path} has "
            "embeddings, and the adapter has none for them: they get the mean of the others. Tokens that are used "
            "in prompts need trained ones (modules_to_save)",
            stacklevel=2,
        )


_SIZES = (
    ("weight", 0),
    ("base_layer.weight", 0),
    ("token_adapter.base_layer.weight", 0),
    ("lora_embedding_A", 1),
    ("lora_B.weight", 0),
)
"""The tensors of an embedding or a head that show its number of rows, and the axis of the rows."""
_MATRICES = tuple(suffix for suffix, _ in _SIZES if suffix.endswith("weight") and "lora" not in suffix)


def _rows_of(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> Iterator[int]:
    """Yield the number of rows of the embeddings and the head, where the adapter holds weights for them."""
    for name in _embedding_names(model):
        for suffix, axis in _SIZES:
            tensor = weights.get(f"{_WRAPPED}{name}.{suffix}")
            if tensor is not None and tensor.dim() == 2:
                yield tensor.shape[axis]


def _embeddings(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]


def _embedding_names(model: PreTrainedModel) -> list[str]:
    modules = _embeddings(model)
    return [name for name, module in model.named_modules() if any(module is each for each in modules)]


def _note_untied(model: PreTrainedModel) -> None:
    """Note in the config that head and embeddings are no longer one matrix, where the adapter brought one of them."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False
