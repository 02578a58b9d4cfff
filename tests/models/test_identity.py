"""Hashes of models and tokenizers: the same for the same, others for whatever changes a text."""

import pytest
import torch
from tokenizers import processors
from transformers import AddedToken

from hsdlab.models import weights_fingerprint
from hsdlab.models.identity import config_hash, tokenizer_hash, weights_hash
from tests.tiny_checkpoints import SPECIAL, tiny_llama, tiny_tokenizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_number_of_the_weights_counts(dtype):
    model = tiny_llama().to(dtype)
    before, some = weights_hash(model), weights_fingerprint(model)
    assert before == weights_hash(tiny_llama().to(dtype))
    assert len(before) == 32
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 0.25
    assert weights_fingerprint(model) == some
    assert weights_hash(model) != before


def test_dtype_shape_and_name_count_and_some_names_may_be_left_out():
    class Two(torch.nn.Module):
        def __init__(self, **tensors):
            super().__init__()
            for name, tensor in tensors.items():
                self.register_buffer(name, tensor)

    plain = Two(a=torch.zeros(2, 2))
    others = [Two(b=torch.zeros(2, 2)), Two(a=torch.zeros(4)), Two(a=torch.zeros(2, 2, dtype=torch.int32))]
    others.append(Two(a=torch.zeros(2, 2), lora_A=torch.zeros(1)))
    assert len({weights_hash(each) for each in (plain, *others)}) == 5
    assert weights_hash(others[-1], without="lora_") == weights_hash(plain)
    assert weights_hash(Two(a=torch.zeros(4, 4).T[:2])) == weights_hash(Two(a=torch.zeros(2, 4)))


def test_the_config_counts_but_for_where_it_is_from():
    model = tiny_llama()
    before = config_hash(model)
    model.config.name_or_path, model.config.transformers_version = "elsewhere", "9"
    assert config_hash(model) == before
    model.config.rms_norm_eps *= 2
    assert config_hash(model) != before


def test_whatever_makes_other_tokens_or_texts_counts():
    def pre_tokenizer(tokenizer):
        tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = True

    def template(tokenizer):
        tokenizer.chat_template = "{{ messages }}"

    def special(tokenizer):
        tokenizer.pad_token = SPECIAL[0]

    def added(tokenizer):
        tokenizer.add_tokens([AddedToken("hello", lstrip=True)])

    def post(tokenizer):
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 0)]
        )

    def side(tokenizer):
        tokenizer.truncation_side = "left"

    hashes = [tokenizer_hash(tiny_tokenizer())]
    for change in (pre_tokenizer, template, special, added, post, side):
        tokenizer = tiny_tokenizer()
        change(tokenizer)
        hashes.append(tokenizer_hash(tokenizer))
    assert len({*hashes}) == 7


def test_using_a_tokenizer_changes_nothing():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = SPECIAL[1]
    before = tokenizer_hash(tokenizer)
    tokenizer(["hello", "he"], padding="max_length", truncation=True, max_length=3)
    assert tokenizer_hash(tokenizer) == before
