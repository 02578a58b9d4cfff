"""``generate`` and ``applied_to``: what they return, what they refuse, and that they take transformers' own options."""

import gc
import weakref

import pytest
import torch
import transformers
from transformers import AutoConfig, DynamicCache, GenerationConfig

from hsdlab import CALM, HSD, FullDepth, ScheduledStrategy, SkipDecode, SkipStrategy, generate
from hsdlab.decoding import UnsupportedModelError, active_run
from hsdlab.decoding.cache import SkipCache
from hsdlab.decoding.families import decoder_parts
from hsdlab.testing import prompts, tiny_model
from tests.strategies_for_tests import Changing


@pytest.fixture
def call():
    input_ids, mask = prompts(3)
    return {"input_ids": input_ids, "attention_mask": mask, "max_new_tokens": 6, "eos_token_id": None}


def test_output_of_greedy_decoding(tiny, call):
    output = generate(tiny(), strategy=HSD(1, 0, 3), **call)
    assert output.sequences.shape == (3, 11)
    assert output.sequences_scores is None
    assert output.scores is None
    assert output.trace.executed.shape == (5, 3, 6)
    assert output.trace.executed.dtype == torch.bool
    assert output.trace.live.all()
    assert output.timing.decode_passes == 5
    assert output.timing.prompt_s > 0
    assert output.timing.decode_s > 0


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_scores_are_transformers_own(tiny, call, options):
    output = generate(tiny(), strategy=FullDepth(), output_scores=True, **call, **options)
    plain = tiny().generate(**call, **options, output_scores=True, return_dict_in_generate=True)
    assert torch.equal(output.sequences, plain.sequences)
    assert len(output.scores) == len(plain.scores)
    assert all(torch.equal(a, b) for a, b in zip(output.scores, plain.scores, strict=True))
    if options:
        assert torch.equal(output.sequences_scores, plain.sequences_scores)
        assert output.trace.live.shape[1] == 3 * options.get("num_return_sequences", 1)


def test_scores_of_beams_come_without_asking(tiny, call):
    output = generate(tiny(), strategy=FullDepth(), num_beams=3, **call)
    assert output.sequences_scores.shape == (3,)
    assert output.scores is None


def test_options_may_come_as_a_generation_config(tiny, call):
    config = GenerationConfig(max_new_tokens=4, num_beams=3, pad_token_id=0)
    output = generate(
        tiny(),
        input_ids=call["input_ids"],
        attention_mask=call["attention_mask"],
        strategy=HSD(),
        generation_config=config,
    )
    direct = generate(tiny(), strategy=HSD(), num_beams=3, **{**call, "max_new_tokens": 4})
    assert torch.equal(output.sequences, direct.sequences)
    torch.testing.assert_close(output.sequences_scores, direct.sequences_scores)
    assert config.output_scores is not True  # the caller's object is left alone


def test_max_length_minus_the_prompt_is_t(tiny, call):
    call["max_length"] = call.pop("max_new_tokens") + 5
    short = generate(tiny(), strategy=SkipDecode(0, 6), **call)
    assert short.trace.depths[:, 0].tolist() == [6, 6, 5, 4, 3]  # T = 6; {0} ∪ top l(t), l = 6 5 4 3 2


def test_end_of_sequence_ends_a_row_and_is_not_an_input(tiny, call):
    free = generate(tiny(), strategy=FullDepth(), **call)
    new = free.sequences[0, 5:].tolist()
    last = next(i for i in range(1, 6) if new[i] not in new[:i])  # the first row will end at this new token
    output = generate(tiny(), strategy=FullDepth(), **{**call, "eos_token_id": new[last], "pad_token_id": 0})
    steps = len(output.trace.live)
    assert output.trace.live[:, 0].tolist() == [step < last for step in range(steps)]
    assert not output.trace.executed[last:, 0].any()
    assert output.trace.mask(5)[0, 5 + last :].all()  # true where nothing ran
    assert output.trace.average_layers == 6.0


def test_one_new_token_has_no_decode_step(tiny, call):
    output = generate(tiny(), strategy=HSD(), **{**call, "max_new_tokens": 1})
    assert output.trace.executed.shape == (0, 3, 6)
    assert output.trace.average_layers != output.trace.average_layers  # not a number
    assert output.trace.compute_layers != output.trace.compute_layers
    assert output.trace.mask(5).shape == (3, 6, 6)
    assert output.timing.decode_s == 0
    assert output.timing.decode_passes == 0


def test_compute_layers_counts_the_beams_that_were_not_returned(tiny, call):
    output = generate(tiny(), strategy=CALM(0.5), num_beams=4, **call)
    assert output.trace.compute_steps == 12 * 5
    assert output.trace.compute_layers != output.trace.average_layers
    uniform = generate(tiny(), strategy=HSD(1, 0, 3), num_beams=4, **call)
    assert uniform.trace.compute_layers == pytest.approx(uniform.trace.average_layers)


