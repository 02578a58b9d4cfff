"""Encoder-decoder models: loaded as they are, and decoded as transformers decodes them."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, BartModel

from hsdlab.models import load_model
from hsdlab.models.generation import generation
from tests.tiny_encoder_decoders import FAMILIES, save, tiny_encoder_decoder

TEXTS = ["hello", "a longer text"]


@pytest.mark.parametrize(
    "family",
    [each if each in ("t5", "bart", "marian") else pytest.param(each, marks=pytest.mark.slow) for each in FAMILIES],
)
def test_a_folder_gives_the_model_and_it_decodes_as_plain_generate(family, tmp_path):
    original = tiny_encoder_decoder(family)
    model, tokenizer = load_model(save(original, tmp_path), device="cpu")
    assert type(model) is type(original)
    assert tokenizer.padding_side == "right"
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    for num_beams in (1, 2):
        given = {"max_new_tokens": 4, "num_beams": num_beams}
        options = generation(model, given, tokenizer).options
        assert torch.equal(model.generate(**batch, **options), plain.generate(**batch, **given))


def test_tokens_that_the_checkpoint_forces_are_taken_and_penalties_are_not(tmp_path):
    model = tiny_encoder_decoder("bart")
    model.generation_config.update(no_repeat_ngram_size=3, length_penalty=2.0, num_beams=4)
    loaded, _ = load_model(save(model, tmp_path), device="cpu")
    chosen = generation(loaded, {"max_new_tokens": 7})
    assert chosen.taken == {
        "eos_token_id": 1,
        "bos_token_id": 2,
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
        "forced_bos_token_id": 2,
        "forced_eos_token_id": 1,
    }
    assert chosen.not_taken == {"no_repeat_ngram_size": 3, "length_penalty": 2.0, "num_beams": 4}


def test_a_model_stored_without_its_tied_head_is_loaded(tmp_path):
    whole = tiny_encoder_decoder("bart")
    body = BartModel(whole.config)
    body.load_state_dict(whole.model.state_dict())
    model, tokenizer = load_model(save(body, tmp_path), device="cpu")
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, whole(**batch).logits, atol=0, rtol=0)
