import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer

from hsdlab.data import PromptTemplate

from .conftest import CHAT_TEMPLATE, build_tokenizer

TOKENIZER = build_tokenizer()
TOKENIZER.chat_template = CHAT_TEMPLATE
MARKER = "\nSummary:"
TEMPLATE = PromptTemplate("Text: {source}" + MARKER)
CHAT = PromptTemplate("Text: {source}" + MARKER, chat=True)


@settings(max_examples=300, deadline=None)
@given(source=st.text(max_size=300), room=st.integers(0, 60), chat=st.booleans())
def test_whatever_the_source_the_prompt_fits_and_keeps_its_end(source, room, chat):
    template, end = (CHAT, MARKER + "</s>\n<|assistant|>\n") if chat else (TEMPLATE, MARKER)
    max_tokens = len(template.encode("", TOKENIZER)[0]) + room
    full, _ = template.encode(source, TOKENIZER)
    token_ids, was_cut = template.encode(source, TOKENIZER, max_tokens)
    text = TOKENIZER.decode(token_ids)
    start = ("<|user|>\n" if chat else "") + "Text: "
    assert len(token_ids) <= max_tokens
    assert text.startswith(start)
    assert text.endswith(end)
    assert source.startswith(text[len(start) : -len(end)])
    assert was_cut == (len(full) > max_tokens)
    assert was_cut or token_ids == full


def test_cuts_no_more_than_needed_and_between_tokens():
    source = "The river rises in the hills and runs to the sea. " * 20
    full, _ = TEMPLATE.encode(source, TOKENIZER)
    for max_tokens in range(40, len(full), 17):
        token_ids, was_cut = TEMPLATE.encode(source, TOKENIZER, max_tokens)
        assert was_cut
        assert len(token_ids) == max_tokens
        assert token_ids[:30] == full[:30]


def test_a_prompt_of_exactly_the_limit_is_not_cut():
    full, _ = TEMPLATE.encode("The river", TOKENIZER)
    assert TEMPLATE.encode("The river", TOKENIZER, len(full)) == (full, False)
    assert TEMPLATE.encode("The river", TOKENIZER, len(full) - 1)[1]


def test_special_tokens_are_added_once_and_only_without_chat():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    token_ids, was_cut = TEMPLATE.encode("The river rises in the hills. " * 3, tokenizer, 24)
    assert was_cut
    assert token_ids.count(tokenizer.eos_token_id) == 1
    assert token_ids[0] == tokenizer.eos_token_id
    assert tokenizer.decode(CHAT.encode("The river", tokenizer)[0]).startswith("<|user|>\nText: The river")


def test_chat_wraps_a_user_message_up_to_the_assistants_header():
    text = TOKENIZER.decode(CHAT.encode("The river", TOKENIZER)[0])
    assert text == "<|user|>\nText: The river\nSummary:</s>\n<|assistant|>\n"


def test_a_source_may_hold_the_placeholder_and_braces():
    assert TEMPLATE.fill("{source} {x}") == "Text: {source} {x}\nSummary:"


def test_a_tokenizer_without_offsets_cuts_by_characters():
    tokenizer = ByT5Tokenizer()  # in Python: such ones refuse return_offsets_mapping
    assert not tokenizer.is_fast
    token_ids, was_cut = TEMPLATE.encode("The river rises in the hills. " * 9, tokenizer, 30)
    assert was_cut
    assert tokenizer.decode(token_ids) == "Text: The river rises" + MARKER
    assert len(token_ids) == 30


def test_a_template_that_does_not_fit_is_an_error():
    alone = len(TEMPLATE.encode("", TOKENIZER)[0])
    with pytest.raises(ValueError, match=rf"alone takes {alone} tokens, more than the {alone - 1} allowed"):
        TEMPLATE.encode("The river", TOKENIZER, alone - 1)


def test_chat_without_a_chat_template_is_an_error():
    with pytest.raises(ValueError, match="chat=True, but the tokenizer has no chat template"):
        CHAT.encode("The river", build_tokenizer())


@pytest.mark.parametrize(("text", "times"), [("Text:", 0), ("{source} {source}", 2)])
def test_the_placeholder_stands_in_the_template_once(text, times):
    with pytest.raises(ValueError, match=f"holds {{source}} {times} times: expected once"):
        PromptTemplate(text)
