"""`compare` decodes each batch under all strategies before the next, in an order that rotates."""

import pytest
from transformers.models.llama.modeling_llama import LlamaMLP

import hsdlab.modules.decode
from hsdlab.errors import UserError
from hsdlab.records.comparison import Comparison
from hsdlab.runs.rotation import Rotation
from tests.tiny_runs import EXAMPLES, options, read_records, run, without_costs

HSD_1 = "{class_path: HSD, init_args: {max_exit: 2}}"
SKIPDECODE = "{class_path: SkipDecode, init_args: {min_exit: 1, max_exit: 2}}"


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    tiny = options(tmp_path / "tiny")
    return lambda subcommand, *args: run(monkeypatch, subcommand, *tiny, f"--output={tmp_path / subcommand}", *args)


@pytest.fixture
def decoded(monkeypatch):
    """The batches that are decoded, each with the class of the strategy, in order."""
    turns = []
    decode = hsdlab.modules.decode.DecodeModule._decode

    def noted(self, batch, number):
        turns.append((number, type(self._run().strategy).__name__))
        return decode(self, batch, number)

    monkeypatch.setattr(hsdlab.modules.decode.DecodeModule, "_decode", noted)
    return turns


@pytest.mark.slow
def test_the_first_strategy_of_a_batch_rotates(evaluate, decoded):
    evaluate("compare", f"--strategies=[{HSD_1}, {SKIPDECODE}]")
    names = ["FullDepth", "HSD", "SkipDecode"]
    warm_up, *turns = decoded
    assert warm_up == (0, "FullDepth")
    assert turns == [(batch, names[(batch + turn) % 3]) for batch in range(3) for turn in range(3)]


def test_the_layers_run_once_over_the_prompts_of_a_batch(evaluate, monkeypatch, tmp_path):
    lengths, forward, start = [], LlamaMLP.forward, Rotation.on_test_start
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: lengths.append(x.shape[1]) or forward(self, x))
    monkeypatch.setattr(Rotation, "on_test_start", lambda self: lengths.clear() or start(self))  # the warm-up is over
    evaluate("compare", f"--strategies=[{HSD_1}, {SKIPDECODE}]")
    comparison, batches = Comparison.read(tmp_path / "compare" / "comparison.json"), 3
    assert sum(length > 1 for length in lengths) == batches * comparison.baseline.num_layers
    costs = [row.cost for row in comparison.rows]
    assert [cost.prompt_passes for cost in costs] == [batches] * 3
    assert sum(cost.shared_prompt_passes for cost in costs) == 2 * batches


def test_each_strategy_gives_what_it_gives_alone(evaluate, tmp_path):
    evaluate("compare", f"--strategies=[{HSD_1}, {SKIPDECODE}]")
    full, hsd, _ = sorted((tmp_path / "compare" / "predictions").iterdir())
    evaluate("test", "--overwrite")
    assert without_costs(read_records(full)) == without_costs(read_records(tmp_path / "test" / "predictions.jsonl"))
    evaluate("test", "--skip=HSD", "--skip.max_exit=2", "--overwrite")
    assert without_costs(read_records(hsd)) == without_costs(read_records(tmp_path / "test" / "predictions.jsonl"))


@pytest.mark.slow
def test_a_run_goes_on_with_the_strategies_that_a_batch_lacks(evaluate, decoded, tmp_path):
    evaluate("compare", f"--strategies=[{HSD_1}]")
    _, hsd = sorted((tmp_path / "compare" / "predictions").iterdir())
    whole = without_costs(read_records(hsd))
    lines = zip(hsd.read_bytes().splitlines(keepends=True), read_records(hsd), strict=True)
    hsd.write_bytes(b"".join(line for line, record in lines if record["batch"]["number"] == 0))
    decoded.clear()
    evaluate("compare", f"--strategies=[{HSD_1}]")
    assert decoded == [(0, "FullDepth"), (1, "HSD"), (2, "HSD")]  # the first warms up
    assert without_costs(read_records(hsd)) == whole
    assert len(whole) == EXAMPLES


def test_verified_drafts_with_beams_are_refused_before_anything_is_decoded(evaluate, decoded):
    verified = "{class_path: Verified, init_args: {draft: {class_path: HSD}}}"
    with pytest.raises(UserError, match="Beam search compares all beams"):
        evaluate("compare", f"--strategies=[FullDepth, {verified}]", "--model.num_beams=2")
    assert decoded == []
