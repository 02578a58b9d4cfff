"""Load a language model, decoder-only or encoder-decoder, and its tokenizer, ready for decoding."""

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
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from hsdlab.errors import UserError
from hsdlab.exits import Exits, attach_exits, layers_without_weights
from hsdlab.models.adapters import CONFIG_FILE, Adapter, leave_beside, merge, read_adapter
from hsdlab.models.device_map import DeviceMap, placing_options
from hsdlab.models.embedded import EMBEDDED_MODELS, PREFIX, adapter_folder, cached_folder, embedded_folder
from hsdlab.models.quantization import Quantization, is_quantised, loading_options
from hsdlab.models.weights import (
    NO_CODE,
    check_tokenizer_fits,
    load_config,
    load_tokenizer,
    load_weights,
    read_generation_config,
)
from hsdlab.stored import plain_tensors

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
    quantization: Quantization | None = None,
    device_map: DeviceMap | None = None,
    offload_folder: str | PathLike[str] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in eval mode, and its tokenizer. It pads on the left, that of an encoder-decoder on the right.

    No code of a model repository is run. Weights are safetensors, or PyTorch files read as weights only.

    Args:
        name: One of these:

            - an embedded model ("embedded:smollm2-135m");
            - an adapter or a small model of an installed distribution ("embedded:smollm2-135m-e2e-skip-aware" and
              "embedded:t5-tiny-tables" of hsdlab-adapters);
            - a local Hugging Face folder, or a .gguf file;
            - a folder with a LoRA adapter. Its base model is loaded and the adapter merged into it. The tokenizer, chat
              template, generation config and embeddings saved beside the adapter are used;
            - the id of a model on the hub ("HuggingFaceTB/SmolLM2-360M").
        dtype: Of the weights: "float32", "bfloat16", "float16", "float64", or "auto" for the stored one.
        device: "cpu", "cuda", "cuda:1", ...; "auto" uses the GPU if there is one.
        adapter: Folder of a LoRA adapter to merge into the model.
        revision: Branch, tag or commit of a model on the hub; None for the one that the adapter names for its base
            model, else for the main branch.
        attention: "sdpa", torch's fused attention, or "eager", plain matrix products, which trains short texts faster
            in bfloat16 on a CPU; None for transformers' choice (sdpa if the model has it).
        quantization: Round the weights of the layers as they are loaded: "int8" (torchao), or "nf4", the 4 bits of
            QLoRA (bitsandbytes). `dtype` is then that of the other weights and of the arithmetic. None takes the
            weights as they are stored, quantised ones too.
        device_map: For a model that does not fit: where each of its parts is, by name ("cpu", "disk", 0 …), or "auto",
            which fills the GPU first, as transformers takes it. Layers on the CPU beside a GPU, or on the disk, are
            loaded each time they run, and skipped layers are not. Only one device may compute. None loads the whole
            model to `device`.
        offload_folder: For the weights of layers on the disk. None where transformers can read them from the model's
            own files.

    Returns:
        The model and the tokenizer. A tokenizer without a padding token pads with its end-of-sequence token. An adapter
        on quantised weights is not merged into them, and stays beside them.

    Raises:
        FileNotFoundError: A folder or file is missing, or a model folder lacks a part.
        ConnectionError: The hub cannot be reached and the model is not in its local cache.
        OSError: The hub has no such model, or refuses access to it.
        UserError: Unknown embedded model, dtype or device; a model that is neither a decoder-only nor an
            encoder-decoder language model, or lacks some of its weights; an adapter that cannot be merged; weights that
            are quantised already, or in a way that this machine cannot load.
        RunError: A package that `quantization` needs is not installed.
        RuntimeError: An embedded model could not be downloaded.
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    for what, place in (("name", name), ("adapter", adapter)):
        if not isinstance(place, str | PathLike) and not (what == "adapter" and place is None):
            raise UserError(f"{what}={place!r}: expected a path, or the name of a model")
    target = _device(device)
    given_name, name = fspath(name), fspath(adapter_folder(fspath(name)) or name)
    adapted = adapter is not None or (Path(name).expanduser() / CONFIG_FILE).is_file()
    placing = placing_options(device_map, device, adapted, offload_folder)
    if adapter is None and (Path(name).expanduser() / CONFIG_FILE).is_file():
        named = read_adapter(name)
        name, revision = named.base(revision)
        try:
            model, tokenizer = _load(name, dtype, revision, attention, named, quantization)
        except (FileNotFoundError, ConnectionError, UserError) as error:
            if str(named.folder) in str(error):
                raise
            raise type(error)(f"{error} (the base model of the adapter {named.folder})") from error
    else:
        given = None if adapter is None else read_adapter(fspath(adapter))
        model, tokenizer = _load(name, dtype, revision, attention, given, quantization, placing)
        model.name_or_path = given_name  # what an adapter trained on this model notes as its base
    return (model if placing else model.to(target)).eval(), tokenizer


