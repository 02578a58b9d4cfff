"""What a checkpoint's generation config may bring into a command's decoding: every entry is decided."""

import json
import warnings

import pytest
import torch
from transformers import GenerationConfig

from hsdlab import FullDepth, generate, load_model
from hsdlab.errors import UserError
from hsdlab.models.generation import GENERATION, check_generate_kwargs, fixed_length, generation, greedy
from hsdlab.records.provenance import RunInfo
from tests.tiny_checkpoints import save, tiny_llama, tiny_tokenizer
from tests.tiny_runs import options, read_records, run

PROMPT = torch.tensor([[5, 9, 30, 44, 60]])

ASKED = {
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 3,
    "top_p": 0.9,
    "top_h": 0.4,
    "min_p": 0.1,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.01,
    "eta_cutoff": 0.01,
    "repetition_penalty": 3.0,
    "encoder_repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "exponential_decay_length_penalty": (1, 5.0),
    "bad_words_ids": [[token] for token in range(2, 150)],
    "sequence_bias": [[[token], -20.0] for token in range(2, 150)],
    "suppress_tokens": list(range(2, 150)),
    "begin_suppress_tokens": list(range(2, 150)),
    "forced_bos_token_id": 200,
    "forced_eos_token_id": 201,
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "watermarking_config": {"bias": 20.0, "context_width": 1},
    "min_length": 20,
    "min_new_tokens": 5,
    "max_time": 1e-9,
    "length_penalty": -5.0,
    "early_stopping": True,
    "max_new_tokens": 2,
    "max_length": 6,
    "num_beams": 3,
    "num_return_sequences": 2,
    "use_cache": False,
    "cache_implementation": "static",
    "prefill_chunk_size": 2,
    "guidance_scale": 3.0,
    "token_healing": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_scores": True,
    "output_logits": True,
    "return_dict_in_generate": True,
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "is_assistant": True,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "num_beam_groups": 2,
    "diversity_penalty": 1.0,
    "low_memory": True,
    "disable_compile": True,
}
"""Values of entries that a checkpoint might ask for, each with an effect where it has any."""


def test_the_table_names_every_entry_of_transformers():
    assert set(GENERATION) == set(vars(GenerationConfig()))
    assert all(entry.why for entry in GENERATION.values())


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", ASKED)
def test_no_entry_of_a_checkpoint_changes_the_text(name, num_beams):
    model = tiny_llama()
    given = {"max_new_tokens": 6, "num_beams": num_beams}
    expected = model.generate(PROMPT, pad_token_id=1, **given).tolist()
    model.generation_config.pad_token_id = 1
    setattr(model.generation_config, name, ASKED[name])
    if name in ("temperature", "num_return_sequences"):  # have no effect, or no meaning, without
        model.generation_config.do_sample = True
    found = generation(model, given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = generate(model, input_ids=PROMPT, strategy=FullDepth(), **found.options)
    assert output.sequences.tolist() == expected
    assert output.trace.executed.shape[1:] == (1, 3)
    assert (name in found.not_taken) == (GENERATION[name].rule != "taken" and (name, num_beams) != ("num_beams", 3))
    json.dumps(found.record())


def test_stop_tokens_and_special_tokens_are_taken():
    model = tiny_llama()
    free = model.generate(PROMPT, max_new_tokens=8, do_sample=False, pad_token_id=1)[0, 5:].tolist()
    stop = next(token for token in free[1:] if token != free[0])
    model.generation_config.update(eos_token_id=[1, stop], pad_token_id=7, stop_strings=["never"])
    found = generation(model, {"max_new_tokens": 8}, tiny_tokenizer())
    output = generate(model, input_ids=PROMPT, strategy=FullDepth(), **found.options)
    assert output.sequences[0, 5:].tolist() == free[: free.index(stop) + 1]
    taken = {"bos_token_id": 0, "eos_token_id": [1, stop], "pad_token_id": 7, "stop_strings": ["never"]}
    assert found.taken == taken
    assert found.record() == {"options": {"do_sample": False, "max_new_tokens": 8, **taken}, "not_taken": {}}


def test_what_the_user_gives_wins():
    model = tiny_llama()
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.2)
    found = generation(model, {"do_sample": True, "temperature": 0.6, "eos_token_id": None, "num_beams": 1})
    assert found.options == {
        "do_sample": True, "temperature": 0.6, "eos_token_id": None, "num_beams": 1, "top_p": 1.0,
        "repetition_penalty": 1.0,
    }  # fmt: skip
    assert found.not_taken == {"top_p": 0.9, "repetition_penalty": 1.2}
    assert found.sentence() == (
        "Decoding: sampling; from the model's generation_config: bos_token_id=0. Not taken from it: top_p=0.9, "
        "repetition_penalty=1.2; --model.generate_kwargs='{name: value}' sets such options."
    )


