import json
import pickle
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer

from hsdlab.data import Docstrings, Example, GenerationDataModule, JSONLines
from hsdlab.data.batches import batches_by_length
from hsdlab.errors import UserError

from .conftest import build_tokenizer

EXAMPLES = [
    Example(f"toy-{index}", "The river rises in the hills. " * (1 + index % 4), (f"River {index}.", "A river."))
    for index in range(11)
]


class Toy(GenerationDataModule):
    def load_examples(self, split):
        return {"train": [], "validation": EXAMPLES[:3], "test": EXAMPLES}[split]


class Module(LightningModule):
    """Notes what it is given."""

    def __init__(self, tokenizer, context=40, max_new_tokens=20):
        super().__init__()
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=context))
        self.seen = []

    def test_step(self, batch, index):
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        self.seen += batch["ids"]

    validation_step = predict_step = test_step

    def configure_optimizers(self):
        return None


def run(module, data, stage):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    getattr(trainer, stage)(module, datamodule=data)


def ids_of(loader):
    return [id for batch in loader for id in batch["ids"]]


def test_batches_are_left_padded_with_all_references(tokenizer):
    data = Toy(prompt="{source}|", batch_size=2)
    data.connect(tokenizer)
    _, batch, *_ = data.test_dataloader()
    examples = [EXAMPLES[1], EXAMPLES[8]]
    long, short = (tokenizer(example.source + "|").input_ids for example in examples)
    missing = len(long) - len(short)
    assert missing > 0
    assert batch["input_ids"].tolist() == [long, [tokenizer.eos_token_id] * missing + short]
    assert batch["attention_mask"].tolist() == [[1] * len(long), [0] * missing + [1] * len(short)]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
    assert batch["ids"] == ["toy-1", "toy-8"]
    assert batch["sources"] == [example.source for example in examples]
    assert batch["references"] == [["River 1.", "A river."], ["River 8.", "A river."]]
    assert tokenizer.pad_token is None
    assert tokenizer.padding_side == build_tokenizer().padding_side


def test_a_tokenizers_own_padding_token_is_used():
    tokenizer = build_tokenizer(pad_token="<|user|>")
    data = Toy(batch_size=2)
    data.connect(tokenizer)
    _, batch, *_ = data.test_dataloader()
    assert batch["input_ids"][1, 0] == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_tokenizer_without_any_token_to_pad_with_is_an_error():
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    data = Toy()
    data.connect(tokenizer)
    with pytest.raises(ValueError, match=r"set tokenizer\.pad_token"):
        data.test_dataloader()


def test_limit_is_a_seeded_draw_in_file_order():
    def draw(**kwargs):
        return [EXAMPLES.index(example) for example in Toy(**kwargs).examples("test")]

    assert draw() == list(range(11))
    assert draw(limit=99) == list(range(11))
    assert draw(limit=5) == draw(limit=5) == sorted(draw(limit=5))
    assert len(set(draw(limit=5))) == 5
    assert draw(limit=5) != list(range(5))
    assert draw(limit=5, seed=1) != draw(limit=5)
    assert set(draw(limit=4)) < set(draw(limit=5))


def test_cut_prompts_are_counted_and_reported_once(tokenizer):
    data = Toy()
    data.connect(tokenizer, max_prompt_tokens=20)
    lengths = [len(tokenizer(example.source + "\n").input_ids) for example in EXAMPLES]
    expected = sum(length > 20 for length in lengths)
    assert 0 < expected < 11
    message = (
        rf"^{expected} of 11 test prompts were cut to 20 tokens\. The longest has {max(lengths)}\. "
        r"Lower --model\.max_new_tokens to keep more of them\.$"
    )
    with pytest.warns(UserWarning, match=message):
        data.test_dataloader()
    assert data.cut == {"test": expected}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = list(data.test_dataloader())
    assert max(batch["input_ids"].shape[1] for batch in batches) == 20
    data.connect(tokenizer, max_prompt_tokens=1000)
    data.test_dataloader()
    assert data.cut == {"test": 0}