def model_config(name: str | PathLike[str], revision: str | None = None) -> PreTrainedConfig:
    """Read a model's config, and no weights.

    Args:
        name: As `load_model` takes it, of an embedded model only if it is in the cache. A folder needs no weights.
        revision: As `load_model` takes it.

    Returns:
        The config, of the class that its model_type has in transformers.

    Raises:
        FileNotFoundError: A folder or file is missing, or an embedded model is not in the cache.
        ConnectionError: The hub cannot be reached and the config is not in its local cache.
        OSError: The hub has no such model, or refuses access to it.
        UserError: It cannot be read, or is neither that of a decoder-only nor of an encoder-decoder language model.
    """
    name = fspath(adapter_folder(fspath(name)) or name)
    path = Path(name).expanduser()
    if (path / CONFIG_FILE).is_file() and not (path / "config.json").is_file():
        name, revision = read_adapter(name).base(revision)
        path = Path(name).expanduser()
    if name in EMBEDDED_MODELS and not cached_folder(name).is_dir():
        raise FileNotFoundError(
            f"{name} is not in the cache yet, and its config comes with its weights: fetch it with "
            "`python -m hsdlab.models.embedded`"
        )
    if (path / "config.json").is_file():
        source, options = str(path), dict(NO_CODE)
    else:
        source, options = _locate(name, revision)
    try:
        config = load_config(name, source, options)
    except OSError as error:
        if options.get("local_files_only"):
            raise ConnectionError(
                f"{name!r} is not a local folder (there is none at {path.absolute()}), the hub cannot be reached (no "
                "network, or HF_HUB_OFFLINE is set), and its local cache does not hold the model's config.json."
            ) from error
        raise
    _check_language_model(name, config)
    return config


