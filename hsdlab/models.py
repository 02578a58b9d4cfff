"""Load a decoder-only language model and its tokenizer, ready for decoding."""

import hashlib
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hsdlab.embedded import EMBEDDED_ADAPTERS, PREFIX, embedded_folder

Attention = Literal["sdpa", "eager"]
DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")


def load_model(
    name: str | PathLike[str],
    *,
    dtype: str = "float32",
    device: str = "auto",
    adapter: str | PathLike[str] | None = None,
    revision: str | None = None,
    attention: Attention | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in eval mode, and its tokenizer, which pads on the left.

    No code of a model repository is run. Weights are safetensors, or PyTorch files read as weights only.

    Args:
        name: an embedded model ("embedded:smollm2-135m") or one of its adapters
            ("embedded:smollm2-135m-e2e-skip-aware"), a local Hugging Face folder, a .gguf file, a folder with a LoRA
            adapter (its base model is loaded and the adapter merged into it), or the id of a model on the hub
            ("HuggingFaceTB/SmolLM2-360M").
        dtype: of the weights: "float32", "bfloat16", "float16", "float64", or "auto" for the stored one.
        device: "cpu", "cuda", "cuda:1", ...; "auto" takes the GPU where there is one.
        adapter: folder of a LoRA adapter to merge into the model.
        revision: branch, tag or commit of a model on the hub.
        attention: "sdpa", torch's fused attention, or "eager", plain matrix products, which trains short texts faster
            in bfloat16 on a CPU; transformers' choice by default (sdpa where the model has it).

    Returns:
        The model and the tokenizer. A tokenizer without a padding token pads with its end-of-sequence token.

    Raises:
        FileNotFoundError: a folder or file is missing, or a model folder lacks a part.
        ConnectionError: the hub cannot be reached and the model is not in its local cache.
        OSError: the hub has no such model, or does not let us read it.
        ValueError: unknown embedded model, dtype or device; a model that is not a decoder-only language model
            or lacks some of its weights; an adapter that cannot be merged.
        RuntimeError: an embedded model could not be fetched.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    target = _device(device)
    name = fspath(EMBEDDED_ADAPTERS.get(fspath(name), name))
    if adapter is None and (Path(name).expanduser() / "adapter_config.json").is_file():
        adapter = name
        name, revision = _base_of(adapter, revision)

    source, options = _locate(name, revision)
    try:
        config = AutoConfig.from_pretrained(source, **options)
        _check_decoder_only(name, config)
        model = _load_weights(name, source, dtype, options | {"attn_implementation": attention})
        tokenizer = _load_tokenizer(name, source, options)
    except OSError as error:
        if options.get("local_files_only"):
            raise ConnectionError(
                f"{name!r} is not a local folder (there is none at {Path(name).absolute()}), the hub cannot "
                "be reached (no network, or HF_HUB_OFFLINE is set), and its local cache does not hold all of "
                'the model. Give a local folder, a .gguf file or "embedded:smollm2-135m", '
                "or try again with network."
            ) from error
        raise
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.name_or_path = name  # what an adapter trained on this model notes as its base
    if adapter is not None:
        model = _merge(model, fspath(adapter))
    return model.to(target).eval(), tokenizer


def _device(device: str) -> torch.device:
    """Turn the user's device into a torch.device on which a tensor can be made."""
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch raises either, by device
        reason = str(error).splitlines()[0]
        raise ValueError(
            f'device {device!r} cannot be used: {reason}; expected "auto", "cpu", "cuda", "cuda:0", ...'
        ) from error


def _locate(name: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Find what `name` means: the folder or hub id, and the options that from_pretrained needs for it."""
    # Left out, this option makes transformers ask at the terminal whether to run a repository's code.
    options: dict[str, Any] = {"trust_remote_code": False}
    path = Path(name).expanduser()
    if name.startswith(PREFIX):
        return str(embedded_folder(name)), options
    if path.is_dir():
        _check_folder(path)
        return str(path), options
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), options | {"gguf_file": path.name}
    if path.is_file():
        raise ValueError(f"{path} is a file; expected a model folder, a .gguf file or a model's id on the hub")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise FileNotFoundError(f"no model folder or .gguf file at {path.absolute()}") from None
    if path.suffix == ".gguf":
        raise FileNotFoundError(f"no .gguf file at {path.absolute()}")
    return name, options | {"revision": revision, "local_files_only": not _hub_answers(name)}


def _check_folder(folder: Path) -> None:
    """Raise FileNotFoundError unless the folder holds a configuration and weights."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} is not a model folder: it has no config.json (nor an adapter's adapter_config.json)"
        )
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise FileNotFoundError(f"{folder} has no weights: expected *.safetensors or pytorch_model*.bin")


def _hub_answers(name: str) -> bool:
    """Ask the hub for the model once, where from_pretrained would retry each file for 23 seconds."""
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"))
    except HfHubHTTPError:
        return True  # it answers: that the model does not exist, or is not for us, from_pretrained tells best
    except Exception:  # no network or HF_HUB_OFFLINE=1; the type depends on the hub's HTTP client
        return False
    return True


def _check_decoder_only(name: str, config: PreTrainedConfig) -> None:
    """Raise ValueError unless the configuration is that of a decoder-only language model."""
    classes = set(config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)])
    if config.is_encoder_decoder or not classes & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        raise ValueError(
            f"hsdlab decodes decoder-only language models (GPT-2, OPT, Llama, ...); "
            f"{name} is a {config.model_type} model with {config.architectures or 'no language-model head'}"
        )


