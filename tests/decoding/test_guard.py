"""Every forward pass of a decode runs on the engine's cache, or the decode is an error: never a trace of no layers."""

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LogitsProcessor, LogitsProcessorList

from hsdlab import HSD, FullDepth, generate, replay
from hsdlab.decoding.families import UnsupportedModelError
from hsdlab.errors import RunError, UserError
from tests.tiny_checkpoints import tiny_llama

IDS = torch.tensor([[5, 9, 30, 44, 60]])
CALL = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 6}


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig])
def test_virtual_tokens_are_refused(config):
    model = get_peft_model(tiny_llama(), config(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    message = r"adapter around the model is (PROMPT_TUNING|PREFIX_TUNING|P_TUNING): its virtual tokens would be lost"
    with pytest.raises(UnsupportedModelError, match=message):
        generate(model, strategy=FullDepth(), **CALL)
    with pytest.raises(UnsupportedModelError, match=message), HSD().applied_to(model):
        pytest.fail("applied")


def test_prefix_tuning_around_a_model_with_a_strategy_is_an_error():
    """The strategy is applied to the model inside, so that only the guard can see it."""
    model = get_peft_model(tiny_llama(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    with HSD(num_skipped=1, min_exit=0, max_exit=1).applied_to(model.get_base_model()) as run:
        with pytest.raises(UserError):
            model.generate(**CALL)
        assert run.output is None


@pytest.mark.parametrize("config", [LoraConfig, IA3Config])
def test_other_adapters_decode(config):
    options = {"feedforward_modules": []} if config is IA3Config else {}
    model = get_peft_model(tiny_llama(), config(task_type="CAUSAL_LM", target_modules=["q_proj"], **options)).eval()
    output = generate(model, strategy=FullDepth(), **CALL)
    assert torch.equal(output.sequences, model.generate(**CALL))
    assert output.trace.average_layers == 3


def test_a_pass_beside_the_cache_is_an_error_and_leaves_no_hook():
    model = tiny_llama()

    class Beside(LogitsProcessor):
        """Runs the model by itself, as classifier-free guidance does."""

        def __call__(self, input_ids, scores):
            return scores + model(input_ids).logits[:, -1]

    with pytest.raises(RunError, match=r"Forward pass 2 of LlamaForCausalLM did not run on hsdlab's KV cache"):
        generate(model, strategy=FullDepth(), logits_processor=LogitsProcessorList([Beside()]), **CALL)
    assert not model.get_decoder()._forward_hooks
    with pytest.raises(UserError, match=r"guidance_scale=2.0: classifier-free guidance runs a second forward pass"):
        generate(model, strategy=FullDepth(), guidance_scale=2.0, **CALL)
    assert generate(model, strategy=FullDepth(), guidance_scale=1.0, **CALL).trace.average_layers == 3


ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}


def longrope(family):
    config = AutoConfig.for_model(
        family,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        original_max_position_embeddings=16,
        rope_parameters=dict(ROPE),
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **({"sliding_window": None} if family == "phi3" else {}),
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).double().eval()


@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_a_text_that_passes_the_original_context_is_refused(family, monkeypatch):
    model, ids = longrope(family), torch.arange(20, 40)[None]
    beyond = [] if family == "phi3" else [(17, 6), (20, 6)]  # from the start; Phi-3 drops the cache there too
    for prompt, new_tokens in [(10, 7), *beyond]:
        call = {"input_ids": ids[:, :prompt], "attention_mask": torch.ones(1, prompt).long()}
        output = generate(model, strategy=FullDepth(), max_new_tokens=new_tokens, **call)
        assert output.trace.average_layers == 4
        assert torch.equal(output.sequences, model.generate(max_new_tokens=new_tokens, **call))
    with pytest.raises(UserError, match=r"A prompt of 10 tokens and max_new_tokens=8 pass 16 tokens, the original"):
        generate(model, input_ids=ids[:, :10], strategy=FullDepth(), max_new_tokens=8)
    padded = torch.tensor([[0] * 6 + [1] * 14])  # longer than 16 tokens with its padding only
    with pytest.raises(UserError, match=r"A prompt of 14 tokens and max_new_tokens=4 pass 16 tokens, the original"):
        generate(model, input_ids=ids, attention_mask=padded, strategy=FullDepth(), max_new_tokens=4)
    past = DynamicCache(config=model.config)
    model(ids[:, :14], past_key_values=past)
    call = {"input_ids": ids[:, 14:17], "executed": torch.ones(1, 3, 4, dtype=torch.bool), "past": past}
    with pytest.raises(UserError, match=r"A prompt of 14 tokens and max_new_tokens=4 pass 16 tokens, the original"):
        replay(model, **call)
    if family == "phi3":  # which drops the cache there: the guard sees it, if nothing else does
        monkeypatch.setattr("hsdlab.decoding.calls._longrope_switch", lambda model: None)
        with pytest.raises(RunError, match=r"Forward pass 1 of Phi3ForCausalLM"):
            generate(model, input_ids=ids[:, :17], strategy=FullDepth(), max_new_tokens=3)
        with pytest.raises(RunError, match=r"Forward pass 8 of Phi3ForCausalLM did not run on hsdlab's"):
            generate(model, input_ids=ids[:, :10], strategy=FullDepth(), max_new_tokens=8)
