"""Teacher forcing: which layers run for each token of a given text, and which logits the model then gives.

Token t of the text is the input of decode step t. The prompt runs all layers, unless the strategy has a schedule for
it. The last of T tokens runs all layers, since no decode step has it as its input.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from hsdlab.decoding.decisions import Decisions, Strategy
from hsdlab.decoding.families import DecoderParts, decoder_config, decoder_parts, position_ids
from hsdlab.decoding.replay import replay
from hsdlab.decoding.sub_layers import alike, apart

_LONG = 1000  # tokens; a prompt of this length stands for all prompts


class LayerSchedule:
    """Which layers a strategy runs for each token of a given text. All tensors are on the CPU.

    Args:
        decisions: Of the strategy, which decides neither during decoding nor for each row.

    Attributes:
        steps: BoolTensor [T, layers], or [T, layers, 2] if attention and MLP run apart in some step: the layers of
            steps 0 … T-2, and all layers for token T-1.
    """

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        steps = []
        for step in range(decisions.max_steps - 1):
            decisions.begin_step(step, rows=1)
            steps.append(decisions.executed[0])
        last = torch.ones_like(steps[0]) if steps else torch.ones(decisions.num_layers, dtype=torch.bool)
        self.steps = torch.stack([*steps, last])

    def prompt(self, length: int) -> Tensor | None:
        """Give the layers of a prompt.

        Args:
            length: Tokens of the prompt, without padding.

        Returns:
            BoolTensor [length, layers]; None if all layers run for all tokens.
        """
        executed = self._decisions.prompt_layers(torch.ones(1, length, dtype=torch.bool))
        return None if executed is None or bool(executed.all()) else executed[0]

    @cached_property
    def skips_prompt(self) -> bool:
        """Whether a token of a long prompt skips a layer."""
        return self.prompt(_LONG) is not None

    @property
    def skips(self) -> bool:
        """Whether any token skips a layer."""
        return self.skips_prompt or not bool(self.steps.all())

    @property
    def content(self) -> bytes:
        """What tells schedules apart that have as many steps and layers."""
        prompt = self.prompt(_LONG)
        return self.steps.numpy().tobytes() + (b"" if prompt is None else prompt.numpy().tobytes())


def layer_schedule(strategy: Strategy, num_layers: int, max_steps: int) -> LayerSchedule | None:
    """Find the layers that a strategy runs, before anything is decoded.

    Args:
        strategy: Any strategy, also one without a schedule.
        num_layers: L.
        max_steps: T, the most new tokens.

    Returns:
        The schedule. None if the strategy decides during decoding.

    Raises:
        UserError: The schedule does not fit the model.
    """
    decisions = Decisions(strategy, num_layers, max_steps)
    return LayerSchedule(decisions) if decisions.same_for_all_rows else None


def forced_mask(schedules: Sequence[LayerSchedule], new_tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """Say which layers run for each token of a teacher-forced batch.

    Args:
        schedules: One for each sequence, or one for all.
        new_tokens: BoolTensor [rows, length], true at the tokens of the text after the prompt; at most T in a row.
        attention_mask: [rows, length], 1 for tokens and 0 for padding. The tokens that are not new are the prompt.

    Returns:
        BoolTensor [rows, length, layers], or [rows, length, layers, 2], ready for :func:`replay`.
    """
    each = alike([schedule.steps for schedule in schedules], dims=2)
    steps = torch.stack(each).to(new_tokens.device)  # (rows or 1, T, layers) or (rows or 1, T, layers, 2)
    step = (new_tokens.long().cumsum(dim=1) - 1).clamp(min=0)  # (rows, length)
    row = torch.arange(len(schedules), device=step.device)[:, None]  # (rows or 1, 1)
    executed = steps[row, step]  # (rows, length, layers) or (rows, length, layers, 2)
    executed[~new_tokens] = True
    for index, in_prompt in enumerate(attention_mask.bool() & ~new_tokens):
        schedule = schedules[index if len(schedules) > 1 else 0]
        if schedule.skips_prompt:
            places = in_prompt.nonzero().squeeze(1)
            prompt = schedule.prompt(len(places))
            if prompt is not None:
                whole = prompt if executed.dim() == 3 else apart(prompt, dims=2)
                executed[index, places] = whole.to(executed.device)
    return executed


def decode_steps(new_tokens: Tensor) -> Tensor:
    """Find the inputs of decode steps: the new tokens that another new token follows.

    Args:
        new_tokens: BoolTensor [rows, length], true at the tokens of the text after the prompt.

    Returns:
        BoolTensor [rows, length - 1]; the last position is no input.
    """
    return new_tokens[:, :-1] & new_tokens[:, 1:]


def _prefilled(parts: DecoderParts, input_ids: Tensor, mask: Tensor) -> DynamicCache:
    """Compute the KV cache of some prompts at full depth."""
    past = DynamicCache(config=decoder_config(parts.model.config))
    parts.model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=position_ids(mask),
        past_key_values=past,
        use_cache=True,
        logits_to_keep=1,
    )
    return past


class ForcedTexts:
    """The texts of one batch, to be scored under many schedules.

    The KV cache of their prompts is computed once. The state of a recurrent layer is not, since some (Mamba) take none
    in a pass over several tokens: a model that has one computes its prompts again for each schedule. So does one with
    an encoder, whose decoder has little to begin from.

    Only the positions of decode steps are scored. Their inputs are the new tokens without the last.

    Args:
        model: A transformers language model in eval mode.
        batch: "input_ids" and "attention_mask" [rows, length] with prompts padded on the left, and "target_mask",
            BoolTensor [rows, length], true at the new tokens, at least two in some row (``collate_pairs`` of
            hsdlab.data). For an encoder-decoder model these are the decoder's, its start token first; the encoder reads
            "source_ids" and "source_mask" [rows, source].

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
        self._start = int(decode.any(dim=0).long().argmax())
        self._parts = parts
        self._source: tuple[Tensor, Tensor] | None = None
        if parts.encoder is not None:
            self._source = batch["source_ids"].to(mask.device), batch["source_mask"].to(mask.device)
        anew = parts.recurrent or parts.encoder is not None
        self._past = None if anew else _prefilled(parts, input_ids[:, : self._start], mask[:, : self._start])
        self._input_ids, self._mask, self._new_tokens = input_ids[:, :-1], mask[:, :-1], targets[:, :-1]
        self.decode = decode[:, self._start :]
        self._next = input_ids[:, self._start + 1 :][self.decode]  # (steps)

    def logits(self, executed: Tensor) -> Tensor:
        """Compute the logits of the decode steps, after a prompt at full depth.

        Args:
            executed: BoolTensor [rows, replayed, layers], or [rows, replayed, layers, 2]; all true where ``decode`` is
                false.

        Returns:
            [steps, vocabulary], float32 or wider. The decode steps of all rows follow one another, row by row.
        """
        if self._past is not None:
            return self._of_steps(self._input_ids[:, self._start :], executed, self._past)
        before = executed.new_ones(len(executed), self._start, *executed.shape[2:])
        return self._of_steps(self._input_ids, torch.cat([before, executed], dim=1), None)

    def scheduled_logits(self, schedule: LayerSchedule) -> Tensor:
        """Compute the logits of the decode steps under a schedule, of the prompt too.

        Args:
            schedule: Layers of the prompt and of the decode steps. If it skips layers in the prompt, the prompt is
                computed anew.

        Returns:
            [steps, vocabulary], as those of :meth:`logits`.
        """
        executed = forced_mask([schedule], self._new_tokens, self._mask)  # (rows, length - 1, layers)
        if schedule.skips_prompt:
            return self._of_steps(self._input_ids, executed, None)
        return self.logits(executed[:, self._start :])

    def _of_steps(self, input_ids: Tensor, executed: Tensor, past: DynamicCache | None) -> Tensor:
        steps = self.decode.shape[1]
        if self._source is None:
            logits = replay(
                self._parts.model,
                input_ids=input_ids,
                attention_mask=self._mask,
                executed=executed,
                past=past,
                logits_to_keep=steps,
            )[self.decode]
        else:
            logits = replay(
                self._parts.model,
                input_ids=self._source[0],
                attention_mask=self._source[1],
                decoder_input_ids=input_ids,
                decoder_attention_mask=self._mask,
                executed=executed,
                logits_to_keep=steps,
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

    def prompt_ids(self) -> Tensor:
        """Give the tokens of the prompts.

        Returns:
            LongTensor [tokens]: those of all rows, one after the other, without padding.
        """
        return self._input_ids[self._mask.bool() & ~self._new_tokens]

    def agrees(self, logits: Tensor, tokens: Tensor | None = None) -> list[Tensor]:
        """Tell in which decode steps the most probable token is the text's next one.

        Args:
            logits: [steps, vocabulary], of :meth:`logits`.
            tokens: The tokens that may be chosen, LongTensor [n] without repetition; None for all.

        Returns:
            For each row a BoolTensor [its decode steps] on the CPU.
        """
        chosen = logits.argmax(dim=-1) if tokens is None else tokens[logits[:, tokens].argmax(dim=-1)]
        return list((chosen == self._next).cpu().split(self.decode.sum(dim=1).tolist()))
