"""Teacher forcing: which layers run for each token of a given text, and which logits the model then gives.

Token t of the text is the input of decode step t. The prompt runs all layers. So does the last of T tokens, since no
decode step has it as its input.
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
    """Turn a layer schedule into a mask.

    Args:
        strategy: Any strategy, also one without a schedule.
        num_layers: L.
        max_steps: T, the most new tokens.

    Returns:
        BoolTensor [T, layers] on the CPU, or [T, layers, 2] if attention and MLP run apart in some step: steps 0 … T-2,
        and all layers for token T-1. None if the strategy decides during decoding.

    Raises:
        UserError: The schedule does not fit the model.
    """
    decisions = Decisions(strategy, num_layers, max_steps)
    if not decisions.same_for_all_rows:
        return None
    steps = []
    for step in range(max_steps - 1):
        decisions.begin_step(step, rows=1)
        steps.append(decisions.executed[0])
    last = torch.ones_like(steps[0]) if steps else torch.ones(num_layers, dtype=torch.bool)
    return torch.stack([*steps, last])


def forced_mask(schedules: Tensor, new_tokens: Tensor) -> Tensor:
    """Say which layers run for each token of a teacher-forced batch.

    Args:
        schedules: BoolTensor [rows or 1, T, layers] of :func:`schedule_mask`, one for each sequence or one for all; or
            [rows or 1, T, layers, 2].
        new_tokens: BoolTensor [rows, length], true at the tokens of the text after the prompt; at most T in a row.

    Returns:
        BoolTensor [rows, length, layers], or [rows, length, layers, 2], ready for :func:`replay`.
    """
    step = (new_tokens.long().cumsum(dim=1) - 1).clamp(min=0)  # (rows, length)
    row = torch.arange(len(schedules), device=step.device)[:, None]  # (rows or 1, 1)
    executed = schedules[row, step]  # (rows, length, layers) or (rows, length, layers, 2)
    executed[~new_tokens] = True
    return executed


def decode_steps(new_tokens: Tensor) -> Tensor:
    """Find the inputs of decode steps: the new tokens that another new token follows.

    Args:
        new_tokens: BoolTensor [rows, length], true at the tokens of the text after the prompt.

    Returns:
        BoolTensor [rows, length - 1]; the last position is no input.
    """
    return new_tokens[:, :-1] & new_tokens[:, 1:]


class ForcedTexts:
    """The texts of one batch, to be scored under many schedules. The KV cache of their prompts is computed once.

    Only the positions of decode steps are scored. Their inputs are the new tokens without the last.

    Args:
        model: A decoder-only transformers model in eval mode.
        batch: "input_ids" and "attention_mask" [rows, length] with prompts padded on the left, and "target_mask",
            BoolTensor [rows, length], true at the new tokens, at least two in some row (``collate_pairs`` of
            hsdlab.data).

    Attributes:
        decode: BoolTensor [rows, replayed], true at the inputs of decode steps. The replay begins with the first of
            them in any row. The KV cache holds all columns before it.
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
        """Compute the logits of the decode steps.

        Args:
            executed: BoolTensor [rows, replayed, layers], or [rows, replayed, layers, 2]; all true where ``decode`` is
                false.

        Returns:
            [steps, vocabulary], float32 or wider. The decode steps of all rows follow one another, row by row.
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
        """Compute the negative log-likelihood of the text's next tokens.

        Args:
            logits: [steps, vocabulary], of :meth:`logits`.

        Returns:
            [steps], nats.
        """
        return cross_entropy(logits, self._next, reduction="none")
