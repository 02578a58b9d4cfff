"""The teacher-forced score of a schedule: how well it predicts the texts that full depth wrote."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hsdlab.decoding.forced import ForcedTexts, LayerSchedule, decode_steps
from hsdlab.tuning.schedule_file import ScheduleFile, schedule_key


class ReplayScore:
    """Scores schedules on given texts, by one masked pass each instead of a decode. The prompts are computed once.

    Args:
        model: A transformers language model in eval mode.
        batches: Each "input_ids", "attention_mask" and "target_mask" [rows, length], as for `ForcedTexts`. Batches
            without a decode step are left out.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> None:
        with torch.inference_mode():
            used = [batch for batch in batches if decode_steps(batch["target_mask"]).any()]
            self._texts = [ForcedTexts(model, batch) for batch in used]

    @torch.inference_mode()
    def __call__(self, schedule: LayerSchedule) -> float:
        """Score a schedule.

        Args:
            schedule: Of `layer_schedule`.

        Returns:
            Mean negative log-likelihood of a text's next token over all decode steps, in nats.
        """
        losses = []
        for texts in self._texts:
            losses.append(texts.loss(texts.scheduled_logits(schedule)).cpu().double())
        return float(torch.cat(losses).mean())


class ScoreFile(ScheduleFile[float]):
    """The scores of a run."""

    holds = "a score"

    def get(self, schedule: LayerSchedule) -> float | None:
        """Look up the score of a schedule.

        Args:
            schedule: Of `layer_schedule`.

        Returns:
            Nats per token, NaN where the model gave none; None if the schedule has no score yet.
        """
        return self._values.get(schedule_key(schedule))

    def add(self, schedule: LayerSchedule, strategy: Mapping[str, Any], score: float) -> None:
        """Append the score of a schedule to the file.

        Args:
            schedule: Of `layer_schedule`.
            strategy: Configuration of a strategy with this schedule, for readers of the file.
            score: Nats per token. A score that is not finite is written as null and read back as NaN.
        """
        key, nats_per_token = schedule_key(schedule), score if math.isfinite(score) else None
        self._add(key, score, {"schedule": key, "strategy": strategy, "nats_per_token": nats_per_token})

    def _read(self, content: Mapping[str, Any]) -> tuple[str, float]:
        score = content["nats_per_token"]
        return content["schedule"], math.nan if score is None else float(score)
