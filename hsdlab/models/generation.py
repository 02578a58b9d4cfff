"""Which entries of a checkpoint's generation config a command's decoding follows.

Most chat models ask for sampling in their `generation_config.json`, and `model.generate` follows without a message.
The commands decode greedily or by beams unless the user asks otherwise. From the checkpoint they take the special
tokens and what ends a text, and nothing else. Of an encoder-decoder they also take the tokens that it forces or never
writes (BART's first token, mBART's language, Marian's padding): it was trained so. `hsdlab.generate` in Python follows
the checkpoint, as transformers does.

Longer than other files: a third of it is the table of all entries.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hsdlab.errors import UserError
from hsdlab.reasons import reason

Rule = Literal["taken", "overridden", "refused"]


@dataclass(frozen=True)
class Entry:
    """What the commands do with one entry of transformers' GenerationConfig.

    Attributes:
        rule: "taken" from the checkpoint; "overridden" by `value` unless the user sets it; "refused" if the user sets
            it, and overridden by `value` if the checkpoint does.
        why: The reason; for refused entries what to do instead.
        value: The value in place of the checkpoint's.
    """

    rule: Rule
    why: str
    value: Any = None


def _entries(rule: Rule, why: str, values: Mapping[str, Any] | Iterable[str]) -> dict[str, Entry]:
    """Return an entry for each name, with its value if there is one."""
    values = values if isinstance(values, Mapping) else dict.fromkeys(values)
    return {name: Entry(rule, why, value) for name, value in values.items()}


SAMPLING = _entries(
    "overridden",
    "decoding is greedy or by beams unless the user asks for samples",
    {
        "do_sample": False,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "top_h": None,
        "min_p": None,
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
    },
)
"""The entries that control sampling. The values are transformers' own defaults."""

STOPPING = _entries("taken", "they end a text", ("eos_token_id", "stop_strings"))

LENGTHS = _entries(
    "overridden",
    "the length is the user's choice, max_new_tokens",
    {"min_length": 0, "min_new_tokens": None, "max_time": None},
)

NO_EFFECT = _entries(
    "taken", "no effect on decoding", ("transformers_version", "_from_model_config", "disable_compile")
)

GENERATION: dict[str, Entry] = {
    **SAMPLING,
    **STOPPING,
    **_entries(
        "taken",
        "the model's special tokens",
        ("bos_token_id", "pad_token_id", "decoder_start_token_id"),
    ),
    **NO_EFFECT,
    **_entries(
        "overridden",
        "they change the scores, so that the text is no longer the model's most probable one",
        {
            "repetition_penalty": 1.0,
            "encoder_repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            "encoder_no_repeat_ngram_size": 0,
            "exponential_decay_length_penalty": None,
            "bad_words_ids": None,
            "sequence_bias": None,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
            "forced_bos_token_id": None,
            "forced_eos_token_id": None,
            "renormalize_logits": None,
            "remove_invalid_values": False,
            "watermarking_config": None,
        },
    ),
    **LENGTHS,
    **_entries(
        "overridden",
        "beam search is transformers' plain one",
        {"length_penalty": 1.0, "early_stopping": False},
    ),
    "max_new_tokens": Entry("refused", "give it as the parameter max_new_tokens"),
    "max_length": Entry("refused", "give max_new_tokens instead"),
    "num_beams": Entry("refused", "give it as the parameter num_beams", 1),
    "num_return_sequences": Entry("refused", "an example has one prediction", 1),
    **_entries(
        "refused",
        "transformers no longer contains this way of decoding; leave it out",
        {
            "num_beam_groups": 1,
            "diversity_penalty": 0.0,
            "penalty_alpha": None,
            "dola_layers": None,
            "constraints": None,
            "force_words_ids": None,
            "low_memory": None,
        },
    ),
    **_entries(
        "refused",
        "assisted decoding cannot be combined with skipped layers; leave it out",
        (
            "assistant_confidence_threshold",
            "assistant_early_exit",
            "assistant_ensemble_weight",
            "assistant_lookbehind",
            "is_assistant",
            "max_matching_ngram_size",
            "num_assistant_tokens",
            "num_assistant_tokens_schedule",
            "prompt_lookup_num_tokens",
            "speculation_type",
            "target_lookbehind",
            "use_mtp",
        ),
    ),
    "guidance_scale": Entry("refused", "it runs a second pass at full depth that no figure counts; leave it out"),
    "token_healing": Entry("refused", "it changes the prompt; leave it out"),
    "use_cache": Entry("refused", "skipped layers are decoded on a key/value cache; leave it out", True),
    **_entries(
        "refused",
        "skipped layers are decoded on hsdlab's own key/value cache; leave it out",
        (
            "cache_implementation",
            "cache_config",
            "max_cache_len",
            "prefill_chunk_size",
            "continuous_batching_config",
            "compile_config",
        ),
    ),
    **_entries(
        "refused",
        "no command reads this output; leave it out",
        {
            "output_attentions": False,
            "output_hidden_states": False,
            "output_logits": None,
            "output_scores": False,
            "return_dict_in_generate": False,
        },
    ),
}
"""Every entry of transformers' GenerationConfig."""