def test_a_batch_holds_prompts_of_similar_length():
    lengths = [5, 1, 9, 2, 8, 1, 9, 5]
    assert batches_by_length(lengths, 2) == [0, 3, 1, 5, 2, 6, 4, 7]
    assert batches_by_length(lengths, 8) == batches_by_length(lengths, 1) == list(range(8))
    assert batches_by_length([3, 3, 3, 3, 3], 2) == [0, 1, 2, 3, 4]  # equal lengths keep the order of the data
    assert batches_by_length(lengths, 3) == [0, 4, 7, 1, 3, 5, 2, 6]  # the longest in the smaller batch, the last one


def test_the_batches_of_a_split_have_less_padding_and_name_the_place_of_each_row(tokenizer):
    data = Toy(batch_size=2)
    data.connect(tokenizer)
    batches = list(data.test_dataloader())
    assert sorted(position for batch in batches for position in batch["positions"]) == list(range(11))
    for batch in batches:
        assert batch["ids"] == [EXAMPLES[position].id for position in batch["positions"]]
        assert batch["positions"] == sorted(batch["positions"])
    padded = sum(int((batch["attention_mask"] == 0).any()) for batch in batches)
    assert padded <= 3  # of 6: one batch at each of the 3 changes of length


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_trainer_reads_each_example_once_and_single_rows_in_file_order(tokenizer, stage):
    module, data = Module(tokenizer), Toy(batch_size=1)
    with pytest.warns(UserWarning, match=r"prompts were cut to 20 tokens"):
        run(module, data, stage)
    expected = EXAMPLES[:3] if stage == "validate" else EXAMPLES
    assert module.seen == [example.id for example in expected]
    assert data.prompt_limit_tokens == 40 - 20


def test_a_trainer_keeps_the_limit_that_was_set(tokenizer):
    data = Toy(max_prompt_tokens=15)
    with pytest.warns(UserWarning, match=r"cut to 15 tokens\. .* Raise --data\.max_prompt_tokens"):
        run(Module(tokenizer), data, "test")
    assert data.prompt_limit_tokens == 15


def test_a_model_without_a_context_limit_has_none(tokenizer):
    data = Toy()
    run(Module(tokenizer, context=None), data, "test")
    assert data.cut == {"test": 0}
    assert data.prompt_limit_tokens is None


@pytest.mark.parametrize(("max_prompt_tokens", "max_new_tokens"), [(21, 20), (None, 40)])
def test_prompts_longer_than_the_context_are_an_error(tokenizer, max_prompt_tokens, max_new_tokens):
    data = Toy(max_prompt_tokens=max_prompt_tokens)
    with pytest.raises(ValueError, match="the model's context of 40 tokens"):
        run(Module(tokenizer, max_new_tokens=max_new_tokens), data, "test")


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_processes_have_the_batches_of_a_single_one_in_turn(tokenizer, world_size):
    def batches(rank, world_size):
        data = Toy(batch_size=2)
        data.connect(tokenizer)
        data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank)
        loader = data.test_dataloader()
        assert len(loader) == len(list(loader))
        return list(loader)

    alone = batches(0, 1)
    shares = [batches(rank, world_size) for rank in range(world_size)]
    assert all(shares)  # Lightning stops a process without a batch
    for rank, share in enumerate(shares):
        expected = [batch["ids"] for batch in alone][rank::world_size]
        assert [batch["ids"] for batch in share] == (expected or [[]])
        for batch, other in zip(share, alone[rank::world_size], strict=False):
            assert torch.equal(batch["input_ids"], other["input_ids"])  # padded alike


def test_a_validation_batch_without_a_row_has_no_pairs(tokenizer):
    data = Toy(batch_size=2)
    data.connect(tokenizer, validate_loss=True)
    data.trainer = SimpleNamespace(world_size=3, global_rank=2)
    (batch,) = data.val_dataloader()
    assert batch["ids"] == []
    assert batch["input_ids"].shape == batch["pairs"]["input_ids"].shape == (0, 0)


def test_training_with_more_processes_than_pairs_is_an_error(tokenizer):
    data = Toy(limit=1)
    data.load_examples = lambda split: EXAMPLES
    data.connect(tokenizer)
    data.trainer = SimpleNamespace(world_size=3, global_rank=0)
    with pytest.raises(ValueError, match="makes 2 training pairs for 3 processes: give fewer devices"):
        data.train_dataloader()


