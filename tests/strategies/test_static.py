"""The layers of StaticDepth."""

import pytest

from hsdlab import StaticDepth


@pytest.mark.parametrize(
    ("number", "layers"),
    [
        (12, (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 23)),  # the three worked out for 24 layers: 2, 3 and 5 times less
        (8, (0, 3, 6, 9, 12, 15, 18, 23)),
        (4, (0, 8, 16, 23)),
        (2, (0, 23)),
        (24, tuple(range(24))),
        (None, tuple(range(24))),
    ],
)
def test_unified(number, layers):
    assert StaticDepth(number).layers_at(5, 24, 10) == layers


@pytest.mark.parametrize("num_layers", [6, 24, 30, 36])
def test_every_number_of_layers_can_be_had(num_layers):
    for keep in ("unified", "bottom", "top"):
        for number in range(2, num_layers + 1):
            assert len(set(StaticDepth(number, keep).layers_at(0, num_layers, 10))) == number


def test_bottom_and_top():
    assert StaticDepth(3, keep="bottom").layers_at(0, 8, 10) == (0, 1, 2)
    assert StaticDepth(3, keep="top").layers_at(0, 8, 10) == (5, 6, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"number": 1}, "number=1; expected a number of layers, 2 or more, or 'auto', or None"),
        ({"number": 0, "keep": "top"}, "number=0; expected a number of layers, 1 or more"),
        ({"number": "all"}, "number='all'; expected a number of layers"),
        ({"keep": "middle"}, "keep='middle'; expected one of unified, bottom, top"),
    ],
)
def test_settings_that_are_none(arguments, message):
    with pytest.raises(ValueError, match=message):
        StaticDepth(**arguments)


def test_more_layers_than_there_are():
    with pytest.raises(ValueError, match="number=15 is more than the model's 6 layers"):
        StaticDepth(15).layers_at(0, 6, 10)


@pytest.mark.parametrize("keep", ["unified", "bottom", "top"])
def test_the_default_is_half_of_any_model(keep):
    assert [len(StaticDepth(keep=keep).layers_at(0, layers, 10)) for layers in (1, 2, 3, 12, 31)] == [1, 2, 2, 6, 15]
