"""The tokens of a training split, counted and written; drafts that are made of them."""

import json
import re
from collections import Counter
from itertools import chain

import pytest

from hsdlab.cli.commands import main
from hsdlab.decoding.token_counts import TokenCounts
from tests.tiny_checkpoints import SPECIAL, tiny_tokenizer
from tests.tiny_runs import options, read_records, run

TRAIN = [["a hello", "hell"], ["hello, hello"]]


@pytest.fixture
def given(tmp_path):
    """The options of a tiny run, with a training split; greedy."""
    given = options(tmp_path)
    lines = [json.dumps({"id": f"train-{i}", "source": "x", "references": each}) for i, each in enumerate(TRAIN)]
    (tmp_path / "data/train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [*given, "--model.num_beams=1"]


@pytest.fixture
def refused(given, tmp_path, capsys):
    def call(*args):
        with pytest.raises(SystemExit) as end:
            main([*args[:1], *given, *args[1:]])
        return f"{end.value.code} {capsys.readouterr().err}"  # an error of a run is the code itself

    return call


def test_the_references_are_counted_each_with_its_end(given, monkeypatch, tmp_path, capsys):
    """The model's max_new_tokens, 6, cuts the longest."""
    out = tmp_path / "counts"
    run(monkeypatch, "count_tokens", *given, f"--output={out}")
    tokenizer = tiny_tokenizer()
    texts = [[*tokenizer(text).input_ids, tokenizer.eos_token_id][:6] for each in TRAIN for text in each]
    found = TokenCounts.load(out / "token_counts.jsonl", "draft_vocabulary")
    assert dict(zip(found.ids, found.counts, strict=True)) == Counter(chain(*texts))
    assert found.tokens[0] == "hell"
    assert SPECIAL[1] in found.tokens
    said = capsys.readouterr().out
    number = len(found.ids)
    assert f"the {number} most frequent of the {number} tokens of 3 texts, 100.00% of what" in said
    assert "Decoding" not in said
    assert json.loads((out / "run.json").read_text())["config"]["size"] == 8000


def test_as_many_as_are_wanted_and_of_the_texts_that_are_named(given, tmp_path, capsys, monkeypatch):
    texts = [{"id": f"train-{i}", "source": "x", "prediction": "ooo"} for i in range(2)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(each) + "\n" for each in texts))
    more = (f"--data.targets=[{tmp_path / 'own.jsonl'}]", "--size=1", f"--output={tmp_path / 'counts'}")
    monkeypatch.setattr("sys.argv", ["hsdlab"])
    main(["count-tokens", *given, *more])  # as it is typed
    assert TokenCounts.load(tmp_path / "counts/token_counts.jsonl", "draft_vocabulary").tokens == ("o",)
    assert "the 1 most frequent of the 2 tokens of 2 texts, 75.00% of what the texts hold" in capsys.readouterr().out


def test_what_cannot_be_counted_is_refused(refused, tmp_path):
    out = f"--output={tmp_path / 'counts'}"
    assert "size" in refused("count-tokens", "--size=0", out)
    assert "decodes under no strategy" in refused("count-tokens", "--skip=HSD", out)
    assert "no file nowhere" in refused("count-tokens", "--data.targets=[nowhere]", out)
    (tmp_path / "data/train.jsonl").unlink()
    assert "train.jsonl" in refused("count-tokens", out)
    assert not (tmp_path / "counts").exists()


@pytest.fixture
def counts(given, monkeypatch, tmp_path):
    run(monkeypatch, "count_tokens", *given, f"--output={tmp_path / 'counts'}")
    return tmp_path / "counts/token_counts.jsonl"


def skip(file):
    draft = "draft: {class_path: HSD, init_args: {max_exit: 2}}"
    return f"--skip={{class_path: Verified, init_args: {{{draft}, draft_vocabulary: {file}}}}}"


@pytest.mark.slow
def test_a_run_drafts_with_the_file_and_notes_it(given, counts, refused, monkeypatch, tmp_path):
    full, drafted = tmp_path / "full", tmp_path / "drafted"
    run(monkeypatch, "test", *given, f"--output={full}")
    run(monkeypatch, "test", *given, skip(counts), f"--output={drafted}")
    texts = [[each["prediction"] for each in read_records(out / "predictions.jsonl")] for out in (full, drafted)]
    assert texts[0] == texts[1]
    noted = json.loads((drafted / "run.json").read_text())["own_code"]
    assert list(noted) == [str(counts)]
    counts.write_text("".join(counts.read_text().splitlines(keepends=True)[:3]), encoding="utf-8")
    said = refused("test", skip(counts), f"--output={drafted}")
    assert f"the files that options name ({counts}) are not those" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda file: file.unlink(), "there is no such file"),
        (lambda file: file.write_text("28\n"), "line 1: expected a line such as"),
        (lambda file: file.write_text('{"id": 999, "token": "x", "count": 1}\n'), "is the token 'x' there"),
        (lambda file: file.write_text(re.sub('"hell"', '"hall"', file.read_text())), "is the token 'hall' there"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_anything_is_decoded(change, says, refused, counts, tmp_path):
    change(counts)
    assert says in refused("test", skip(counts), f"--output={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