def test_loaders_can_be_sent_to_worker_processes(tokenizer):
    data = Toy()
    data.connect(tokenizer)
    loader = data.test_dataloader()
    collate, rows = pickle.loads(pickle.dumps((loader.collate_fn, loader.dataset)))
    assert collate([rows[4]])["ids"] == ["toy-4"]


def test_an_empty_or_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="The train split of Toy holds no example"):
        Toy().examples("train")
    with pytest.raises(ValueError, match="No split 'dev': expected one of train, validation, test"):
        Toy().examples("dev")


def test_no_tokenizer_is_an_error():
    with pytest.raises(RuntimeError, match=r"Toy has no tokenizer: .* or call connect"):
        Toy().test_dataloader()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: expected a whole number, 1 or more"),
        ({"limit": 0}, "limit=0: expected a whole number, 1 or more"),
        ({"max_prompt_tokens": -3}, "max_prompt_tokens=-3: expected a whole number, 1 or more"),
        ({"num_workers": -1}, "num_workers=-1: expected a whole number, 0 or more"),
        ({"predict_split": "dev"}, "No split 'dev': expected one of train, validation, test"),
        ({"prompt": "Summary:"}, "prompt='Summary:' holds {source} 0 times"),
    ],
)
def test_parameters_are_checked_when_made(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Toy(**kwargs)


@pytest.mark.parametrize(
    ("data_class", "required"),
    [(JSONLines, ["--folder=somewhere"]), (Docstrings, [])],
    ids=["jsonl", "docstrings"],
)
def test_every_parameter_can_be_set_on_the_command_line(data_class, required):
    parser = ArgumentParser()
    parser.add_class_arguments(data_class)
    flags = [
        "--chat=true",
        "--batch_size=3",
        "--limit=4",
        "--seed=5",
        "--max_prompt_tokens=6",
        "--num_workers=7",
    ]
    options = parser.parse_args([*required, *flags, "--prompt={source}!"])
    data = data_class(**options.as_dict())
    assert data.template.fill("Hi") == "Hi!"
    assert data.template.chat
    assert (data.batch_size, data.limit, data.seed, data.max_prompt_tokens, data.num_workers) == (
        3,
        4,
        5,
        6,
        7,
    )
    help_text = parser.format_help()
    assert help_text.count("Template of the prompt") == 1
    assert "Examples per split at most" in help_text


GOOD = Example("a", "source", ("reference",))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"id": "b"}, "example 2: expected an Example, got dict"),
        (Example(7, "source", ("r",)), "example 2: id has to be a string, got int"),
        (Example("b", None, ("r",)), "example 2 ('b'): source has to be a string, got NoneType"),
        (Example("b", " ", ("r",)), "example 2 ('b'): source has to hold text, got ' '"),
        (Example("b", "cut \ud83d", ("r",)), "example 2 ('b'): source cannot be encoded in UTF-8: its character 5 is "),
        (Example("b", "s", "one"), "example 2 ('b'): references have to be a tuple of one text or more, got 'one'"),
        (Example("b", "s", ()), "example 2 ('b'): references have to be a tuple of one text or more, got ()"),
        (Example("b", "s", ("r", "")), "example 2 ('b'): each of the references has to hold text, got ''"),
        (Example("a", "s", ("r",)), "example 2 ('a'): an earlier example has the same id"),
    ],
)
def test_examples_of_any_data_set_are_checked(example, message):
    data = Toy()
    data.load_examples = lambda split: [GOOD, example]
    with pytest.raises(UserError, match=re.escape(f"The test split of Toy, {message}")):
        data.examples("test")
    data.load_examples = lambda split: [GOOD, Example("b", "s", ["as a list"])]
    assert len(data.examples("test")) == 2


def test_check_reads_all_that_a_run_reads_and_loads_no_tokenizer(tmp_path):
    lines = [json.dumps({"id": each.id, "source": each.source, "prediction": "x"}) for each in EXAMPLES]
    file = tmp_path / "predictions.jsonl"
    file.write_text("\n".join(lines[:3]))
    prepared = []
    data = Toy(targets=[str(file)])
    data.prepare_data = lambda: prepared.append(True)
    data.check("validation", for_training=True)
    data.check("test")
    assert prepared == [True, True]
    with pytest.raises(UserError, match="8 of 11 examples have no prediction"):
        data.check("validation", "test", for_training=True)
    with pytest.raises(UserError, match="The train split of Toy holds no example"):
        data.check("train")
