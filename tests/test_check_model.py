"""`hsdlab models check`: small models of real configs keep their mechanisms, decode exactly, or are refused."""

import json
import sys

import pytest
import torch
from transformers import AutoConfig, GraniteMoeHybridConfig

from benchmarks import model_types
from hsdlab import replay
from hsdlab.cli.commands import main
from hsdlab.decoding.families import decoder_parts
from hsdlab.errors import UserError
from hsdlab.models.load import model_config
from hsdlab.testing.model_check import CRASHED, EXACT, IN_SUITE, REFUSED, WRONG, check_model
from hsdlab.testing.reduced import HEADS, reduced_config, reduced_model
from hsdlab.testing.tiny import WINDOW

_LATENT = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
RELEASED = {
    "BLOOM 560M": ("bloom", {"hidden_size": 1024, "n_layer": 24, "n_head": 16}),
    "Command R7B": (
        "cohere2",
        {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "logit_scale": 0.25,
        },
    ),
    "DeepSeek V3": (
        "deepseek_v3",
        {
            **_LATENT,
            "hidden_size": 7168,
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "n_group": 8,
            "topk_group": 4,
            "first_k_dense_replace": 3,
            "routed_scaling_factor": 2.5,
        },
    ),
    "Falcon 40B": (
        "falcon",
        {
            "hidden_size": 8192,
            "num_hidden_layers": 60,
            "num_attention_heads": 128,
            "num_kv_heads": 8,
            "new_decoder_architecture": True,
        },
    ),
    "Gemma 2 2B": (
        "gemma2",
        {
            "hidden_size": 2304,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 256,
        },
    ),
    "Gemma 3 4B": (
        "gemma3_text",
        {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": 1024,
            "query_pre_attn_scalar": 256,
        },
    ),
    "GPT-OSS 20B": (
        "gpt_oss",
        {
            "hidden_size": 2880,
            "num_hidden_layers": 24,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "sliding_window": 128,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
        },
    ),
    "Granite 3.0 8B": (
        "granite",
        {
            "hidden_size": 4096,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0078125,
            "logits_scaling": 16.0,
        },
    ),
    "Mistral 7B 0.1": (
        "mistral",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
    ),
    "MPT 7B": ("mpt", {"d_model": 4096, "n_layers": 32, "n_heads": 32, "attn_config": {"alibi": True}}),
    "OLMo 3 7B": (
        "olmo3",
        {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "sliding_window": 4096,
        },
    ),
    "Phi-4 mini": (
        "phi3",
        {
            "hidden_size": 3072,
            "num_hidden_layers": 32,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "partial_rotary_factor": 0.75,
        },
    ),
    "Qwen3 30B A3B": (
        "qwen3_moe",
        {
            "hidden_size": 2048,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
    ),
    "SmolLM3 3B": (
        "smollm3",
        {
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "no_rope_layer_interval": 4,
        },
    ),
    "StableLM 2 12B": (
        "stablelm",
        {
            "hidden_size": 5120,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "partial_rotary_factor": 0.25,
            "qk_layernorm": True,
            "use_parallel_residual": True,
        },
    ),
}
"""Released models: what their configs say of layers, windows, heads, experts and scales."""

IN_EVERY_RUN = ["Gemma 3 4B"]
NAMES = [name if name in IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.slow) for name in RELEASED]


def config_of(name):
    model_type, entries = RELEASED[name]
    return AutoConfig.for_model(model_type, **entries)


@pytest.mark.parametrize("name", NAMES)
def test_the_config_of_a_released_model_decodes_exactly(name):
    report = check_model(config_of(name))
    assert report.result == EXACT
    assert report.proven
    assert report.reason == ""
    assert report.idle == ()
    results = {trial.what: trial.result for trial in report.trials}
    drafts, compiled = results.pop("Verified drafts"), results.pop("Compiled decode steps")
    assert set(results.values()) == {EXACT}
    assert drafts == (REFUSED if name == "BLOOM 560M" else EXACT)
    assert compiled == (IN_SUITE if name == "Mistral 7B 0.1" else REFUSED)