def weights_fingerprint(model: nn.Module) -> str:
    """Return 16 hex digits that tell models of other weights apart, from 64 numbers of each tensor."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        numbers = weight.detach().flatten()
        numbers = numbers[:: max(1, len(numbers) // 64)].double().cpu()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + numbers.numpy().tobytes())
    return digest.hexdigest()[:16]


def _load_weights(name: str, source: str, dtype: str, options: dict[str, Any]) -> PreTrainedModel:
    if "gguf_file" in options:  # plain layers: packed ones can be neither merged with an adapter nor saved
        options = options | {"quantization_config": GgufConfig(dequantize=True)}
    model, report = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    if report["missing_keys"]:  # transformers would go on with random numbers in their place
        raise ValueError(f"{name} lacks weights for {', '.join(sorted(report['missing_keys']))}")
    return model


def _load_tokenizer(name: str, source: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a missing vocabulary
        raise FileNotFoundError(f"{name} has no tokenizer: expected a tokenizer.json beside the weights")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _base_of(adapter: str, revision: str | None) -> tuple[str, str | None]:
    """Read from an adapter which model, and which revision of it, it was trained on."""
    from peft import PeftConfig  # slow to import, seldom needed

    config = PeftConfig.from_pretrained(str(Path(adapter).expanduser()))
    base = config.base_model_name_or_path
    if not base:
        raise ValueError(f"{adapter} does not name its base model; use load_model(base, adapter={adapter!r})")
    return base, revision or config.revision


def _merge(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """Add the adapter's weights into the model's own."""
    from peft import PeftModel

    folder = Path(adapter).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"no adapter at {folder.absolute()}: expected a folder with adapter_config.json")
    adapted = PeftModel.from_pretrained(model, str(folder))
    if not hasattr(adapted, "merge_and_unload"):
        raise ValueError(f"{adapter} cannot be merged: it is {adapted.peft_type.value}, not LoRA")
    merged = adapted.merge_and_unload()
    # peft froze the weights. Frozen, they could not be trained further, and torch's linear copies a frozen weight once
    # for each row of an input that is a slice, as the head's is in a prompt pass: seconds for a batch of 64.
    return merged.requires_grad_(True)