def test_greedy_and_fixed_length_options():
    given = {
        "do_sample": True,
        "top_p": 0.5,
        "num_beams": 4,
        "repetition_penalty": 2.0,
        "max_time": 1,
        "stop_strings": "a",
    }
    kept = {"repetition_penalty": 2.0, "do_sample": False, "num_beams": 1}
    assert greedy(given) == kept | {"max_time": 1, "stop_strings": "a"}
    assert fixed_length(given | {"max_new_tokens": 4}) == kept | {"eos_token_id": None, "stop_strings": None}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 2}, "'num_beams': give it as the parameter num_beams"),
        ({"max_length": 2}, "'max_length': give max_new_tokens instead"),
        ({"num_return_sequences": 2}, "an example has one prediction"),
        ({"do_smaple": True}, "'do_smaple', which is no option of transformers' generate: did you mean 'do_sample'"),
        ({"zzz": 1}, "which is no option of transformers' generate: the options are bad_words_ids, "),
        ({"trust_remote_code": True}, "no option of transformers' generate"),
        ({"custom_generate": "x/y"}, "no option of transformers' generate"),
        ({"guidance_scale": 2.0}, "a second pass at full depth"),
        ({"use_cache": False}, "key/value cache"),
        ({"assistant_early_exit": 2}, "assisted decoding"),
        ({"dola_layers": "low"}, "leave it out"),
        ({"stop_strings": []}, "stop_strings is []; expected a string or a list of strings"),
        ({"stop_strings": ["a", ""]}, "expected a string or a list of strings, not empty"),
        ({"stop_strings": [5]}, "expected a string or a list of strings"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 0, "do_sample": True}, "temperature"),
        ({"temperature": float("inf"), "do_sample": True}, "temperature is inf"),
        ({"top_p": 3.0, "do_sample": True}, "top_p"),
        ({"top_k": -1, "do_sample": True}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"no_repeat_ngram_size": True}, "no_repeat_ngram_size is True"),
    ],
)
def test_options_that_cannot_be_had_are_refused(given, message):
    with pytest.raises(UserError) as refusal:
        check_generate_kwargs(given)
    assert message in str(refusal.value)


def test_options_that_can_be_had_are_not_refused():
    check_generate_kwargs({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "eos_token_id": None})
    check_generate_kwargs(
        {"stop_strings": ["a"], "repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "min_length": 2}
    )
    check_generate_kwargs({"logits_processor": [], "early_stopping": True, "length_penalty": -0.5})


CHAT = {"do_sample": True, "temperature": 5.0, "top_p": 0.9, "repetition_penalty": 9.0, "max_length": 7}


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("beams", [1, 4])
def test_a_command_does_not_sample_because_the_checkpoint_does(where, beams, tmp_path, monkeypatch, capsys):
    args = [*options(tmp_path), f"--model.num_beams={beams}"]
    run(monkeypatch, "test", *args, f"--output={tmp_path / 'plain'}")
    file = tmp_path / "model" / where
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | CHAT))
    if where == "config.json":  # as models before transformers 4.25 have it
        (tmp_path / "model/generation_config.json").unlink()
    capsys.readouterr()
    run(monkeypatch, "test", *args, f"--output={tmp_path / 'asks'}", "--seed_everything=7")
    plain, asks = (
        [record["token_ids"] for record in read_records(tmp_path / name / "predictions.jsonl")]
        for name in ("plain", "asks")
    )
    assert asks == plain
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Decoding: ")]
    assert len(said) == 1
    assert "Not taken from it: " in said[0]
    assert "do_sample=True" in said[0]
    info = RunInfo.read(tmp_path / "asks/run.json")
    assert info.generation["not_taken"] == CHAT
    assert info.generation["options"]["num_beams"] == beams
    assert info.generation["options"]["do_sample"] is False
    assert info.generation["options"]["eos_token_id"] == 1
    assert RunInfo.from_json(info.to_json()) == info


@pytest.mark.parametrize("command", ["bench", "inspect"])
def test_bench_and_inspect_agree_with_test(command, tmp_path, monkeypatch):
    args = [*options(tmp_path), f"--output={tmp_path / 'out'}"]
    model = tiny_llama()
    model.generation_config.update(**CHAT, min_new_tokens=3, forced_eos_token_id=4, stop_strings=["a"])
    save(model, tmp_path / "model")
    if command == "bench":
        args += ["--strategies=[]", "--prompts=1", "--new_tokens=4", "--repeats=1"]
    else:
        args += ["--examples=2", "--text=generated"]
    run(monkeypatch, command, *args)
    info = RunInfo.read(tmp_path / "out/run.json")
    assert info.generation["not_taken"] == {**CHAT, "min_new_tokens": 3, "forced_eos_token_id": 4}
    assert info.generation["options"]["do_sample"] is False
    assert info.generation["options"]["num_beams"] == 1
    assert info.generation["options"]["repetition_penalty"] == 1.0
    assert info.generation["options"]["stop_strings"] == (None if command == "bench" else ["a"])


def test_generate_in_python_keeps_transformers_meaning(tmp_path):
    model = tiny_llama()
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=2.0)
    model, _ = load_model(save(model, tmp_path), device="cpu")
    torch.manual_seed(3)
    plain = model.generate(PROMPT, max_new_tokens=6)
    torch.manual_seed(3)
    assert torch.equal(generate(model, input_ids=PROMPT, strategy=FullDepth(), max_new_tokens=6).sequences, plain)
    assert not torch.equal(plain, model.generate(PROMPT, max_new_tokens=6, do_sample=False, repetition_penalty=1.0))
