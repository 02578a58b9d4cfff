"""Pairs for training: what is learned, the order, and going on in the middle of an epoch."""

import json
import pickle
import re
from types import SimpleNamespace

import pytest
import torch

from hsdlab.data import Example, GenerationDataModule
from hsdlab.data.batches import Pair, collate_pairs
from hsdlab.data.sample import sample_batches

from .conftest import build_tokenizer

EXAMPLES = [Example(f"{i}", "The river rises. " * (1 + i % 3), (f"River {i}.", "A river.")) for i in range(5)]


class Toy(GenerationDataModule):
    def load_examples(self, split):
        return EXAMPLES if split == "train" else EXAMPLES[:2]


def connected(tokenizer, max_target_tokens=None, rank=None, world_size=1, **kwargs):
    data = Toy(batch_size=2, **kwargs)
    data.connect(tokenizer, max_target_tokens=max_target_tokens)
    if rank is not None:
        data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank)
    return data


def rows_of(batches):
    return [
        tuple(row[mask.bool()].tolist())
        for b in batches
        for row, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
    ]


def test_a_batch_is_left_padded_and_marks_the_references():
    batch = collate_pairs([Pair([5, 6, 7], [8]), Pair([9], [10, 11])], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [0, 9, 10, 11]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert batch["target_mask"].tolist() == [[False, False, False, True], [False, False, True, True]]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64


def test_each_reference_is_a_pair_and_ends_with_the_end_of_sequence(tokenizer):
    data = connected(tokenizer, prompt="{source}|")
    expected = [
        (*tokenizer(example.source + "|").input_ids, *tokenizer(f" {text}").input_ids, tokenizer.eos_token_id)
        for example in EXAMPLES
        for text in example.references
    ]
    assert sorted(rows_of(data.train_dataloader())) == sorted(expected)
    assert len(data.train_dataloader()) == 5


@pytest.mark.parametrize(
    ("prompt", "chat", "space"), [("{source}\n", False, ""), ("{source}|", True, ""), ("{source}", False, " ")]
)
def test_a_space_goes_between_a_prompt_and_its_reference_where_none_is(tokenizer, prompt, chat, space):
    target, was_cut = Toy(prompt=prompt, chat=chat).template.encode_target(" A river. ", tokenizer)
    assert tokenizer.decode(target) == f"{space}A river.</s>"
    assert not was_cut


def test_references_are_cut_to_what_could_be_decoded_and_counted(tokenizer):
    length = len(tokenizer("River 0.").input_ids)
    everything = connected(tokenizer)
    longest = max(int(batch["target_mask"].sum(1).max()) for batch in everything.train_dataloader())
    data = connected(tokenizer, max_target_tokens=length)
    with pytest.warns(
        UserWarning,
        match=rf"^\d+ of 10 train references were cut to {length} tokens\. The longest has {longest}\. Raise --model",
    ):
        batches = list(data.train_dataloader())
    assert 5 <= data.cut_references["train"] <= 10
    assert max(int(batch["target_mask"].sum(1).max()) for batch in batches) == length
    cut, was_cut = data.template.encode_target("River 0.", tokenizer, length)
    assert was_cut
    assert tokenizer.eos_token_id not in cut


def test_sources_are_cut_as_for_decoding(tokenizer):
    data = Toy(batch_size=2, max_prompt_tokens=8)
    data.connect(tokenizer)
    with pytest.warns(UserWarning, match="train prompts were cut to 8 tokens"):
        batches = list(data.train_dataloader())
    prompts = [int((b["attention_mask"] - b["target_mask"].long()).sum(1).max()) for b in batches]
    assert max(prompts) == 8


def test_a_tokenizer_without_an_end_of_sequence_is_an_error():
    tokenizer = build_tokenizer(pad_token="<|user|>")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"no end-of-sequence token to be learned"):
        connected(tokenizer).train_dataloader()


def epoch(data, number, loader=None):
    loader = loader or data.train_dataloader()
    loader.sampler.set_epoch(number)  # Lightning does
    return rows_of(loader)


