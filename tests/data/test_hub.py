import dataclasses
import re
import socket
import time
from collections import Counter

import datasets
import pytest
import yaml
from datasets import Dataset, DatasetDict
from jsonargparse import ArgumentParser

from hsdlab.data import Example, GenerationDataModule, HubDataset, JSONLines
from hsdlab.data import hub as hub_module
from hsdlab.data.hub import HUB_SETS, split_of, to_examples
from tests.prepared_data import DATA, REASON
from tests.strategies.test_paper_tables import COLUMNS

# Two rows of each set, written by hand with the columns and types that the hub has.
ROWS = {
    "cnn_dailymail": [
        {"article": "(CNN)A bridge fell. ", "highlights": "Bridge falls .\nNo one hurt .", "id": "1f"},
        {"article": "It rains.", "highlights": "Rain .", "id": "2f"},
    ],
    "xsum": [
        {"document": "The council met.\nIt voted.", "summary": "A council has voted.", "id": "381"},
        {"document": "Snow fell.", "summary": "It has snowed.", "id": "382"},
    ],
    "e2e_nlg": [
        {"meaning_representation": "name[Blue Spice], area[riverside]", "human_reference": "Blue Spice is riverside."},
        {"meaning_representation": "name[Aromi]", "human_reference": "There is a place called Aromi."},
    ],
    "common_gen": [
        {"concept_set_idx": 0, "concepts": ["ski", "mountain"], "target": "Skier skis down the mountain"},
        {"concept_set_idx": 1, "concepts": ["dog", "run"], "target": "The dog runs."},
    ],
    "healthcaremagic": [
        {"instruction": "If you are a doctor, answer.", "input": "I cough.", "output": "Hi, drink tea."},
        {"instruction": "If you are a doctor, answer.", "input": "My knee hurts.", "output": "Hello, rest it."},
    ],
    "reddit_tldr": [
        {"prompt": "SUBREDDIT: r/a\n\nTITLE: b\n\nPOST: c\n\nTL;DR:", "completion": " d"},
        {"prompt": "SUBREDDIT: r/e\n\nTITLE: f\n\nPOST: g TL;DR: h\n\nTL;DR:", "completion": " i"},
    ],
}
EXAMPLES = {
    "cnn_dailymail": [
        ("(CNN)A bridge fell.", "Bridge falls .\nNo one hurt ."),
        ("It rains.", "Rain ."),
    ],
    "xsum": [("The council met.\nIt voted.", "A council has voted."), ("Snow fell.", "It has snowed.")],
    "e2e_nlg": [
        ("name[Blue Spice], area[riverside]", "Blue Spice is riverside."),
        ("name[Aromi]", "There is a place called Aromi."),
    ],
    "common_gen": [("ski mountain", "Skier skis down the mountain"), ("dog run", "The dog runs.")],
    "healthcaremagic": [("I cough.", "Hi, drink tea."), ("My knee hurts.", "Hello, rest it.")],
    "reddit_tldr": [
        ("SUBREDDIT: r/a\n\nTITLE: b\n\nPOST: c", "d"),
        ("SUBREDDIT: r/e\n\nTITLE: f\n\nPOST: g TL;DR: h", "i"),
    ],
}


@pytest.fixture
def no_network(monkeypatch):
    """The hub answers nothing, at once."""
    monkeypatch.setattr(hub_module, "_hub_answers", lambda hub_set: False)


@pytest.fixture
def hub(monkeypatch):
    """The hub with the given rows in each split; returns the calls of load_dataset."""
    calls = []

    def serve(rows):
        def load_dataset(path, name, *, revision, split):
            calls.append((path, name, revision, split))
            data = Dataset.from_list(rows)
            return data if split else DatasetDict({"train": data})

        monkeypatch.setattr(hub_module, "_hub_answers", lambda hub_set: True)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return serve


def pairs(examples):
    return [(example.source, *example.references) for example in examples]


# ---- the mapping


def test_the_cases_are_all_sets():
    assert set(ROWS) == set(EXAMPLES) == set(HUB_SETS)


@pytest.mark.parametrize("name", HUB_SETS)
def test_rows_become_examples(name):
    examples = to_examples(ROWS[name], HUB_SETS[name], "here")
    assert pairs(examples) == EXAMPLES[name]
    assert [example.id for example in examples] == ["here-000000", "here-000001"]


def test_the_references_of_a_source_are_one_example_in_row_order():
    sources = ["name[B]", "name[A]", "name[B]", "name[B]", "name[A]"]
    rows = [
        {"meaning_representation": source, "human_reference": f"text {number}"} for number, source in enumerate(sources)
    ]
    assert to_examples(rows, HUB_SETS["e2e_nlg"], "x") == [
        Example("x-000000", "name[B]", ("text 0", "text 2", "text 3")),
        Example("x-000001", "name[A]", ("text 1", "text 4")),
    ]