def test_shrinking_sets_fill_nothing_and_free_what_no_step_needs(tiny, call):
    full = generate(tiny(), strategy=FullDepth(), **call)
    shrinking = generate(tiny(), strategy=SkipDecode(1, 2), **call)
    changing = generate(tiny(), strategy=Changing(), **call)
    assert shrinking.trace.filled == 0
    assert changing.trace.filled > 0
    # llama: 2 key/value heads of 8 in float64, keys and values, 3 rows; the last pass holds 10 tokens in 6 layers
    assert full.cache_bytes == 3 * 6 * 10 * 2 * 2 * 8 * 8
    assert shrinking.cache_bytes == 3 * 6 * 5 * 2 * 2 * 8 * 8  # after the prompt, 3 of 6 layers are kept


def test_queries_of_waiting_tokens_are_not_computed(tiny, call):
    model = tiny()
    seen = []
    hooks = [
        layer.self_attn.q_proj.register_forward_hook(lambda m, a, out: seen.append(out.stride(0)))
        for layer in model.model.layers
    ]
    output = generate(model, strategy=Changing(), **call)
    for hook in hooks:
        hook.remove()
    computed = sum(stride != 0 for stride in seen)
    assert output.trace.filled > 0
    assert computed == 6 + int(output.trace.executed[:, 0].sum())  # the prompt's layers and each executed one
    assert len(seen) > computed


def test_applied_to_serves_any_code_that_calls_generate(tiny, call):
    model = tiny()
    with HSD(1, 0, 3).applied_to(model, max_new_tokens=7) as run:
        with pytest.raises(RuntimeError, match="no trace"):
            _ = run.trace
        sequences = model.generate(call["input_ids"], attention_mask=call["attention_mask"], eos_token_id=None)
        assert sequences.shape == (3, 12)
        assert len(run.trace.live) == 6
        raw = model.generate(**call, num_beams=2, return_dict_in_generate=True)
        assert raw.beam_indices.shape == (3, 6)
        assert len(run.trace.live) == 5
    assert "generate" not in vars(model)


def test_teacher_forced_passes_stay_at_full_depth(tiny, call):
    model = tiny()
    before = model(call["input_ids"]).logits
    with SkipDecode(0, 1).applied_to(model):
        cache = DynamicCache(config=model.config)
        assert torch.equal(model(call["input_ids"]).logits, before)
        stepwise = [model(call["input_ids"][:, i : i + 1], past_key_values=cache).logits for i in range(5)]
    torch.testing.assert_close(torch.cat(stepwise, dim=1), before)


def test_one_strategy_at_a_time(tiny, call):
    model = tiny()
    with HSD().applied_to(model):
        assert isinstance(active_run(model).strategy, HSD)
        with pytest.raises(ValueError, match=r"HSD is already applied to this model; .* SkipDecode"):
            generate(model, strategy=SkipDecode(1, 2), **call)
    assert active_run(model) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens.* 0"),
        ({"max_new_tokens": None, "max_length": 5}, "max_length minus the prompt's 5 tokens is 0"),
        (
            {"max_new_tokens": 60},
            "prompt of 5 tokens and max_new_tokens=60 exceed this model's context of 64",
        ),
        ({"use_cache": False}, "use_cache=False"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"past_key_values": DynamicCache()}, "pre-filled cache"),
        ({"prompt_lookup_num_tokens": 3}, "assisted decoding"),
        ({"assistant_early_exit": 2}, "assisted decoding"),
        ({"prefill_chunk_size": 2}, "in chunks"),
        ({"stop_strings": ["x"]}, "stop_strings"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, r"input_ids: got \(2, 0\)"),
        ({"output_logits": True}, r"output_logits=True: DecodeOutput .* inside `with strategy\.applied_to\(model\):`"),
        ({"output_hidden_states": True}, "output_hidden_states=True: DecodeOutput"),
        ({"output_attentions": True}, "output_attentions=True: DecodeOutput"),
        ({"input_ids": [[1, 2]]}, "input_ids: got list"),
        ({"attention_mask": torch.ones(3, 4)}, "attention_mask: got shape"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 0]] * 3)}, "left padding"),
    ],
)
def test_bad_calls_are_refused(tiny, call, options, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny(), strategy=HSD(), **{**call, **options})
    assert "generate" not in vars(tiny())


def test_t_must_be_known(tiny, call):
    del call["max_new_tokens"]
    with pytest.raises(ValueError, match="max_new_tokens: not given"):
        generate(tiny(), strategy=HSD(), **call)


class Layers(ScheduledStrategy):
    def __init__(self, layers):
        self.layers = layers

    def layers_at(self, step, num_layers, max_steps):
        return self.layers


class Plan(SkipStrategy):
    def __init__(self, answer):
        self.answer = answer

    def plan(self, state):
        return self.answer