def test_the_order_depends_on_seed_and_epoch_only(tokenizer):
    data = connected(tokenizer)
    assert epoch(data, 0) == epoch(connected(tokenizer), 0)
    assert epoch(data, 0) != epoch(data, 1)
    assert sorted(epoch(data, 0)) == sorted(epoch(data, 1))
    assert epoch(data, 0) != epoch(connected(tokenizer, seed=1), 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_goes_on_in_the_middle_of_an_epoch(tokenizer, workers):
    before = connected(tokenizer, num_workers=workers)
    loader = before.train_dataloader()
    loader.sampler.set_epoch(3)
    batches = iter(loader)
    seen = rows_of([next(batches), next(batches)])
    state = before.state_dict()
    assert state == {"epoch": 3, "batches": 2}
    after = connected(tokenizer, num_workers=workers)
    after.load_state_dict(pickle.loads(pickle.dumps(state)))
    loader = after.train_dataloader()
    assert len(loader) == 5
    assert seen + epoch(after, 3, loader) == epoch(connected(tokenizer), 3)
    assert epoch(after, 4, loader) == epoch(connected(tokenizer), 4)


def test_batches_of_similar_length_hold_the_same_pairs_with_less_padding(tokenizer):
    plain, grouped = connected(tokenizer), connected(tokenizer, group_by_length=True)
    batches = list(grouped.train_dataloader())
    assert sorted(rows_of(batches)) == sorted(epoch(plain, 0))
    padding = [sum(int((1 - b["attention_mask"]).sum()) for b in each) for each in (batches, plain.train_dataloader())]
    assert padding[0] < padding[1]
    longest = [b["input_ids"].shape[1] for b in batches]
    assert longest != sorted(longest)  # the batches are shuffled
    assert epoch(grouped, 0) != epoch(grouped, 1)
    assert grouped.training_identity() != plain.training_identity()


def test_a_batch_that_is_not_full_stays_the_last_and_a_resumed_run_finds_its_place(tokenizer):
    options = {"group_by_length": True, "limit": 4, "prompt": "{source}|"}
    whole = Toy(**{**options, "batch_size": 3})
    whole.connect(tokenizer)
    rows = [rows_of([batch]) for batch in whole.train_dataloader()]
    assert [len(batch) for batch in rows] == [3, 3, 2]
    resumed = Toy(**{**options, "batch_size": 3})
    resumed.connect(tokenizer)
    resumed.load_state_dict({"epoch": 0, "batches": 1})
    assert [rows_of([batch]) for batch in resumed.train_dataloader()] == rows[1:]


def test_a_loader_that_was_not_resumed_begins_at_the_beginning(tokenizer):
    loader = connected(tokenizer).train_dataloader()
    assert rows_of([next(iter(loader))]) == rows_of([next(iter(loader))])


def test_processes_share_the_pairs(tokenizer):
    shares = [rows_of(connected(tokenizer, rank=rank, world_size=2).train_dataloader()) for rank in range(2)]
    assert [len(share) for share in shares] == [5, 5]
    assert sorted(shares[0] + shares[1]) == sorted(epoch(connected(tokenizer), 0))


def test_validation_holds_the_first_reference_on_request(tokenizer):
    data = Toy(batch_size=2)
    data.connect(tokenizer)
    assert "pairs" not in next(iter(data.val_dataloader()))
    data.connect(tokenizer, validate_loss=True)
    batch = next(iter(data.val_dataloader()))
    assert batch["references"] == [list(example.references) for example in EXAMPLES[:2]]
    expected = [(*tokenizer(e.source + "\n").input_ids, *tokenizer(e.references[0]).input_ids, 0) for e in EXAMPLES[:2]]
    assert tokenizer.eos_token_id == 0
    assert rows_of([batch["pairs"]]) == expected


def predictions(folder, examples, name="predictions.jsonl", **changed):
    """A file as `evaluate.py predict` writes it."""
    lines = [
        json.dumps({"id": each.id, "source": each.source, "prediction": f"Flows {each.id}.", "tokens": []} | changed)
        for each in examples
    ]
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def test_predicted_texts_take_the_place_of_the_references(tokenizer, tmp_path):
    file = predictions(tmp_path, EXAMPLES)
    data = connected(tokenizer, prompt="{source}|", targets=[file])
    expected = [
        (*tokenizer(each.source + "|").input_ids, *tokenizer(f" Flows {each.id}.").input_ids, tokenizer.eos_token_id)
        for each in EXAMPLES
    ]
    assert sorted(rows_of(data.train_dataloader())) == sorted(expected)
    data.connect(tokenizer, validate_loss=True)
    batch = next(iter(data.val_dataloader()))
    assert rows_of([batch["pairs"]]) == expected[:2]
    assert batch["references"] == [list(each.references) for each in EXAMPLES[:2]]  # what texts are scored with
    assert data.training_identity() != connected(tokenizer, prompt="{source}|").training_identity()
    twice = connected(tokenizer, targets=[file, predictions(tmp_path, EXAMPLES, "other.jsonl", prediction="Else.")])
    assert len(rows_of(twice.train_dataloader())) == 2 * len(EXAMPLES)
    twice.connect(tokenizer, validate_loss=True)
    assert len(rows_of(batch["pairs"] for batch in twice.val_dataloader())) == 2  # the first text of each


def test_examples_without_a_predicted_text_are_an_error(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"1 of 5 examples have no prediction in .*, the first of them '4'"):
        connected(tokenizer, targets=[predictions(tmp_path, EXAMPLES[:4])]).train_dataloader()
    with pytest.raises(ValueError, match="5 of 5 examples"):  # of another split, under the same ids
        connected(tokenizer, targets=[predictions(tmp_path, EXAMPLES, source="Else")]).train_dataloader()
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.jsonl"):
        connected(tokenizer, targets=["nowhere.jsonl"]).train_dataloader()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "0"}', ': no key "source"; got id'),
        ('{"id": "0", "source": "a", "prediction": null}', ': "prediction" has to be a string, got None'),
        ('{"id": 0, "source": "a", "prediction": "b"}', ': "id" has to be a string, got 0'),
        (
            '{"id": "0", "source": "a", "prediction": "\\ud83d"}',
            ': "prediction" cannot be encoded in UTF-8: its character 1',
        ),
        ('{"id": "0", "sou', " is not JSON in UTF-8: Unterminated string"),
    ],
)
def test_a_line_that_is_no_prediction_is_named(tokenizer, tmp_path, line, message):
    (tmp_path / "broken.jsonl").write_text("\n" + line + "\n")
    with pytest.raises(ValueError, match=re.escape(f"broken.jsonl, line 2{message}")):
        connected(tokenizer, targets=[str(tmp_path / "broken.jsonl")]).train_dataloader()