OF_ENCODER_DECODERS = ("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids")
"""Entries that are taken from the checkpoint of an encoder-decoder, whatever the table says."""

_OBJECTS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer", "tokenizer")
"""Parameters of `model.generate` that are not entries of the config. In Python they may be set."""


@dataclass(frozen=True)
class Generation:
    """How a command decodes with a model.

    Attributes:
        options: Keyword arguments for `model.generate`.
        taken: The entries of the checkpoint's generation config that are in effect, with their values.
        not_taken: Its other entries, with their values.
    """

    options: dict[str, Any]
    taken: dict[str, Any]
    not_taken: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Prepare the options for run.json.

        Returns:
            "options" holds those in effect, "not_taken" the checkpoint's other entries, both by name. Values that JSON
            cannot hold are text.
        """
        in_effect = {name: value for name, value in (self.taken | self.options).items() if name not in _OBJECTS}
        in_effect["do_sample"] = bool(in_effect.get("do_sample"))
        plain = {name: _as_json(value) for name, value in sorted(in_effect.items())}
        return {"options": plain, "not_taken": {name: _as_json(value) for name, value in self.not_taken.items()}}

    def sentence(self) -> str:
        """Describe the way of decoding in one line for the terminal.

        Returns:
            Greedy, beams or sampling, what was taken from the checkpoint's generation config, and what was not.
        """
        beams = self.options.get("num_beams", 1)
        how = "sampling" if self.options.get("do_sample") else "beam search" if beams > 1 else "greedy decoding"
        text = f"Decoding: {how}" + (f" with {beams} beams" if beams > 1 else "")
        text += f"; from the model's generation_config: {_listed(self.taken)}." if self.taken else "."
        if self.not_taken:
            text += (
                f" Not taken from it: {_listed(self.not_taken)}; --model.generate_kwargs='{{name: value}}' sets "
                "such options."
            )
        return text


def generation(
    model: PreTrainedModel, given: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None = None
) -> Generation:
    """Choose how a command decodes: by the user's options, without sampling or penalties that only the checkpoint sets.

    Args:
        model: Its generation config is read, and not changed.
        given: The user's options for `model.generate`; they override everything else.
        tokenizer: Needed for stop strings only; None leaves `model.generate` without one.

    Returns:
        The options for `model.generate`, and what of the checkpoint's config is in effect.
    """
    taken_names = {name for name, entry in GENERATION.items() if entry.rule == "taken"}
    if model.config.is_encoder_decoder:
        taken_names.update(OF_ENCODER_DECODERS)
    of_checkpoint = {name: value for name, value in vars(model.generation_config).items() if value is not None}
    not_taken = {
        name: value
        for name, value in of_checkpoint.items()
        if name in GENERATION and name not in taken_names and value != given.get(name, GENERATION[name].value)
    }
    taken = {
        name: value
        for name, value in of_checkpoint.items()
        if name in taken_names and name not in NO_EFFECT and name not in given
    }
    instead = {name: GENERATION[name].value for name in not_taken if name not in given}
    options = {**instead, **given}
    if options.get("stop_strings", taken.get("stop_strings")) and tokenizer is not None:
        options.setdefault("tokenizer", tokenizer)
    return Generation(options, taken, not_taken)


def greedy(given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn options for decoding into those for greedy decoding.

    Args:
        given: Options of `model.generate`.

    Returns:
        A copy with one beam and without sampling.
    """
    kept = {name: value for name, value in given.items() if name not in SAMPLING}
    return kept | {"do_sample": False, "num_beams": 1}


