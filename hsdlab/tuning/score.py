"""The teacher-forced score of a schedule: how well it predicts the texts that full depth wrote."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hsdlab.decoding.forced import ForcedTexts, LayerSchedule, decode_steps
from hsdlab.errors import RunError
from hsdlab.records.document import to_plain
from hsdlab.records.files import append_whole, replace_file
from hsdlab.records.lines import from_line, to_line


class ReplayScore:
    """Scores schedules on given texts, by one masked pass each instead of a decode. The prompts are computed once.

    Args:
        model: A decoder-only transformers model in eval mode.
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


class ScoreFile:
    """The scores of a run in a file, one JSON object a line. An interrupted run resumes with them.

    Args:
        path: The file. It is read if it exists; an incomplete last line is cut off. A missing folder is created by the
            first `add`.

    Raises:
        RunError: A line is no score, or was changed after it was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._scores: dict[str, float] = {}
        if path.exists():
            *lines, cut_off = path.read_bytes().split(b"\n")
            for number, line in enumerate(lines, start=1):
                try:
                    content = from_line(line)
                    score = content["nats_per_token"]
                    self._scores[content["schedule"]] = math.nan if score is None else float(score)
                except (ValueError, KeyError, TypeError) as error:
                    raise RunError(
                        f"{path}, line {number}: expected a score as the run wrote it, got {line[:80]!r} ({error}). "
                        "Restore the file, or start the run over with --overwrite."
                    ) from error
            if cut_off:
                replace_file(path, b"".join(line + b"\n" for line in lines))

    def get(self, schedule: LayerSchedule) -> float | None:
        """Look up the score of a schedule.

        Args:
            schedule: Of `layer_schedule`.

        Returns:
            Nats per token, NaN where the model gave none; None if the schedule has no score yet.
        """
        return self._scores.get(_key(schedule))

    def add(self, schedule: LayerSchedule, strategy: Mapping[str, Any], score: float) -> None:
        """Append the score of a schedule to the file.

        Args:
            schedule: Of `layer_schedule`.
            strategy: Configuration of a strategy with this schedule, for readers of the file.
            score: Nats per token. A score that is not finite is written as null and read back as NaN.
        """
        self._scores[_key(schedule)] = score
        nats_per_token = score if math.isfinite(score) else None
        line = {"schedule": _key(schedule), "strategy": strategy, "nats_per_token": nats_per_token}
        append_whole(self.path, to_line(to_plain(line)))


def _key(schedule: LayerSchedule) -> str:
    """Return 16 hex digits that tell schedules of one shape apart."""
    return hashlib.sha256(schedule.content).hexdigest()[:16]