def test_a_predicted_text_may_be_empty(tokenizer, tmp_path):
    data = connected(tokenizer, targets=[predictions(tmp_path, EXAMPLES, prediction="")])
    assert {int(batch["target_mask"].sum(1).max()) for batch in data.train_dataloader()} == {1}  # the end alone


def test_the_identity_changes_with_examples_prompt_batch_and_seed(tokenizer):
    identity = connected(tokenizer).training_identity()
    assert identity == connected(tokenizer).training_identity()
    for other in (connected(tokenizer, limit=4), connected(tokenizer, prompt="{source}!")):
        assert other.training_identity()["training examples"] != identity["training examples"]
    assert connected(tokenizer, seed=2).training_identity()["data seed"] == 2
    assert identity["batch_size"] == 2


def test_sample_batches_have_the_prompts_and_first_references_of_a_draw():
    tokenizer = build_tokenizer()
    data = connected(tokenizer, max_target_tokens=3)
    batches = sample_batches(data, "train", 3)
    drawn = data.examples("train", at_most=3)
    assert [example_id for batch in batches for example_id in batch["ids"]] == [example.id for example in drawn]
    assert {example.id for example in drawn} < {example.id for example in data.examples("train", at_most=4)}
    assert [len(batch["ids"]) for batch in batches] == [2, 1]
    expected = [
        (*data.template.encode(e.source, tokenizer)[0], *data.template.encode_target(e.references[0], tokenizer, 3)[0])
        for e in drawn
    ]
    assert rows_of(batch["pairs"] for batch in batches) == expected
    assert [len(batch["ids"]) for batch in sample_batches(data, "train", 99)] == [2, 2, 1]
    texts = {example.id: [5, number] for number, example in enumerate(data.examples("train"))}
    given = sample_batches(data, "train", 3, texts)
    assert [row[-2:] for row in rows_of(batch["pairs"] for batch in given)] == [tuple(texts[e.id]) for e in drawn]
    del texts[drawn[0].id]
    assert [batch["ids"] for batch in sample_batches(data, "train", 3, texts)] == [[e.id for e in drawn[1:]]]
