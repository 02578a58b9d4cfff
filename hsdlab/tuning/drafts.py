"""The search for the fastest draft: what each is predicted to give, and which of them are worth measuring."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hsdlab.decoding.draft_length import VERIFIED_TOKEN
from hsdlab.decoding.forced import LayerSchedule
from hsdlab.decoding.sub_layers import depth_sum
from hsdlab.records.draft_tuning import DraftPrediction
from hsdlab.strategies import ScheduledStrategy
from hsdlab.tuning.proposals import try_settings

if TYPE_CHECKING:
    import optuna

OF_EACH_DRAFT = 2
"""As many lengths and vocabularies of one draft are measured at most."""


@dataclass(frozen=True)
class Draft:
    """A setting that was tried as a draft.

    Attributes:
        strategy: The strategy that drafts.
        average_layers: Layers per draft step, averaged over its schedule.
        skips: Whether a draft step skips a layer.
        predictions: One for each length and vocabulary, at least one.
    """

    strategy: ScheduledStrategy
    average_layers: float
    skips: bool
    predictions: tuple[DraftPrediction, ...]


def verifications(agreement: str, num_draft_tokens: int, max_steps: int) -> list[tuple[int, int]]:
    """Play the verified decoding of a text through.

    A verification adds the accepted tokens and full depth's own next one, so that the next draft begins after it.

    Args:
        agreement: For each decode step of the text, "1" if the draft writes the text's next token, else "0".
        num_draft_tokens: The most tokens before a verification; fewer where T new tokens are nearly reached.
        max_steps: T.

    Returns:
        For each verification, how many tokens are drafted, and how many of them are in the text.
    """
    rounds, step = [], 0
    while step < len(agreement):
        drafted = min(num_draft_tokens, max_steps - step - 2)
        looked_at = agreement[step : step + drafted]
        accepted = len(looked_at) - len(looked_at.lstrip("1"))
        rounds.append((drafted, accepted))
        step += accepted + 1
    return rounds


def predict(
    agreements: Sequence[str], num_draft_tokens: int, max_steps: int, draft_cost: float, vocabulary: int | str | None
) -> DraftPrediction:
    """Predict the speed of a draft on the texts of full depth.

    A verification of k drafted tokens and their draft steps take 1 + k (a + 0.03) decode steps at full depth, where a
    is the cost of a draft step. The adaptive length of `Verified` has the same cost model.

    Args:
        agreements: A string for each text, as `verifications` takes it; at least one has a decode step.
        num_draft_tokens: The most tokens before a verification.
        max_steps: T.
        draft_cost: Of a draft step, in decode steps at full depth (`draft_cost` of hsdlab.decoding.cost).
        vocabulary: The draft vocabulary; None for all tokens.

    Returns:
        Acceptance and speed-up over all texts.
    """
    rounds = [each for text in agreements for each in verifications(text, num_draft_tokens, max_steps)]
    steps, drafted = sum(map(len, agreements)), sum(count for count, _ in rounds)
    accepted = sum(count for _, count in rounds)
    return DraftPrediction(
        num_draft_tokens=num_draft_tokens,
        draft_vocabulary=vocabulary,
        draft_cost=draft_cost,
        acceptance_rate=accepted / drafted if drafted else math.nan,
        tokens_per_verification=steps / len(rounds),
        speed_up=steps / (len(rounds) + drafted * (draft_cost + VERIFIED_TOKEN)),
    )


def search_drafts(
    classes: Sequence[type[ScheduledStrategy]],
    *,
    num_layers: int,
    max_steps: int,
    predictions: Callable[[ScheduledStrategy, LayerSchedule], Sequence[DraftPrediction]],
    trials: Iterable[Any],
    seed: int,
    first: Sequence[ScheduledStrategy] = (),
) -> list[Draft]:
    """Search for the draft with the highest predicted speed-up, each at its best length and vocabulary.

    Args:
        classes: Strategy classes whose `propose` makes the settings.
        num_layers: L.
        max_steps: T.
        predictions: Predicts what a setting gives as a draft, for each length and vocabulary.
        trials: As for :func:`~hsdlab.tuning.proposals.try_settings`.
        seed: Likewise.
        first: Likewise.

    Returns:
        All different settings, in the order in which they were tried.

    Raises:
        UserError: A class whose layers are not known before a step.
        RunError: Optuna is not installed.
    """

    def judge(strategy: ScheduledStrategy, schedule: LayerSchedule) -> Draft:
        layers = depth_sum(schedule.steps[:-1], dims=2) / (max_steps - 1)
        return Draft(strategy, layers, schedule.skips, tuple(predictions(strategy, schedule)))

    return try_settings(
        classes,
        num_layers=num_layers,
        max_steps=max_steps,
        directions=["maximize"],
        judge=judge,
        tell=_tell,
        trials=trials,
        seed=seed,
        first=first,
    )


def _tell(study: "optuna.Study", trial: "optuna.Trial", draft: Draft) -> None:
    """Tell the sampler the highest predicted speed-up of its proposal."""
    study.tell(trial, max(each.speed_up for each in draft.predictions))


def drafts_to_measure(drafts: Sequence[Draft], most: int) -> list[tuple[int, int]]:
    """Choose the drafts with the highest predicted speed-up, at most two of one setting.

    Args:
        drafts: All that were tried. Those that skip no layer are left out: they cannot be faster.
        most: How many at most.

    Returns:
        For each, the index of the draft and the index of its prediction, the highest speed-up first.
    """
    places = [
        (index, place)
        for index, draft in enumerate(drafts)
        if draft.skips
        for place in sorted(range(len(draft.predictions)), key=lambda each: -draft.predictions[each].speed_up)[
            :OF_EACH_DRAFT
        ]
    ]
    return sorted(places, key=lambda each: -drafts[each[0]].predictions[each[1]].speed_up)[:most]