def fixed_length(given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn options for decoding into those for greedy decoding up to a fixed length, whatever the text is.

    Args:
        given: Options of `model.generate`.

    Returns:
        A copy with one beam, without sampling, and without all that ends a text. The caller adds `max_new_tokens`.
    """
    ends = {*STOPPING, *LENGTHS, "max_new_tokens", "stopping_criteria"}
    kept = {name: value for name, value in greedy(given).items() if name not in ends}
    return kept | dict.fromkeys(STOPPING)


def check_generate_kwargs(given: Mapping[str, Any]) -> None:
    """Refuse options that do not exist, are parameters of their own, are not supported, or have an impossible value.

    Args:
        given: The user's options for `model.generate`.

    Raises:
        UserError: One of them is refused; the message names it.
    """
    known = [name for name, entry in GENERATION.items() if entry.rule != "refused" and not name.startswith("_")]
    for name in given:
        if name in GENERATION and GENERATION[name].rule == "refused":
            raise UserError(f"generate_kwargs holds {name!r}: {GENERATION[name].why}.")
        if name not in known and name not in _OBJECTS:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the options are {', '.join(sorted(known))}."
            raise UserError(f"generate_kwargs holds {name!r}, which is no option of transformers' generate: {hint}")
    _check_stop_strings(given.get("stop_strings"))
    _check_objects(given)
    values = {name: value for name, value in given.items() if name not in _OBJECTS and value is not None}
    _check_switches(values)
    try:
        GenerationConfig(**values).validate()
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"generate_kwargs={values}: transformers refuses it: {reason(error)}.") from error
    _check_numbers(values)


def check_token_ids(given: Mapping[str, Any], vocabulary: int) -> None:
    """Refuse token ids that the model does not have.

    Args:
        given: The user's options for `model.generate`.
        vocabulary: Number of the model's tokens.

    Raises:
        UserError: An id is not an integer from 0 to vocabulary - 1; the message names the option.
    """
    for name in _TOKENS:
        value = given.get(name)
        ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
                raise UserError(
                    f"generate_kwargs: {name} is {value!r}; expected the number of a token, from 0 to {vocabulary - 1}"
                    f"{' or a list of such' if name not in _ONE_TOKEN else ''}."
                )


_ONE_TOKEN = ("bos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")
_TOKENS = (*_ONE_TOKEN, "eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
_SWITCHES = ("do_sample", "renormalize_logits", "remove_invalid_values", "disable_compile")


def _check_objects(given: Mapping[str, Any]) -> None:
    """Refuse plain values, as a command line or a config has them, for options that are objects in Python."""
    for name in _OBJECTS:
        plain = given.get(name)
        if isinstance(plain, bool | int | float | str | dict) or (
            isinstance(plain, list) and not all(callable(each) for each in plain)
        ):
            raise UserError(f"generate_kwargs: {name} is {plain!r}; it can be given in Python only, as an object.")


def _check_switches(values: Mapping[str, Any]) -> None:
    for name in _SWITCHES:
        if name in values and not isinstance(values[name], bool):
            raise UserError(f"generate_kwargs: {name} is {values[name]!r}; expected true or false.")
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"generate_kwargs: {name} is {value}; expected a finite number.")


def _check_stop_strings(value: Any) -> None:
    strings = [value] if isinstance(value, str) else value
    if strings is None:
        return
    if not isinstance(strings, list | tuple) or not strings or not all(isinstance(s, str) and s for s in strings):
        raise UserError(
            f"generate_kwargs: stop_strings is {value!r}; expected a string or a list of strings, not empty."
        )


_NUMBERS = {
    "temperature": (0, float("inf")),
    "top_k": (0, float("inf")),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repetition_penalty": (0, float("inf")),
    "length_penalty": (-float("inf"), float("inf")),
    "no_repeat_ngram_size": (0, float("inf")),
    "min_length": (0, float("inf")),
    "min_new_tokens": (0, float("inf")),
    "max_time": (0, float("inf")),
    "top_h": (0, 1),
    "epsilon_cutoff": (0, 1),
    "eta_cutoff": (0, 1),
    "encoder_repetition_penalty": (0, float("inf")),
    "encoder_no_repeat_ngram_size": (0, float("inf")),
}
"""The range of each number, without infinite ends. transformers checks only some of them, and only when it decodes."""


def _check_numbers(values: Mapping[str, Any]) -> None:
    for name, (low, high) in _NUMBERS.items():
        value = values.get(name)
        if value is None:
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
            or value
            in (
                float("inf"),
                -float("inf"),
            )
        ):
            between = f"{low} to {high}" if high != float("inf") else "a number" + (f" from {low}" if low == 0 else "")
            raise UserError(f"generate_kwargs: {name} is {value!r}; expected {between}.")
    for name in ("temperature", "repetition_penalty"):
        if values.get(name) == 0:
            hint = " (do_sample: false decodes greedily)" if name == "temperature" else ""
            raise UserError(f"generate_kwargs: {name} is 0; expected more than 0{hint}.")


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
