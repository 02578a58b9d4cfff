"""check_strategy checks all laws on one strategy."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from hsdlab.strategies import SkipStrategy
from hsdlab.testing.applicable import not_applicable
from hsdlab.testing.expect import LawViolationError
from hsdlab.testing.laws import LAWS_OF_A_DECODE, law_8_config, law_9_knob
from hsdlab.testing.remembered import RememberedDecodes
from hsdlab.testing.tiny import tiny_model
from hsdlab.testing.watching import MODES


@dataclass(frozen=True)
class LawReport:
    """Which laws a strategy obeys, and which do not apply to it.

    Attributes:
        checked: The names of the laws that were checked, in at least one way to decode.
        not_applicable: Why a law was not checked, by its name; by its name and the way to decode, as in
            ``"law_7_rows (sampling)"``, where it was checked in others.
    """

    checked: tuple[str, ...]
    not_applicable: dict[str, str]

    def __str__(self) -> str:
        reasons = [f"\n  {law}: {reason}" for law, reason in self.not_applicable.items()]
        return f"Checked: {', '.join(self.checked)}." + (f"\nNot applicable:{''.join(reasons)}" if reasons else "")


def check_strategy(
    strategy: SkipStrategy,
    model: PreTrainedModel | None = None,
    *,
    settings: Sequence[SkipStrategy] | None = None,
) -> LawReport:
    """Check the laws on a strategy, greedily, with beams and with sampling, on batches with left padding.

    Args:
        strategy: The strategy; copies of it decode. Law 8 is checked only if its class can be imported.
        model: A small model in float64. None makes a random Llama of 24 layers.
        settings: Settings of the strategy in order of more skipping, for law 9. None stands for
            ``[never_skip(), strategy]``; law 9 is not checked where these are equal or ``never_skip()`` is None.

    Returns:
        The laws that were checked, and those that do not apply, with the reason.

    Raises:
        LawViolationError: The strategy breaks a law. The message has all violations, one a line.
    """
    model = tiny_model(num_layers=24) if model is None else model
    remembered = RememberedDecodes()
    checked: dict[str, None] = {}  # in order
    reasons: dict[str, str] = {}
    violations = []

    def check(law: Callable[..., None], *args: Any, where: str = "") -> None:
        checked[law.__name__] = None
        try:
            law(*args)
        except LawViolationError as violation:
            violations.append(f"{law.__name__}{where}: {violation}")

    for law in LAWS_OF_A_DECODE:
        against = {mode: not_applicable(law, strategy, mode) for mode in MODES}
        for mode, reason in against.items():
            if reason is None:  # a copy, since state that an earlier law left in the strategy would hide a violation
                check(law, model, copy.deepcopy(strategy), mode, remembered, where=f" ({mode})")
            else:
                reasons[law.__name__ if all(against.values()) else f"{law.__name__} ({mode})"] = reason
    if reason := not_applicable(law_8_config, strategy):
        reasons[law_8_config.__name__] = reason
    else:
        check(law_8_config, strategy)
    settings = _ordered(strategy) if settings is None else settings
    if len(settings) > 1:
        check(law_9_knob, model, settings)
    else:
        reasons[law_9_knob.__name__] = "there is one setting only; give settings=[…] in order of more skipping"
    if violations:
        raise LawViolationError(f"{strategy!r} breaks {len(violations)} law(s):\n" + "\n".join(violations))
    return LawReport(tuple(checked), reasons)


def _ordered(strategy: SkipStrategy) -> list[SkipStrategy]:
    """Return the never-skip setting and the strategy; nothing if they are equal or there is no such setting."""
    never = strategy.never_skip()
    return [] if never is None or never.config() == strategy.config() else [never, strategy]
