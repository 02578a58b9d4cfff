"""A few tokens before a run begins: what the options, an encoder or a strategy of one's own lack is known by then.

Nothing is written and nothing is kept: the random state is as before.
"""

import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from hsdlab.decoding.compiled import check_compilation
from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.families import decoder_parts
from hsdlab.errors import RunError, UserError, faults_of_the_run
from hsdlab.models.generation import check_token_ids, fixed_length
from hsdlab.modules import DecodeModule
from hsdlab.reasons import reason
from hsdlab.strategies import FullDepth, ScheduledStrategy, SkipStrategy, Verified

PROMPT_TOKENS, NEW_TOKENS = 8, 3  # two decode steps


def check_options_fit(module: DecodeModule) -> None:
    """Refuse token ids beyond the vocabulary, and more beams than it has tokens.

    Args:
        module: Its generate_kwargs and the model's own generation config are checked, and its num_beams.

    Raises:
        UserError: An option does not fit; the message names it.
    """
    vocabulary = module.model.get_output_embeddings().weight.shape[0]
    check_token_ids(module.generate_kwargs, vocabulary)
    check_token_ids(module.generation().options, vocabulary)  # of the model's own generation config too
    if module.num_beams > vocabulary:
        raise UserError(
            f"num_beams={module.num_beams}: expected at most {vocabulary}; the model has no more tokens to begin with."
        )


def rehearse(
    module: DecodeModule,
    prompt: Sequence[int],
    strategies: Sequence[SkipStrategy],
    form: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    scores: bool = True,
) -> None:
    """Decode a few tokens with the options of a run, score a text, and ask each strategy what it will be asked.

    Args:
        module: Its model must be on the device of the run.
        prompt: Token ids of one prompt of the run. Only the last 8 are read.
        strategies: Strategies of the run. Only those that decide while they decode are tried: the others were checked
            when they were applied to the model.
        form: Changes the options of decoding, as the run does.
        scores: Whether the run scores texts, so that the metrics are tried too.

    Raises:
        UserError: transformers or the model refuses the options, a strategy answers what it must not, or the module
            compiles what cannot be compiled.
        RunError: A metric or a strategy's own code fails.
    """
    if module.compiled:
        parts = decoder_parts(module.model)
        for strategy in strategies:
            check_compilation(parts, Decisions(strategy, parts.num_layers, module.max_new_tokens))
    with isolate_rng(), torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _with_options(module, prompt, form)
        if scores:
            with faults_of_the_run():
                for metric in module.text_metrics().values():
                    metric.score(["a text"], [["a text"]])
        for strategy in strategies:
            if not isinstance(strategy, ScheduledStrategy) or hasattr(strategy, "should_exit"):
                verifies = isinstance(strategy, Verified)  # with the run's beams, which it refuses
                with own_faults(strategy):
                    _decode(
                        module,
                        prompt,
                        strategy,
                        module.generation(form if verifies else fixed_length).options,
                        compiled=verifies and module.compiled,
                    )


@contextmanager
def own_faults(made: object) -> Iterator[None]:
    """Turn an error in the code of a class of the user's own into one sentence.

    Args:
        made: The strategy or data set whose code runs in the block. Errors of hsdlab's own classes pass unchanged.

    Yields:
        Nothing. UserError and OSError pass unchanged.

    Raises:
        RunError: The block raised another error. The message names the class, the file and the line.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if type(made).__module__.startswith("hsdlab."):
            raise
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise RunError(
            f"{type(made).__name__} fails: {reason(error)} ({at.filename}, line {at.lineno}). --debug "
            "shows the traceback"
        ) from error


def _with_options(module: DecodeModule, prompt: Sequence[int], form: Callable[..., dict[str, Any]]) -> None:
    decoding = module.generation(form)
    try:
        _decode(module, prompt, FullDepth(), decoding.options)
    except UserError:
        raise
    except Exception as error:
        if module.generate_kwargs:
            raise UserError(
                f"generate_kwargs={module.generate_kwargs}: this model cannot be decoded with these options "
                f"({reason(error)}). Change them, or leave them out."
            ) from error
        if decoding.taken:
            raise RunError(
                f"the model cannot be decoded with what its generation_config.json says, {decoding.taken} "
                f"({reason(error)}). Mend the file, or give other values with --model.generate_kwargs."
            ) from error
        raise


def _decode(
    module: DecodeModule,
    prompt: Sequence[int],
    strategy: SkipStrategy,
    options: Mapping[str, Any],
    compiled: bool = False,
) -> None:
    ids = torch.tensor([list(prompt)[-PROMPT_TOKENS:]], device=module.model.device)
    length = {"max_new_tokens": min(NEW_TOKENS, module.max_new_tokens)}
    with strategy.applied_to(module.model):
        module.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **{**options, **length, "compile": compiled}
        )
