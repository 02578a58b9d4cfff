"""The check of models of unknown families: what it serves, what it refuses, and that a wrong guess does not pass it."""

import pytest
import torch

from hsdlab import CALM, HSD, Compose, FullDepth, OracleExit, SkipStrategy, Verified, generate
from hsdlab.decoding import arguments, cache, families, history
from hsdlab.decoding.families import FAMILIES, UnsupportedModelError
from hsdlab.testing import prompts, tiny_model
from tests.strategies_for_tests import Changing


def call(**options):
    input_ids, mask = prompts(3)
    return {"input_ids": input_ids, "attention_mask": mask, "max_new_tokens": 6, "eos_token_id": None, **options}


@pytest.fixture
def unknown(monkeypatch):
    """Make a tiny model of a family as if it were not listed."""

    def get(family, **options):
        model = tiny_model(family, **options)
        monkeypatch.delitem(FAMILIES, model.config.model_type, raising=False)
        return model

    return get


@pytest.mark.parametrize(
    "family", ["bloom", "deepseek_v3", "falcon_alibi", "gemma3", "gpt_oss", "granite", "mistral_window", "mpt", "opt"]
)
def test_an_unknown_family_that_obeys_the_law_is_served(unknown, family):
    output = generate(unknown(family), strategy=Changing(), **call(num_beams=2))
    assert output.trace.average_layers < 6


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("olmo", {}),
        ("cohere", {"logit_scale": 0.5}),
        ("exaone4", {"sliding_window": 4, "sliding_window_pattern": 3, "num_key_value_heads": 2}),
    ],
)
def test_a_family_that_is_really_not_listed_is_served(family, options):
    model = tiny_model(family, **options)
    for strategy in (Changing(), CALM(0.5, shortlist=8), Verified(HSD(1, 0, 3))):
        assert generate(model, strategy=strategy, **call()).sequences.shape == (3, 11)


@pytest.mark.parametrize(
    ("family", "message"), [("zamba", "Found no mamba, .* in ZambaHybridLayer"), ("recurrent_gemma", "Found no mamba")]
)
def test_recurrent_layers_that_are_not_understood_are_refused(family, message):
    with pytest.raises(UnsupportedModelError, match=message):
        generate(tiny_model(family), strategy=FullDepth(), **call())


def test_a_head_that_is_not_understood_refuses_only_who_reads_it(unknown, monkeypatch):
    monkeypatch.setattr(families, "_AFTER_HEAD", {})
    model = unknown("granite")

    class Own(SkipStrategy):
        def plan(self, state):
            return torch.ones(state.rows, state.num_layers, dtype=torch.bool)

        def should_exit(self, state):
            return torch.zeros(len(state.rows), dtype=torch.bool)

    for strategy in (CALM(0.5), OracleExit(), Verified(CALM(0.5)), Compose(HSD(1, 0, 3), CALM(0.5)), Own()):
        with pytest.raises(UnsupportedModelError, match="final norm and head do not give its logits"):
            generate(model, strategy=strategy, **call())
    for strategy in (FullDepth(), HSD(1, 0, 3), Changing(), CALM(0.5, measure="saturation"), Verified(HSD(1, 0, 3))):
        assert generate(model, strategy=strategy, **call()).sequences.shape == (3, 11)


def test_a_family_whose_passes_are_not_understood_refuses_only_drafts(unknown, monkeypatch):
    monkeypatch.setattr(cache.SkipCache, "_with_window", lambda self, index, call, args, kwargs: (args, kwargs))
    model = unknown("gemma3")
    assert generate(model, strategy=Changing(), **call()).sequences.shape == (3, 11)
    with pytest.raises(UnsupportedModelError, match=r"a forward pass over several tokens|decoding a few tokens"):
        generate(model, strategy=Verified(HSD(1, 0, 3)), **call())


def test_arguments_that_differ_by_layer_do_not_pass_if_mixed_up(unknown, monkeypatch):
    """A tolerance of 0.01 of the largest logit let a Gemma 3 pass whose layers all rotate alike."""
    monkeypatch.setattr(history, "_same", lambda known, given: known is not None)  # all layers are of one type
    with pytest.raises(UnsupportedModelError, match="decoding with skipped layers differs from replay"):
        generate(unknown("gemma3"), strategy=FullDepth(), **call())


@pytest.mark.parametrize(("family", "options"), [("bloom", {}), ("falcon_alibi", {"num_attention_heads": 1})])
def test_biases_that_differ_by_row_do_not_pass_if_mixed_up(unknown, monkeypatch, family, options):
    model = unknown(family, **options)
    with monkeypatch.context() as mixed_up:
        mixed_up.setattr(arguments, "_BIASES", ())
        with pytest.raises(UnsupportedModelError, match="is not a known family, and decoding"):
            generate(model, strategy=FullDepth(), **call())
    assert generate(unknown(family, seed=1, **options), strategy=Changing(), **call()).trace.filled > 0


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_models_of_few_layers_are_checked_too(unknown, layers):
    model = unknown("qwen3", num_layers=layers)
    assert generate(model, strategy=FullDepth(), **call()).trace.average_layers == layers
