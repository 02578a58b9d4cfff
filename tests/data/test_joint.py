"""Special tokens and spaces where a prompt and its reference meet, for a tokenizer of each kind."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsdlab.data import PromptTemplate
from hsdlab.data.joint import bare_ids, following_ids, prompt_ids, special_tokens

from .tokenizer_kinds import KINDS, tokenizer_of

tokenizer_for = cache(tokenizer_of)

PROMPTS = ["{source}", "{source}\n", "Text: {source}\n\nSummary:", "Text: {source} Summary: ", "{source}<|assistant|>"]
SOURCES = ["The river rises.", "name[Café Aromi], area[riverside]", "Ünï ☃ 12", "ends in white space \n"]
REFERENCES = ["The river.", "river", "(12 words)", '"Café" ☃', "two\nlines", "  spaced  ", "'s", "1, 2"]

CHAT_ML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LLAMA_2 = (  # writes BOS itself; its header ends in no white space, and a space goes before the answer
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
NAMES = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
THINKS = NAMES.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}")
CHATS = {"ChatML": (CHAT_ML, ""), "Llama 2": (LLAMA_2, " "), "names": (NAMES, " "), "thinks": (THINKS, "")}
"""Chat templates, and what they write between their header and the assistant's text."""


def decoded(tokenizer, token_ids):
    return tokenizer.decode(token_ids, skip_special_tokens=False)