class Exit(CALM):
    def should_exit(self, state):
        return torch.zeros(2)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Layers([0, 6]), r"Layers runs layers \[6\] in step 0; this model has layers 0 to 5"),
        (Layers([-1]), r"\[-1\]"),
        (Layers([]), "Layers runs no layer in step 0"),
        (
            Plan(torch.ones(3, 5, dtype=torch.bool)),
            r"shape \(3, 5\).* expected a BoolTensor of shape \(3, 6\)",
        ),
        (Plan(torch.ones(3, 6)), "float32 tensor"),
        (Plan(None), "a NoneType"),
        (Plan(torch.tensor([[True] * 6, [False] * 6, [True] * 6])), r"no layer for sequences \[1\] in step 0"),
        (Exit(), r"Exit.should_exit returned a torch.float32 tensor of shape \(2,\); expected a BoolTensor"),
        (HSD(max_exit=7), "max_exit=7 is beyond this model's 6 layers"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bad_answers_of_a_strategy_are_refused(tiny, call, strategy, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny(), strategy=strategy, **call)


def test_a_setting_beyond_the_model_is_refused_before_anything_is_decoded(tiny):
    with pytest.raises(ValueError, match="beyond this model"), HSD(max_exit=7).applied_to(tiny()):
        pass


def test_models_that_read_no_text_are_refused(call):
    config = AutoConfig.for_model(
        "whisper", vocab_size=64, d_model=24, encoder_layers=1, decoder_layers=1, pad_token_id=0, bos_token_id=1
    )
    from transformers import WhisperForConditionalGeneration

    with pytest.raises(UnsupportedModelError, match="reads input_features; hsdlab decodes models that read text"):
        generate(WhisperForConditionalGeneration(config), strategy=FullDepth(), **call)
    with pytest.raises(UnsupportedModelError, match="Got a Linear"):
        generate(torch.nn.Linear(2, 2), strategy=FullDepth(), **call)


def test_a_model_whose_own_default_is_no_cache_is_decoded_on_one(call):
    """MPT's configs say so; a call that says so is refused."""
    model = tiny_model()
    model.generation_config.use_cache = False
    assert torch.equal(generate(model, strategy=FullDepth(), **call).sequences, model.generate(**call))
    for options in ({"use_cache": False}, {"generation_config": GenerationConfig(use_cache=False)}):
        with pytest.raises(ValueError, match="use_cache=False"):
            generate(model, strategy=FullDepth(), **call, **options)


def test_models_whose_cache_or_layers_serve_twice_are_refused(call):
    with pytest.raises(UnsupportedModelError, match="cross-attention to an encoder that is no part of it"):
        generate(tiny_model("gpt2", add_cross_attention=True), strategy=FullDepth(), **call)
    model = tiny_model()
    model.model.layers[3] = model.model.layers[1]
    with pytest.raises(UnsupportedModelError, match="uses one layer several times"):
        generate(model, strategy=FullDepth(), **call)


def test_a_peft_model_is_decoded_through_its_adapter(call):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with torch.no_grad():
        wrapped = generate(model, strategy=Changing(), **call, output_scores=True)
        merged = generate(model.merge_and_unload(), strategy=Changing(), **call, output_scores=True)
    torch.testing.assert_close(torch.stack(wrapped.scores), torch.stack(merged.scores), rtol=1e-4, atol=1e-4)


def test_an_option_set_to_none_is_switched_off(tiny, call):
    model = tiny_model(eos_token_id=3)
    model.generation_config.eos_token_id = list(range(1, 64))  # any token ends
    assert generate(model, strategy=FullDepth(), **call).sequences.shape == (3, 11)  # eos_token_id=None
    del call["eos_token_id"]
    assert generate(model, strategy=FullDepth(), **call).sequences.shape == (3, 6)


def test_says_nothing_about_its_own_options(tiny, call, caplog):
    transformers.logging.set_verbosity_warning()
    try:
        with caplog.at_level("WARNING", logger="transformers"), HSD().applied_to(tiny()):
            tiny().generate(**call, num_beams=2, output_scores=True, return_dict_in_generate=True)
        generate(tiny(), strategy=HSD(), **call, num_beams=2)
    finally:
        transformers.logging.set_verbosity_error()
    assert [record.message for record in caplog.records if "flags" in record.message] == []


def test_the_heads_rows_for_some_tokens_are_those_of_the_whole_head(family_model):
    model = tiny_model(family_model.config.model_type)
    parts = decoder_parts(model)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 32, dtype=torch.float64, generator=generator)
    tokens = torch.tensor([[1, 5], [63, 0], [7, 7]])
    with torch.no_grad():
        if parts.head.bias is not None:  # as made, it is 0
            parts.head.bias.copy_(torch.randn(64, dtype=torch.float64, generator=generator))
        torch.testing.assert_close(parts.token_logits(hidden, tokens), parts.logits(hidden).gather(1, tokens))


@pytest.mark.parametrize("strategy", [FullDepth(), HSD(1, 0, 2), CALM()], ids=repr)
def test_keys_and_values_are_freed_with_the_decode(strategy, monkeypatch):
    """Without Python's garbage collector: a cache in a circle of references would wait for it."""
    made = []
    begin = SkipCache.__init__

    def noted(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        made.append(weakref.ref(self))

    monkeypatch.setattr(SkipCache, "__init__", noted)
    input_ids, mask = prompts(3)
    gc.disable()
    try:
        generate(
            tiny_model(), input_ids=input_ids, attention_mask=mask, strategy=strategy, max_new_tokens=4, num_beams=2
        )
        alive = [cache() for cache in made]
    finally:
        gc.enable()
    assert alive == [None]
