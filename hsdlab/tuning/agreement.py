"""Where a draft would write the next token that full depth wrote, in texts of full depth."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.forced import ForcedTexts, LayerSchedule, decode_steps
from hsdlab.strategies import ScheduledStrategy, Verified
from hsdlab.tuning.schedule_file import ScheduleFile, schedule_key

Vocabulary = int | str | None
"""A value of `draft_vocabulary` of :class:`~hsdlab.Verified`."""
Agreements = tuple[str, ...]
"""A text each: "1" for a decode step whose most probable token is the text's next one, "0" for another step."""


class ReplayAgreement:
    """Finds the agreement of drafts with given texts, by one masked pass for each schedule, without a decode.

    The pass runs the draft's layers for all new tokens. In verified decoding, the keys and values of accepted tokens
    are those of full depth, so a draft that skips layers may agree there more or less often. One of the lowest layers,
    whose keys and values are the same either way, agrees exactly as often.

    Args:
        model: A transformers language model in eval mode.
        batches: Each "input_ids", "attention_mask" and "target_mask" [rows, length], as for `ForcedTexts`. Batches
            without a decode step are left out.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> None:
        with torch.inference_mode():
            used = [batch for batch in batches if decode_steps(batch["target_mask"]).any()]
            self._texts = [ForcedTexts(model, batch) for batch in used]
        self._parts = decoder_parts(model)

    @torch.inference_mode()
    def __call__(
        self, draft: ScheduledStrategy, schedule: LayerSchedule, vocabularies: Sequence[Vocabulary]
    ) -> dict[Vocabulary, Agreements]:
        """Find the agreement of a draft with each draft vocabulary.

        Args:
            draft: The strategy that drafts.
            schedule: Its schedule, of `layer_schedule`.
            vocabularies: The draft vocabularies.

        Returns:
            The agreements by vocabulary.
        """
        found: dict[Vocabulary, list[str]] = {each: [] for each in vocabularies}
        drafts = {each: Verified(draft, draft_vocabulary=each) for each in vocabularies}
        for strategy in drafts.values():
            strategy.check_model(self._parts)  # reads the file of a vocabulary
        for texts in self._texts:
            logits = texts.scheduled_logits(schedule)
            for vocabulary, agreements in found.items():
                tokens = drafts[vocabulary].draft_tokens(texts.prompt_ids())
                for row in texts.agrees(logits, tokens):
                    agreements.append("".join("1" if agreed else "0" for agreed in row.tolist()))
        return {vocabulary: tuple(agreements) for vocabulary, agreements in found.items()}


class AgreementFile(ScheduleFile[Agreements]):
    """The agreements of a run."""

    holds = "the agreement of a draft"

    def get(self, schedule: LayerSchedule, vocabulary: Vocabulary) -> Agreements | None:
        """Look up the agreements of a schedule.

        Args:
            schedule: Of `layer_schedule`.
            vocabulary: The draft vocabulary; None for all tokens.

        Returns:
            One string a text; None if the schedule has none yet.
        """
        return self._values.get(_key(schedule_key(schedule), vocabulary))

    def add(
        self, schedule: LayerSchedule, vocabulary: Vocabulary, strategy: Mapping[str, Any], agreements: Agreements
    ) -> None:
        """Append the agreements of a schedule to the file.

        Args:
            schedule: Of `layer_schedule`.
            vocabulary: The draft vocabulary; None for all tokens.
            strategy: Configuration of a strategy with this schedule, for readers of the file.
            agreements: One string a text.
        """
        key = schedule_key(schedule)
        content = {"schedule": key, "strategy": strategy, "draft_vocabulary": vocabulary, "agreements": agreements}
        self._add(_key(key, vocabulary), agreements, content)

    def _read(self, content: Mapping[str, Any]) -> tuple[str, Agreements]:
        agreements = tuple(content["agreements"])
        if not all(isinstance(each, str) and set(each) <= {"0", "1"} for each in agreements):
            raise ValueError("agreements: expected strings of 0 and 1")
        return _key(content["schedule"], content["draft_vocabulary"]), agreements


def _key(schedule: str, vocabulary: Vocabulary) -> str:
    return f"{schedule} {vocabulary}"
