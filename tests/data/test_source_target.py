"""Source and target of an encoder-decoder: the tokenizer's own ids, apart, and padded on the right."""

from types import SimpleNamespace

import pytest
import torch

from hsdlab.data import Example, GenerationDataModule, SyntheticTables
from hsdlab.data.sample import sample_batches
from hsdlab.data.source_target import SourceAndTarget
from hsdlab.errors import UserError
from tests.tiny_encoder_decoders import ending_tokenizer, tiny_encoder_decoder

PAD, END, BEGIN = 0, 1, 2
EXAMPLES = [Example("a", "river", ("The river.", "A river.")), Example("b", "a hill", ("A hill.",))]


class Toy(GenerationDataModule):
    def load_examples(self, split):
        return EXAMPLES


def connected(model=None, **options):
    data = Toy(batch_size=2, **options)
    module = SimpleNamespace(
        model=model or tiny_encoder_decoder("bart"),
        tokenizer=ending_tokenizer(),
        max_new_tokens=20,
        validates_loss=True,
    )
    data.connect_to(module)
    return data, module.tokenizer


def without_padding(ids, mask):
    return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]


def test_a_batch_for_decoding_is_what_the_tokenizer_makes_of_the_sources():
    data, tokenizer = connected(prefix="summarize: ", prompt="{source}\nignored")
    (batch,) = data.test_dataloader()
    expected = tokenizer([f"summarize: {each.source}" for each in EXAMPLES], return_tensors="pt", padding=True)
    assert torch.equal(batch["input_ids"], expected.input_ids)
    assert torch.equal(batch["attention_mask"], expected.attention_mask)
    assert batch["input_ids"][0, -1] == PAD  # the shorter source, on the right


def test_a_pair_is_the_decoders_text_and_the_source_apart():
    data, tokenizer = connected()
    (batch,) = data.val_dataloader()
    pairs = batch["pairs"]
    targets = [tokenizer(text_target=each.references[0]).input_ids for each in EXAMPLES]
    assert without_padding(pairs["input_ids"], pairs["attention_mask"]) == [[END, *ids] for ids in targets]
    assert [row[kept].tolist() for row, kept in zip(pairs["input_ids"], pairs["target_mask"], strict=True)] == targets
    assert torch.equal(pairs["source_ids"], batch["input_ids"])
    assert torch.equal(pairs["source_mask"], batch["attention_mask"])
    assert pairs["attention_mask"][1, -1] == 0
    assert len(data.train_dataloader().dataset) == 3
    (sampled,) = sample_batches(data, "validation", 2)
    assert {name: value.tolist() for name, value in sampled["pairs"].items() if name != "ids"} == {
        name: value.tolist() for name, value in pairs.items() if name != "ids"
    }


def test_the_models_own_shift_of_the_labels_is_the_decoders_text():
    for family in ("t5", "bart", "marian", "pegasus", "t5gemma"):
        model = tiny_encoder_decoder(family)
        data, tokenizer = connected(model)
        (batch,) = data.val_dataloader()
        text = batch["pairs"]["input_ids"][:1]
        labels = tokenizer(text_target=EXAMPLES[0].references[0], return_tensors="pt").input_ids
        assert text[:, :-1].tolist() == model.prepare_decoder_input_ids_from_labels(labels).tolist(), family


@pytest.mark.parametrize(
    ("template", "opening", "closing"),
    [("$A </s>", [], [END]), ("<s> $A </s>", [BEGIN], [END]), ("$A </s> <s>", [], [END]), ("</s> $A", [], [END])],
    ids=["T5", "BART", "mBART: the language after the end", "Gemma: begins as the decoder does, no end"],
)
def test_a_target_has_the_tokenizers_special_tokens_up_to_its_end(template, opening, closing):
    tokenizer = ending_tokenizer(template)
    bare = tokenizer("A hill", add_special_tokens=False).input_ids
    ids, cut = SourceAndTarget(decoder_start=END).encode_target(" A hill</s> ", tokenizer)
    assert (ids, cut) == ([*opening, *bare, *closing], False)
    ids, cut = SourceAndTarget(decoder_start=END).encode_target("A hill", tokenizer, max_tokens=4)
    assert (ids, cut) == ([*opening, *bare, *closing][:4], True)


def test_a_long_source_is_cut_at_its_end_and_keeps_its_special_tokens():
    tokenizer = ending_tokenizer("<s> $A </s>")
    texts = SourceAndTarget(decoder_start=END, prefix="of ")
    whole, _ = texts.encode("a river", tokenizer)
    assert texts.encode("a river", tokenizer, max_tokens=len(whole)) == (whole, False)
    assert texts.encode("a river", tokenizer, max_tokens=6) == ([*whole[:5], END], True)
    with pytest.raises(UserError, match="special tokens around a source are 2"):
        texts.encode("a river", tokenizer, max_tokens=2)
    named, _ = texts.encode("a </s> river", tokenizer)
    assert named.count(END) == 1
    assert tokenizer.decode(named[1:-1]) == "of a </s> river"


def test_the_longest_source_is_the_context_or_what_the_tokenizer_says():
    data, _ = connected()
    assert data.prompt_limit_tokens == 64  # BART's positions: new tokens take none of them
    data, _ = connected(tiny_encoder_decoder("t5"))
    assert data.prompt_limit_tokens is None
    with pytest.raises(UserError, match=r"max_prompt_tokens=65 do not fit the model's context of 64"):
        connected(max_prompt_tokens=65)
    with pytest.raises(UserError, match="reads no chat"):
        connected(chat=True)


def test_synthetic_tables_are_the_same_everywhere_and_share_no_source():
    splits = {split: SyntheticTables().load_examples(split) for split in ("train", "validation", "test")}
    assert {split: len(examples) for split, examples in splits.items()} == {
        "train": 5000,
        "validation": 500,
        "test": 500,
    }
    sources = [frozenset(each.source.split(", ")) for examples in splits.values() for each in examples]
    assert len(set(sources)) == 6000
    first = splits["test"][0]
    assert (first.source, first.references) == (
        "rating 1, price medium, name Lumeno, families no",
        ("Lumeno is an affordable place. Guests call it poor, and families are not welcome. Better stay at home.",),
    )
