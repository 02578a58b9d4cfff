"""Tiny random encoder-decoder models on disk, with a tokenizer that ends each text, as T5's does."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "</s>", "<s>"]
TOKENS = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
_BART = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "init_std": 0.3,
}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 2}
# transformers' own `generate` fails where T5's decoder has more layers than its encoder
_GEMMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "vocab_size": len(TOKENS),
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
FAMILIES = {
    "t5": {**_T5, "decoder_start_token_id": 0},
    "mt5": {**_T5, "decoder_start_token_id": 0},
    "bart": {**_BART, "decoder_start_token_id": 1, "forced_eos_token_id": 1},
    "mbart": {**_BART, "decoder_start_token_id": 2, "forced_eos_token_id": 1},
    "marian": {**_BART, "decoder_start_token_id": 0, "forced_eos_token_id": 1},
    "pegasus": {**_BART, "decoder_start_token_id": 0, "forced_eos_token_id": 1},
    "t5gemma": {
        "encoder": {**_GEMMA, "num_hidden_layers": 2},
        "decoder": {**_GEMMA, "num_hidden_layers": 3},
        "vocab_size": len(TOKENS),
    },
}
"""Options of each family's config, by transformers' ``model_type``; 3 decoder layers each."""


def tiny_encoder_decoder(family: str = "t5") -> PreTrainedModel:
    """Make a model whose decoder's layers change its logits."""
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "vocab_size": len(TOKENS)}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(family, **{**ids, **FAMILIES[family]}))
    if family == "bart":
        model.generation_config.forced_bos_token_id = 2
    if family == "marian":
        model.generation_config.bad_words_ids = [[0]]  # as of Marian's own checkpoints
    return model.eval()


def ending_tokenizer(template: str = "$A </s>") -> PreTrainedTokenizerFast:
    """Bytes, and special tokens around each text."""
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(TOKENS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [(token, TOKENS.index(token)) for token in SPECIAL]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    names = {"pad_token": SPECIAL[0], "eos_token": SPECIAL[1], "bos_token": SPECIAL[2]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Write the model and its tokenizer as a Hugging Face folder."""
    model.save_pretrained(folder)
    ending_tokenizer().save_pretrained(folder)
    return folder