def test_concept_sets_are_grouped_by_their_number_not_their_words():
    rows = [
        {"concept_set_idx": 7, "concepts": ["run", "dog"], "target": "A dog runs."},
        {"concept_set_idx": 8, "concepts": ["run", "dog"], "target": "Dogs run."},
        {"concept_set_idx": 7, "concepts": ["run", "dog"], "target": "Run, dog!"},
    ]
    assert to_examples(rows, HUB_SETS["common_gen"], "x") == [
        Example("x-000000", "run dog", ("A dog runs.", "Run, dog!")),
        Example("x-000001", "run dog", ("Dogs run.",)),
    ]


@pytest.mark.parametrize("empty", ["", " \n", None])
@pytest.mark.parametrize("column", ["document", "summary"])
def test_rows_without_text_are_left_out(column, empty):
    first, second = ROWS["xsum"]
    examples = to_examples([{**first, column: empty}, second], HUB_SETS["xsum"], "x")
    assert examples == [Example("x-000001", "Snow fell.", ("It has snowed.",))]


def shared_examples(folder, split):
    if not (DATA / folder).is_dir():
        pytest.skip(REASON)
    return JSONLines(str(DATA / folder)).load_examples(split)


def hub_rows(name, examples):
    """Rows as the hub has them, one a reference."""
    hub_set = HUB_SETS[name]
    for number, example in enumerate(examples):
        for reference in example.references:
            source = example.source.split() if name == "common_gen" else example.source
            yield {"concept_set_idx": number, hub_set.source: source, hub_set.reference: reference}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cnn_dailymail", "cnn_dailymail"),
        ("xsum", "xsum"),
        ("e2e_nlg", "e2e_nlg"),
        ("common_gen", "common_gen"),
        ("reddit_tldr", "reddit_tifu"),  # a stand-in
    ],
)
def test_real_examples_come_back(name, folder, split):
    expected = shared_examples(folder, split)
    got = to_examples(hub_rows(name, expected), HUB_SETS[name], name)
    assert len(got) == len(expected) >= 70
    assert pairs(got) == pairs(expected)


def test_real_references_are_grouped_whatever_the_order_of_the_rows():
    expected = shared_examples("e2e_nlg", "test")
    rows = sorted(hub_rows("e2e_nlg", expected), key=lambda row: row["human_reference"])
    got = to_examples(rows, HUB_SETS["e2e_nlg"], "e2e")
    assert sum(len(example.references) for example in got) == 4693
    assert {example.source: sorted(example.references) for example in got} == {
        example.source: sorted(example.references) for example in expected
    }


# ---- the splits


def test_a_question_is_in_one_split_whatever_else_there_is():
    splits = [split_of(source) for source in ("I cough.", "Question 8", "Question 14")]
    assert splits == ["train", "validation", "test"]  # never to change: published figures would
    counts = Counter(split_of(f"Question {number}") for number in range(10_000))
    assert counts["test"] == pytest.approx(1000, abs=100)
    assert counts["validation"] == pytest.approx(1000, abs=100)


def test_healthcaremagic_is_divided_by_its_questions(hub):
    questions = [f"Question {number % 150}" for number in range(200)]  # some asked twice
    calls = hub([{"instruction": "", "input": question, "output": f"A{i}"} for i, question in enumerate(questions)])
    splits = {split: HubDataset("healthcaremagic").examples(split) for split in ("train", "validation", "test")}
    assert {call[3] for call in calls} == {"train"}
    assert sum(map(len, splits.values())) == 200
    assert all(split_of(example.source) == split for split, examples in splits.items() for example in examples)
    assert all(0 < len(splits[split]) < 40 for split in ("validation", "test"))


def test_common_gen_says_that_its_test_references_are_hidden(hub):
    calls = hub(ROWS["common_gen"])
    data = HubDataset("common_gen")
    with pytest.warns(UserWarning, match="common_gen: the references of the test split are not public, its validation"):
        test = data.examples("test")
    assert test == data.examples("validation")
    assert [example.id for example in test] == ["common_gen-validation-000000", "common_gen-validation-000001"]
    assert [call[3] for call in calls] == ["validation", "validation"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", sorted(set(HUB_SETS) - {"common_gen", "healthcaremagic"}))
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_each_split_is_the_hubs_own(hub, name, split):
    calls = hub(ROWS[name])
    assert pairs(HubDataset(name).examples(split)) == EXAMPLES[name]
    hub_set = HUB_SETS[name]
    assert calls == [(hub_set.id, hub_set.config, hub_set.revision, split)]


# ---- the data module


def test_prepare_data_gets_all_splits(hub):
    calls = hub(ROWS["cnn_dailymail"])
    HubDataset("cnn_dailymail").prepare_data()
    assert calls == [("abisee/cnn_dailymail", "3.0.0", "96df5e686bee6baa90b8bee7c28b81fa3fa6223d", None)]


def test_rows_left_out_are_counted(hub):
    hub([*ROWS["e2e_nlg"], {"meaning_representation": "name[C]", "human_reference": ""}])
    with pytest.warns(UserWarning, match="e2e_nlg: 1 of 3 test rows have no source or no reference"):
        assert pairs(HubDataset("e2e_nlg").examples("test")) == EXAMPLES["e2e_nlg"]


def test_a_missing_column_is_named(hub):
    hub([{"article": "a", "abstract": "b"}])
    with pytest.raises(ValueError, match="abisee/cnn_dailymail has no column highlights; got article, abstract"):
        HubDataset("cnn_dailymail").examples("test")


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="name='cnn': expected one of " + ", ".join(HUB_SETS)):
        HubDataset("cnn")