def _load(
    name: str,
    dtype: str,
    revision: str | None,
    attention: Attention | None,
    adapter: Adapter | None,
    quantization: Quantization | None,
    placing: dict[str, Any] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, and merge an adapter with all that is saved beside it; see `load_model`."""
    source, options = _locate(name, revision)
    try:
        config = load_config(name, source, options)
        _check_language_model(name, config)
        read_generation_config(Path(source))
        pairs = bool(config.is_encoder_decoder)
        rounded = loading_options(name, quantization, dtype, config)
        given = options | rounded | {"attn_implementation": attention} | (placing or {})
        model = load_weights(name, source, dtype, given, encoder_decoder=pairs)
        side = "right" if pairs else "left"  # BART's encoder and its kin count positions with the padding
        if adapter is not None and adapter.brings_tokenizer:
            folder = str(adapter.folder)
            tokenizer = load_tokenizer(folder, folder, {"config": config, "padding_side": side, **NO_CODE})
        else:
            tokenizer = load_tokenizer(name, source, {"padding_side": side, **options})
    except OSError as error:
        if options.get("local_files_only"):
            raise ConnectionError(
                f"{name!r} is not a local folder (there is none at {Path(name).absolute()}), the hub cannot "
                "be reached (no network, or HF_HUB_OFFLINE is set), and its local cache does not hold all of "
                'the model. Give a local folder, a .gguf file or "embedded:smollm2-135m", '
                "or try again with network."
            ) from error
        raise
    model.name_or_path = name
    if adapter is not None:
        model = (leave_beside if is_quantised(model) else merge)(model, adapter, len(tokenizer))
        vars(model)["merged_adapter"] = str(adapter.folder)  # `fit` trains no second one on it
        model.generation_config = adapter.generation_config() or model.generation_config
        tokenizer.chat_template = adapter.chat_template or tokenizer.chat_template
    check_tokenizer_fits(name, tokenizer, model)
    exits = Exits.load(source) if adapter is None else Exits.load(adapter.folder) or Exits.load(source)
    if exits is not None:
        attach_exits(model, exits)
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _device(device: str) -> torch.device:
    """Turn the user's device into a torch.device on which a tensor can be created."""
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch raises either, by device
        reason = str(error).splitlines()[0]
        raise UserError(
            f'device {device!r} cannot be used: {reason}; expected "auto", "cpu", "cuda", "cuda:0", ...'
        ) from error


def _locate(name: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Find what `name` means: the folder or hub id, and the options that from_pretrained needs for it."""
    options: dict[str, Any] = dict(NO_CODE)
    if not name:
        raise FileNotFoundError("the model's name is empty: expected a folder, a .gguf file or a model's id on the hub")
    path = Path(name).expanduser()
    if name.startswith(PREFIX):
        return str(embedded_folder(name)), options
    if path.is_dir():
        _check_folder(path)
        return str(path), options
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), options | {"gguf_file": path.name}
    if path.is_file():
        raise UserError(f"{path} is a file; expected a model folder, a .gguf file or a model's id on the hub")
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
    """Ask the hub for the model once; from_pretrained would retry each file for 23 seconds."""
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"))
    except HfHubHTTPError:
        return True  # it answers. That the model does not exist, or access is refused, from_pretrained says best
    except Exception:  # no network or HF_HUB_OFFLINE=1; the type depends on the hub's HTTP client
        return False
    return True


def _check_language_model(name: str, config: PreTrainedConfig) -> None:
    """Raise UserError unless the configuration is that of a decoder-only or an encoder-decoder language model."""
    if config.is_encoder_decoder:
        with_head = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
        # BART-base is stored without its head, which is the matrix of the embeddings
        known = {with_head, with_head and MODEL_MAPPING_NAMES.get(config.model_type)} - {None}
    else:
        with_head = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
        known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if not set(config.architectures or [with_head]) & known:
        raise UserError(
            f"hsdlab decodes language models, decoder-only (GPT-2, OPT, Llama, ...) or encoder-decoder (T5, BART, "
            f"Marian, ...); {name} is a {config.model_type} model with "
            f"{config.architectures or 'no language-model head'}"
        )
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 1)
    if layers < 1:
        raise UserError(f"{name}: its config.json says num_hidden_layers={layers}; expected 1 or more")


def weights_fingerprint(model: nn.Module) -> str:
    """Hash a sample of a model's weights, in much less time than :func:`hsdlab.models.identity.weights_hash`.

    Args:
        model: Any module. Of each tensor about 64 numbers at equal distances are read.

    Returns:
        16 hex digits of SHA-256. The dtype of the weights does not count, the values do.
    """
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        for plain in plain_tensors(weight.detach()):
            numbers = plain.flatten()
            numbers = numbers[:: max(1, len(numbers) // 64)].cpu().double()
            digest.update(f"{name} {tuple(weight.shape)}".encode() + numbers.numpy().tobytes())
    digest.update(layers_without_weights(model).encode())
    return digest.hexdigest()[:16]
