"""Tiny random models on disk: Hugging Face folders, GGUF files, LoRA adapters."""

from pathlib import Path

import gguf
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<|start|>", "<|end|>"]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll")]
TOKENS = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in MERGES]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and three merges; an end-of-sequence token, no padding token."""
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(TOKENS)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[1])


def tiny_llama() -> LlamaForCausalLM:
    """Three layers of width 32, two key/value heads for four query heads, untied head, wide initial range."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    """Three layers of width 32; the head is tied to the embeddings."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(TOKENS), "n_embd": 32, "n_layer": 3, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3, bos_token_id=0, eos_token_id=1)).eval()


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Write the model and the tiny tokenizer as a Hugging Face folder."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(base: Path, model: PreTrainedModel, folder: Path, targets: list[str]) -> PeftModel:
    """Wrap the model of folder `base` with a random LoRA adapter that changes it, and write the adapter."""
    model.name_or_path = str(base)
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config).eval()
    adapted.save_pretrained(folder)
    return adapted


def save_gguf(model: LlamaForCausalLM, file: Path) -> Path:
    """Write a Llama model and the tiny tokenizer as a GGUF file in float32, as llama.cpp's converter does."""
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in SPECIAL else normal for token in TOKENS])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        for projection, count in heads.items():
            if projection in name:  # llama.cpp pairs the rotary halves: (heads, 2, half, d) -> (heads, half, 2, d)
                weight = weight.view(count, 2, -1, config.hidden_size).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
