"""Teacher forcing: which layers run for each token of a given text, and what the model makes of it then.

The text's token t is the input of decode step t. The prompt runs all layers, and so does the last of T tokens: no step
has it as its input.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from hsdlab.decoding.decisions import Decisions, Strategy
from hsdlab.decoding.families import decoder_parts, position_ids
from hsdlab.decoding.replay import replay


def schedule_mask(strategy: Strategy, num_layers: int, max_steps: int) -> Tensor | None:
    """The layers that decoding runs in each step, if they are known beforehand and the same for all rows.

    Args:
        strategy: Who decides.
        num_layers: L.
        max_steps: T, the most new tokens.

    Returns:
        BoolTensor [T, layers]: steps 0 … T-2, and all layers for token T-1; None if the strategy decides while it
        decodes.

    Raises:
        UserError: The schedule does not fit the model.
    """
    decisions = Decisions(strategy, num_layers, max_steps)
    if not decisions.same_for_all_rows:
        return None
    schedule = torch.ones(max_steps, num_layers, dtype=torch.bool)
    for step in range(max_steps - 1):
        decisions.begin_step(step, rows=1)
        schedule[step] = decisions.executed[0]
    return schedule


def forced_mask(schedules: Tensor, new_tokens: Tensor) -> Tensor:
    """Say which layers run for each token of a teacher-forced batch.

    Args:
        schedules: BoolTensor [rows or 1, T, layers], of :func:`schedule_mask`: one for each row, or one for all.
        new_tokens: BoolTensor [rows, length], true at the tokens of the text after the prompt; at most T in a row.

    Returns:
        BoolTensor [rows, length, layers], ready for :func:`replay`.
    """
    step = (new_tokens.long().cumsum(dim=1) - 1).clamp(min=0)  # (rows, length)
    row = torch.arange(len(schedules), device=step.device)[:, None]  # (rows or 1, 1)
    return schedules[row, step] | ~new_tokens[..., None]  # (rows, length, layers)


def decode_steps(new_tokens: Tensor) -> Tensor:
    """Inputs of decode steps among all tokens but the last: [rows, length] to [rows, length - 1]."""
    return new_tokens[:, :-1] & new_tokens[:, 1:]


class ForcedTexts:
    """The texts of one batch behind the keys and values of their prompts, which are computed once.

    Only the positions of decode steps count, whose inputs are the new tokens but the last.

    Args:
        model: A decoder-only transformers model in eval mode.
        batch: "input_ids" and "attention_mask" [rows, length] with prompts padded on the left, and "target_mask",
            BoolTensor [rows, length], true at the new tokens, at least two in some row (``collate_pairs`` of
            hsdlab.data).

    Attributes:
        decode: BoolTensor [rows, replayed], true at the inputs of decode steps. The replay begins with the first one
            of any row; what stands before it is past.
    """

    def __init__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
        parts = decoder_parts(model)
        input_ids, mask, targets = (
            batch[name].to(parts.model.device) for name in ("input_ids", "attention_mask", "target_mask")
        )
        decode = decode_steps(targets)
        start = int(decode.any(dim=0).long().argmax())
        self._parts = parts
        self._past = DynamicCache(config=parts.model.config.get_text_config(decoder=True))
        parts.model(
            input_ids=input_ids[:, :start],
            attention_mask=mask[:, :start],
            position_ids=position_ids(mask[:, :start]),
            past_key_values=self._past,
            use_cache=True,
            logits_to_keep=1,
        )
        self._input_ids, self._mask = input_ids[:, start:-1], mask[:, :-1]
        self.decode = decode[:, start:]
        self._next = input_ids[:, start + 1 :][self.decode]  # (steps)

    def logits(self, executed: Tensor) -> Tensor:
        """Logits of the decode steps, [steps, vocabulary], float32 or wider.

        Args:
            executed: BoolTensor [rows, replayed, layers]; all true where ``decode`` is false.
        """
        logits = replay(
            self._parts.model,
            input_ids=self._input_ids,
            attention_mask=self._mask,
            executed=executed,
            past=self._past,
        )[self.decode]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(self, logits: Tensor) -> Tensor:
        """Negative log-likelihood of the text's next tokens, [steps], nats."""
        return cross_entropy(logits, self._next, reduction="none")
