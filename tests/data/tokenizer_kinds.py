"""A tokenizer of each kind, made offline: what it puts before, after and within a text differs."""

import json
import re

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<sep>", "<|user|>", "<|assistant|>"]
CORPUS = [
    "Summarise the text below. The summary is short.",
    "The river rises in the hills and runs to the sea; Café Aromi is by the river.",
    "Text: It rains. Summary: Rain. Describe the place (12 words) in one sentence:",
    "user assistant < | > / s sep unk",
] * 3
WORDS = sorted(set(re.findall(r"\w+", " ".join(CORPUS))))
LETTERS = sorted(set("".join(CORPUS)) - {" "})
NAMES = {
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "<sep>",
    "additional_special_tokens": ["<|user|>", "<|assistant|>"],
}
UNKNOWN = {"unk_token": "<unk>"}
QUIET = {"show_progress": False, "special_tokens": SPECIAL}


def byte_level(add_prefix_space=False, pattern=None):
    """GPT-2, SmolLM2; with a pattern of its own: Llama 3, Qwen."""
    backend = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(backend, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, **QUIET))


def sentencepiece_bpe(normalised=True, scheme="first"):
    """Llama 2, Mistral: "▁" for spaces, from the normaliser (and one before each text) or the pre-tokeniser."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(**UNKNOWN, byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)  # learns within words
    options = {**QUIET, "special_tokens": SPECIAL + bytes_}
    state = json.loads(trained(backend, trainers.BpeTrainer(vocab_size=500, **options)).to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in bytes_]
    state["pre_tokenizer"] = None
    backend = Tokenizer.from_str(json.dumps(state))
    if normalised:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*spaces, *strip])
    return backend


def unigram(split=True):
    """T5, XLNet, mBART: compatibility forms, runs of spaces as one, "▁" before each word."""
    pieces = [*((token, 0.0) for token in SPECIAL), ("▁", -8.0), *((f"▁{word}", -4.0 - len(word)) for word in WORDS)]
    backend = Tokenizer(models.Unigram([*pieces, *((letter, -9.0) for letter in LETTERS)], unk_id=0))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("\n", " "), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    words = [pre_tokenizers.WhitespaceSplit()] if split else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*words, pre_tokenizers.Metaspace("▁", prepend_scheme="always")])
    backend.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    return backend


def wordpiece():
    """BERT: lower case, "##" within a word."""
    tokens = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), *(w.lower() for w in WORDS if len(w) > 1)]
    backend = Tokenizer(
        models.WordPiece({token: number for number, token in enumerate(dict.fromkeys(tokens))}, **UNKNOWN)
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def trained(backend, trainer):
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def around(template):
    """A post-processor that puts special tokens around a text."""

    def put(backend):
        ids = [(token, backend.token_to_id(token)) for token in SPECIAL]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
        return backend

    return put


def roberta(backend):
    pair = ("</s>", backend.token_to_id("</s>")), ("<s>", backend.token_to_id("<s>"))
    backend.post_processor = processors.RobertaProcessing(*pair)
    return backend


def byte_level_then_bos(backend):
    around("<s> $A")(backend)
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), backend.post_processor])
    return backend


LLAMA3 = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

KINDS = {
    "byte-level": (byte_level, None, [], [], True),
    "byte-level, BOS": (byte_level, around("<s> $A"), ["<s>"], [], True),
    "byte-level, EOS": (byte_level, around("$A </s>"), [], ["</s>"], True),
    "byte-level, BOS and EOS": (byte_level, around("<s> $A </s>"), ["<s>"], ["</s>"], True),
    "byte-level, EOS at both ends": (byte_level, around("</s> $A </s>"), ["</s>"], ["</s>"], True),
    "byte-level, RoBERTa": (byte_level, roberta, ["<s>"], ["</s>"], True),
    "byte-level, prefix space": (lambda: byte_level(add_prefix_space=True), None, [], [], True),
    "byte-level, Llama 3": (lambda: byte_level(pattern=LLAMA3), byte_level_then_bos, ["<s>"], [], True),
    "SentencePiece BPE, Prepend": (sentencepiece_bpe, around("<s> $A"), ["<s>"], [], True),
    "SentencePiece BPE, Prepend, EOS": (sentencepiece_bpe, around("<s> $A </s>"), ["<s>"], ["</s>"], True),
    "Metaspace first": (lambda: sentencepiece_bpe(False), around("<s> $A"), ["<s>"], [], True),
    "Metaspace always": (lambda: sentencepiece_bpe(False, "always"), around("<s> $A"), ["<s>"], [], True),
    "Metaspace never": (lambda: sentencepiece_bpe(False, "never"), around("<s> $A"), ["<s>"], [], True),
    "Unigram, T5": (unigram, around("$A </s>"), [], ["</s>"], False),
    "Unigram, XLNet": (lambda: unigram(split=False), around("$A <sep> </s>"), [], ["<sep>", "</s>"], False),
    "WordPiece, BERT": (wordpiece, around("<s> $A <sep>"), ["<s>"], ["<sep>"], False),
    "in Python, ByT5": (None, None, [], ["</s>"], True),
}
"""Of each kind: the backend, its post-processor, what is put before and after a text, and whether decoding gives back
every text (else the tokenizer changes it)."""


def tokenizer_of(kind):
    """Return a new tokenizer of a kind."""
    make, put, *_ = KINDS[kind]
    if make is None:
        return ByT5Tokenizer(extra_ids=0, **NAMES)
    backend = make()
    if put is not None:
        put(backend)
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **NAMES)
