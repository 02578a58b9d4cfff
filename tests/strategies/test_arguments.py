"""A strategy's parameters are the arguments of its class, all of them, or the class is refused."""

import lightning
import pytest

from hsdlab import CALM, HSD, FullDepth, ScheduledStrategy, generate
from hsdlab.testing import prompts, tiny_model
from tests.strategies.test_lightning import Module


class Plain(ScheduledStrategy):
    def layers_at(self, step, num_layers, max_steps):
        return range(num_layers)


class UnderAnotherName(Plain):
    def __init__(self, number=3, keep="top"):
        self.keep = keep
        self._number = number


class Swallows(Plain):
    def __init__(self, **options):
        self.options = options


class Inherits(HSD):
    pass


class PassesOn(HSD):
    def __init__(self, note="", *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.note = note


class Mixin:
    def __init__(self, colour="red", **kwargs):
        super().__init__(**kwargs)
        self.colour = colour


class Mixed(Mixin, PassesOn):
    pass


class Fixed(HSD):
    def __init__(self, max_exit=4):
        super().__init__(2, 0, max_exit)


MOMENTS = {
    "config": lambda strategy: strategy.config(),
    "repr": repr,
    "applied_to": lambda strategy: strategy.applied_to(tiny_model()).__enter__(),
    "generate": lambda strategy: generate(
        tiny_model(), input_ids=prompts(1)[0], strategy=strategy, max_new_tokens=2, eos_token_id=None
    ),
    "trainer": lambda strategy: lightning.Trainer(
        accelerator="cpu", callbacks=[strategy], logger=False, enable_checkpointing=False
    ).validate(Module(), [0], verbose=False),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (
            UnderAnotherName(5),
            r"UnderAnotherName\.__init__ takes 'number', but .* no attribute of that name; expected self\.number = num",
        ),
        (
            Swallows(number=5),
            r"Swallows\.__init__ takes \*\*options, and no base .* each argument by its own name",
        ),
    ],
    ids=["another-name", "swallows"],
)
def test_a_class_that_loses_an_argument_is_refused(strategy, message, moment):
    with pytest.raises(ValueError, match=message):
        MOMENTS[moment](strategy)


@pytest.mark.parametrize(
    ("strategy", "arguments"),
    [
        (FullDepth(), {}),
        (Inherits(2, 1, 4), HSD(2, 1, 4).parameters()),
        (PassesOn("mine", 2, max_exit=4), {"note": "mine", **HSD(2, 0, 4).parameters()}),
        (Mixed("blue", note="mine", num_skipped=2), {"colour": "blue", "note": "mine", **HSD(2).parameters()}),
        (Fixed(3), {"max_exit": 3}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arguments_that_base_classes_take_are_parameters_too(strategy, arguments):
    assert strategy.parameters() == arguments
    again = type(strategy)(**strategy.config()["init_args"])
    assert again.parameters() == arguments
    assert again.layers_at(1, 12, 10) == strategy.layers_at(1, 12, 10)


def test_a_name_shows_arguments_that_base_classes_take():
    assert repr(PassesOn(num_skipped=2, max_exit=4)) == "PassesOn(num_skipped=2, min_exit=0, max_exit=4)"
    assert repr(CALM()) == "CALM(threshold=0.9)"


@pytest.mark.parametrize(
    ("strategy", "shown"),
    [
        (HSD(), "HSD(num_skipped=1, min_exit=0, max_exit=3)"),
        (PassesOn("mine"), "PassesOn(note='mine', num_skipped=1, min_exit=0, max_exit=3)"),
        (Fixed(), "Fixed(max_exit=4)"),
    ],
    ids=repr,
)
def test_the_resolved_setting_is_of_the_same_class(strategy, shown):
    before = repr(strategy)
    assert repr(strategy.resolved(6)) == shown
    assert repr(strategy) == before