def test_a_reduced_config_keeps_the_mechanisms():
    gemma = reduced_config(config_of("Gemma 3 4B"))
    assert gemma.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    assert (gemma.sliding_window, gemma.num_attention_heads, gemma.num_key_value_heads) == (WINDOW, HEADS, 2)
    assert gemma.rope_parameters["sliding_attention"] != gemma.rope_parameters["full_attention"]
    cohere = reduced_config(config_of("Command R7B"))
    assert cohere.layer_types[:4] == ["sliding_attention"] * 3 + ["full_attention"]
    assert cohere.logit_scale == 0.25
    deepseek = reduced_config(config_of("DeepSeek V3"))
    assert 0 < deepseek.first_k_dense_replace < deepseek.num_hidden_layers
    assert (deepseek.n_routed_experts, deepseek.n_group, deepseek.topk_group) == (4, 2, 1)
    smol = reduced_config(config_of("SmolLM3 3B"))
    assert smol.no_rope_layers == [1, 1, 1, 0, 1, 1]
    assert reduced_config(config_of("BLOOM 560M")).n_layer == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "what", "expected"),
    [
        ("beam", "Prompt schedules", EXACT),  # an argument [rows, 1, tokens, 1], of queries alone
        ("gemma3", "Prompt schedules", EXACT),  # a multimodal model, which gives its decoder a dict of masks
        ("gemma4_text", "Attention and MLP apart", REFUSED),  # a third part of the layer adds to the hidden state
        ("gpt_neo", "Prompt schedules", REFUSED),  # makes its mask from the length of the pass
        ("llama4_text", "Schedules that shrink", EXACT),  # get_decoder() gives the model itself
        ("mbart", "Early exit", EXACT),
    ],
)
def test_what_other_families_do_otherwise_is_exact_or_refused(model_type, what, expected):
    report = check_model(AutoConfig.for_model(model_type))
    assert report.result == EXACT
    assert {trial.what: trial.result for trial in report.trials}[what] == expected


def test_what_is_refused_says_why_in_a_sentence():
    report = check_model(AutoConfig.for_model("openai-gpt"))  # which has no KV cache
    assert report.result == REFUSED
    assert [trial.result for trial in report.trials] == [REFUSED]
    assert report.reason.endswith(".")
    broken = check_model(AutoConfig.for_model("dots1"))  # transformers' default has no number of experts
    assert broken.reason.startswith("transformers builds no small dots1 model from this config: TypeError: ")


def test_a_wrong_decode_is_found(monkeypatch):
    """The definition is off by a thousandth."""
    monkeypatch.setattr("hsdlab.testing.laws.replay", lambda *args, **kwargs: replay(*args, **kwargs) * 1.001)
    report = check_model(config_of("Gemma 3 4B"))
    assert report.result == WRONG
    assert "differ from replay's" in report.reason


def test_a_small_model_has_no_embedding_for_real_tokens():
    model = reduced_model(config_of("Mistral 7B 0.1"))
    assert decoder_parts(model).vocabulary_size == 64
    assert model.dtype == torch.float32
    assert sum(weight.numel() for weight in model.parameters()) < 1e6


def test_the_page_counts_what_was_found_and_nothing_was_wrong():
    results = json.loads(model_types.RESULTS.read_text(encoding="utf-8"))
    assert not {WRONG, CRASHED} & {each["result"] for each in results.values()}
    assert model_types.summary(results) in model_types.PAGE.read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """A model's folder without weights."""
    AutoConfig.for_model("openai-gpt", architectures=["OpenAIGPTLMHeadModel"]).save_pretrained(tmp_path)
    return tmp_path


def test_the_command_ends_with_one_sentence_and_1_where_the_model_is_refused(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hsdlab"])
    with pytest.raises(SystemExit) as end:
        main(["models", "check", str(folder)])
    assert end.value.code == 1
    *_, last = capsys.readouterr().out.split(f"{folder}: ")
    assert last.startswith("hsdlab does not decode it. OpenAIGPTLMHeadModel (openai-gpt) is not a known")


def test_the_command_needs_a_config(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hsdlab"])
    with pytest.raises(SystemExit) as end:
        main(["models", "check", str(tmp_path / "none")])
    assert end.value.code == "error: " + f"no model folder or .gguf file at {tmp_path / 'none'}"
    with pytest.raises(UserError, match="encoder-decoder"):
        model_config(listener(tmp_path))


def listener(folder):
    AutoConfig.for_model("whisper").save_pretrained(folder)
    return folder


def test_a_model_that_transformers_itself_cannot_decode_is_refused():
    """Without any attention, transformers finds no length of the cache of this model."""
    report = check_model(GraniteMoeHybridConfig())
    assert report.result == REFUSED
    assert report.reason.startswith("transformers' own generate fails: ValueError: `get_seq_length`")