@pytest.mark.parametrize("name", HUB_SETS)
def test_the_prompt_is_that_of_the_set_unless_given(name):
    assert HubDataset(name).template.text == HUB_SETS[name].prompt
    assert HubDataset(name, prompt="Say: {source}").template.text == "Say: {source}"


def test_the_command_line_makes_it():
    parser = ArgumentParser()
    parser.add_argument("--data", type=GenerationDataModule)
    config = parser.parse_args(["--data=HubDataset", "--data.name=xsum", "--data.limit=3", "--data.batch_size=2"])
    data = parser.instantiate(config).data
    assert (type(data), data.name, data.limit, data.batch_size) == (HubDataset, "xsum", 3, 2)


# ---- through `datasets` itself, without network


@pytest.mark.parametrize("kind", ["parquet", "json"])
@pytest.mark.parametrize("name", HUB_SETS)
def test_a_local_folder_with_the_hubs_columns_is_read(name, kind, tmp_path, monkeypatch, no_network):
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        data = Dataset.from_list(ROWS[name])
        data.to_parquet(folder / f"{split}.parquet") if kind == "parquet" else data.to_json(folder / f"{split}.json")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setitem(HUB_SETS, name, dataclasses.replace(HUB_SETS[name], id=str(folder), config=None))
    data = HubDataset(name)
    data.prepare_data()
    assert pairs(data.examples("train")) == EXAMPLES[name]


def copy_into_cache(name, cache, tmp_path):
    """Put the rows into a cache folder as `datasets` does after a download."""
    hub_set = HUB_SETS[name]
    namespace, repository = hub_set.id.split("/")
    folder = tmp_path / repository  # the cached files are named after it
    folder.mkdir()
    for split in ("train", "validation", "test"):
        Dataset.from_list(ROWS[name]).to_parquet(folder / f"{split}.parquet")
    if hub_set.config is not None:
        files = [{"split": split, "path": f"{split}.parquet"} for split in ("train", "validation", "test")]
        card = {"configs": [{"config_name": hub_set.config, "data_files": files}]}
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    datasets.load_dataset(str(folder), hub_set.config, cache_dir=str(cache))
    (made,) = (path for path in cache.iterdir() if path.is_dir())
    made.rename(cache / f"{namespace}___{made.name}")


@pytest.mark.parametrize("name", ["cnn_dailymail", "e2e_nlg"])  # with a configuration and without
def test_a_copied_cache_is_enough(name, tmp_path, monkeypatch, no_network):
    cache = tmp_path / "cache"
    copy_into_cache(name, cache, tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    data = HubDataset(name)
    data.prepare_data()
    assert pairs(data.examples("test")) == EXAMPLES[name]
    assert datasets.config.HF_HUB_OFFLINE is False


def test_without_network_the_error_says_what_to_do_and_comes_at_once(tmp_path, monkeypatch):
    def no_address(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    start = time.monotonic()
    with pytest.raises(ConnectionError) as caught:
        HubDataset("xsum").prepare_data()
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert "EdinburghNLP/xsum is not in the local cache" in message
    assert "--data=JSONLines --data.folder=" in message
    (command,) = re.findall(r'python -c "(.*)"', message)
    calls = []
    monkeypatch.setattr(HubDataset, "prepare_data", lambda self: calls.append(self.name))
    exec(command, {})
    assert calls == ["xsum"]
    assert datasets.config.HF_HUB_OFFLINE is False


def test_an_error_of_the_hub_itself_is_passed_on(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("no such set")

    monkeypatch.setattr(hub_module, "_hub_answers", lambda hub_set: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(datasets.exceptions.DatasetNotFoundError, match="no such set"):
        HubDataset("xsum").prepare_data()


@pytest.mark.parametrize("name", HUB_SETS)
def test_the_table_is_complete(name):
    hub_set = HUB_SETS[name]
    assert hub_set.id.count("/") == 1
    assert re.fullmatch(r"[0-9a-f]{40}|main|refs/convert/parquet", hub_set.revision)
    assert hub_set.licence
    implied = {dataset: tokens for dataset, tokens, _, _ in COLUMNS}
    assert hub_set.max_new_tokens == {**implied, "reddit_tldr": 50}[name]
    assert hub_set.splits[0] == "train"
