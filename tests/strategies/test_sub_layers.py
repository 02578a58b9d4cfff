"""The sub-layers of SubLayerStrategy."""

import optuna
import pytest

from hsdlab import SubLayers, SubLayerStrategy
from hsdlab.decoding.forced import layer_schedule


def test_what_is_not_listed_runs():
    assert SubLayerStrategy([1, 3], [2]).layers_at(5, 4, 10) == SubLayers(attention=[0, 2], mlp=[0, 1, 3])
    assert SubLayerStrategy(None, [3, 0]).layers_at(5, 4, 10) == SubLayers(attention=[0, 1, 2, 3], mlp=[1, 2])


@pytest.mark.parametrize(
    ("num_layers", "attention"), [(1, [0]), (2, [0, 1]), (3, [0, 2]), (6, [0, 2, 4, 5]), (7, [0, 2, 4, 6])]
)
def test_the_default_skips_the_attention_of_every_second_layer(num_layers, attention):
    assert SubLayerStrategy().layers_at(0, num_layers, 10) == SubLayers(attention, list(range(num_layers)))
    resolved = SubLayerStrategy().resolved(num_layers)
    assert resolved.layers_at(0, num_layers, 10) == SubLayerStrategy().layers_at(0, num_layers, 10)
    assert resolved.parameters() == {"skipped_attention": [*range(1, num_layers - 1, 2)], "skipped_mlp": []}


def test_the_setting_that_never_skips():
    assert SubLayerStrategy([1], [2]).never_skip().layers_at(0, 3, 10) == SubLayers([0, 1, 2], [0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skipped_attention": [-1]}, r"skipped_attention=\[-1\]; expected a list of layers from 0 on"),
        ({"skipped_attention": "all"}, "skipped_attention='all'; expected a list"),
        ({"skipped_mlp": [1, 1]}, r"skipped_mlp=\[1, 1\]; expected a list of layers from 0 on, each once"),
        ({"skipped_mlp": "auto"}, "skipped_mlp='auto'; expected a list"),
        ({"skipped_mlp": [True]}, r"skipped_mlp=\[True\]; expected a list"),
    ],
)
def test_settings_that_are_none(arguments, message):
    with pytest.raises(ValueError, match=message):
        SubLayerStrategy(**arguments)


def test_layers_beyond_the_model():
    with pytest.raises(ValueError, match=r"skipped_mlp lists \[6, 9\]; this model has layers 0 to 5"):
        SubLayerStrategy([1], [6, 2, 9]).layers_at(0, 6, 10)


@pytest.mark.parametrize("num_layers", [1, 2, 6])
def test_proposals_are_all_sets_of_sub_layers_above_layer_0(num_layers):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    masks = {
        layer_schedule(SubLayerStrategy.propose(study.ask(), num_layers, 4), num_layers, 4).content for _ in range(40)
    }
    assert len(masks) == {1: 1, 2: 4}.get(num_layers, 40)