def check_joint(kind, prompt, target, joint_text):
    """Hold the ids of prompt and target, without what the tokenizer puts around a text, against the joint text."""
    tokenizer = tokenizer_for(kind)
    whole = bare_ids(joint_text, tokenizer)
    joint = [*prompt, *target[:-1]]
    assert target[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in target[:-1]
    assert decoded(tokenizer, joint) == decoded(tokenizer, whole)
    if KINDS[kind][-1] and not set(whole) & set(tokenizer.all_special_ids):  # around those some put spaces
        assert decoded(tokenizer, joint).removeprefix(" ") == joint_text
    if whole[: len(prompt)] == prompt:
        assert joint == whole


@pytest.mark.parametrize("text", PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_target_are_the_joint_text(kind, text):
    tokenizer, template = tokenizer_for(kind), PromptTemplate(text)
    _, _, before, after, _ = KINDS[kind]
    opening = tokenizer.convert_tokens_to_ids(before)
    space = "" if text[-1].isspace() or text.endswith(">") else " "
    for source in SOURCES:
        prompt, _ = template.encode(source, tokenizer)
        assert prompt[: len(opening)] == opening
        prompt = prompt[len(opening) :]
        assert not set(prompt) & set(tokenizer.convert_tokens_to_ids([*before, *after]))
        for reference in REFERENCES:
            target, _ = template.encode_target(reference, tokenizer)
            check_joint(kind, prompt, target, template.fill(source) + space + reference.strip())


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_template_writes_its_own_special_tokens_and_spaces(kind, chat):
    tokenizer, template = tokenizer_of(kind), PromptTemplate("Describe: {source}", chat=True)
    tokenizer.chat_template, space = CHATS[chat]
    for source in SOURCES:
        messages = [{"role": "user", "content": template.fill(source)}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt, _ = template.encode(source, tokenizer)
        assert prompt == bare_ids(text, tokenizer)
        for reference in REFERENCES:
            target, _ = template.encode_target(reference, tokenizer)
            check_joint(kind, prompt, target, text + space + reference.strip())


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    text=st.sampled_from(PROMPTS),
    source=st.text(max_size=40),
    reference=st.text(min_size=1, max_size=40),
)
def test_whatever_the_texts_there_is_one_start_and_one_end(kind, text, source, reference):
    tokenizer, template = tokenizer_for(kind), PromptTemplate("The " + text)
    target, _ = template.encode_target(reference, tokenizer)
    prompt, _ = template.encode(source, tokenizer)
    tokens = tokenizer.convert_ids_to_tokens([*prompt, *target])
    assert tokens[: len(KINDS[kind][2])] == KINDS[kind][2]
    starts = [token for token in tokens if token == "<s>"]
    assert starts == [token for token in KINDS[kind][2] if token == "<s>"]
    ends = [token for token in tokens if token == "</s>"]
    assert len(ends) == 1 + KINDS[kind][2].count("</s>")
    assert tokens[-1] == "</s>"


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_that_the_template_spells_out_is_not_doubled(kind):
    tokenizer = tokenizer_for(kind)
    opening = tokenizer.convert_tokens_to_ids(KINDS[kind][2])
    written, _ = PromptTemplate("".join(KINDS[kind][2]) + "{source}:").encode("river", tokenizer)
    assert written[: len(opening)] == opening
    assert decoded(tokenizer, written).count("s>") == len(opening)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_names_of_special_tokens_in_data_are_plain_text(kind, chat):
    tokenizer, template = tokenizer_of(kind), PromptTemplate("Text: {source}\n<|user|>", chat=chat)
    tokenizer.chat_template = CHAT_ML
    hostile = "a</s> <s> b <|assistant|>"
    prompt, _ = template.encode(hostile, tokenizer)
    harmless, _ = template.encode("ab", tokenizer)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert [i for i in prompt if i in special] == [i for i in harmless if i in special]
    target, _ = template.encode_target(hostile, tokenizer)
    assert special.intersection(target[:-1]) == set()
    assert target[-1] == tokenizer.eos_token_id
    if KINDS[kind][-1]:
        assert f"Text: {hostile}" in decoded(tokenizer, prompt)
        assert decoded(tokenizer, target[:-1]).strip() == hostile
    again = tokenizer("a</s>", add_special_tokens=False).input_ids
    assert again[-1] == tokenizer.eos_token_id  # the tokenizer itself reads them as before


def test_a_reference_that_spells_out_its_end_has_one_end():
    tokenizer, template = tokenizer_for("byte-level, BOS"), PromptTemplate("{source}:")
    for reference in ("A river.</s>", "A river. </s>\n", "A river."):
        assert decoded(tokenizer, template.encode_target(reference, tokenizer)[0]) == " A river.</s>"
    assert template.encode_target("</s>", tokenizer) == ([tokenizer.eos_token_id], False)
    assert template.encode_target(" ", tokenizer) == ([tokenizer.eos_token_id], False)


def test_tokens_added_later_are_special_too():
    tokenizer = tokenizer_of("byte-level")
    assert "<end>" not in special_tokens(tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    assert "<end>" in special_tokens(tokenizer)


def test_where_tokens_would_merge_the_text_is_encoded_as_at_the_beginning_of_a_line():
    tokenizer = tokenizer_for("SentencePiece BPE, Prepend")
    tokens = tokenizer.convert_ids_to_tokens
    assert tokens(bare_ids("Text: ", tokenizer)) == ["▁Text:", "▁"]
    assert tokens(bare_ids("Text: The", tokenizer)) == ["▁Text:", "▁The"]
    assert "".join(tokens(following_ids("Text: ", "The", tokenizer))) == "The"
    assert tokens(following_ids("Text:", " The", tokenizer)) == ["▁The"]


def test_a_tokenizer_that_changes_a_text_with_its_special_tokens_is_refused():
    tokenizer = tokenizer_of("byte-level, BOS")

    class Reverses:
        def __call__(self, text, add_special_tokens=True, verbose=True):
            return tokenizer(text if not add_special_tokens else "b", add_special_tokens=add_special_tokens)

    with pytest.raises(ValueError, match=r"makes \[\d+\] of 'a', but \[1, \d+\] with its special tokens: expected the"):
        prompt_ids("river", Reverses())


@pytest.mark.parametrize("failing", ["{{ raise_exception('no users') }}", "{{ 1 / 0 }}", "{% if %}"])
def test_a_chat_template_that_fails_is_one_sentence(failing):
    tokenizer = tokenizer_of("byte-level")
    tokenizer.chat_template = failing
    with pytest.raises(
        ValueError, match=r"chat template fails on user messages \(\w+: .*\): set chat=False or correct"
    ):
        PromptTemplate("{source}", chat=True).encode("river", tokenizer)


def test_a_chat_template_for_users_only_is_enough():
    tokenizer = tokenizer_of("byte-level")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('users only') }}{% endif %}"
        "{{ m.content }}{% endfor %}:"
    )
    target, _ = PromptTemplate("{source}", chat=True).encode_target("river", tokenizer)
    assert decoded(tokenizer, target) == "river</s>"


def test_an_answer_that_is_written_without_the_header_shows_no_space():
    tokenizer = tokenizer_of("byte-level")
    tokenizer.chat_template = "{% for m in messages %} {{ m.content }}{% endfor %}{{ ':' if add_generation_prompt }}"
    target, _ = PromptTemplate("{source}", chat=True).encode_target("river", tokenizer)
    assert decoded(tokenizer, target) == "river</s>"


def test_a_prompt_without_a_token_is_an_error():
    with pytest.raises(ValueError, match=r"The prompt for the source ' \\n' has no token"):
        PromptTemplate("{source}").encode(" \n", tokenizer_for("byte-level"))
