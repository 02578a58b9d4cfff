"""The file of token counts: what it holds, and whose it is."""

from collections import Counter

import pytest

from hsdlab import UserError
from hsdlab.decoding.token_counts import TokenCounts
from tests.tiny_checkpoints import TOKENS, tiny_tokenizer

TEXT = "hello hell, hello"


@pytest.fixture
def counted():
    return Counter(tiny_tokenizer()(TEXT).input_ids)


def test_the_most_frequent_tokens_come_first(counted):
    found = TokenCounts.most_common(counted, 4, tiny_tokenizer())
    assert found.tokens == ("hell", "o", "Ġ", ",")  # of two that are equally frequent, the lower id
    assert found.counts == (3, 2, 2, 1)
    assert [TOKENS[each] for each in found.ids] == list(found.tokens)
    assert len(TokenCounts.most_common(counted, 99, tiny_tokenizer()).ids) == len(counted)


def test_a_file_is_read_as_it_was_written(counted, tmp_path):
    found = TokenCounts.most_common(counted, 99, tiny_tokenizer())
    (tmp_path / "counts.jsonl").write_text(found.text(), encoding="utf-8")
    assert TokenCounts.load(tmp_path / "counts.jsonl", "draft_vocabulary") == found


def test_a_file_of_another_tokenizer_is_refused(counted):
    found = TokenCounts.most_common(counted, 99, tiny_tokenizer())
    found.check_tokenizer("counts.jsonl", tiny_tokenizer())
    found.check_vocabulary("counts.jsonl", len(TOKENS))
    other = tiny_tokenizer()
    other.add_tokens(["<more>"])  # the ids of the file stay what they were
    found.check_tokenizer("counts.jsonl", other)
    with pytest.raises(UserError, match=rf"holds the id {len(TOKENS) - 1}; this model has {len(TOKENS) - 1}\. It was"):
        found.check_vocabulary("counts.jsonl", len(TOKENS) - 1)
    moved = TokenCounts(tuple(each - 1 for each in found.ids), found.tokens, found.counts)
    with pytest.raises(UserError, match=f"id {moved.ids[0]} is the token 'hell' there, and 'll' here. It was counted"):
        moved.check_tokenizer("counts.jsonl", tiny_tokenizer())


LINE = '{"id": 28, "token": ".", "count": 3}\n'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "the file is empty; expected a line such as"),
        ("28\n", "line 1: expected a line such as"),
        (f"{LINE}[28, 3]\n", "line 2: expected"),
        ('{"id": "28", "token": ".", "count": 3}', "line 1"),
        ('{"id": -1, "token": ".", "count": 3}', "line 1"),
        ('{"id": true, "token": ".", "count": 3}', "line 1"),
        ('{"id": 28, "count": 3}', "line 1"),
        (f"{LINE}{{", "line 2: expected a line such as .*, as `.*count.tokens` writes it"),
        (f"{LINE}\n{LINE}", "line 2: expected a line"),
        (b"\xff", "no text in UTF-8; expected a line"),
        (LINE * 2, "line 2: the token 28 is there twice"),
    ],
)
def test_what_is_no_file_of_token_counts_is_refused(content, says, tmp_path):
    path = tmp_path / "counts.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"check_vocabulary=.*{says}"):
        TokenCounts.load(path, "check_vocabulary")


def test_a_missing_file_is_named():
    with pytest.raises(
        FileNotFoundError, match=r"draft_vocabulary='nowhere': there is no such file\. `.*count.tokens` w"
    ):
        TokenCounts.load("nowhere", "draft_vocabulary")
