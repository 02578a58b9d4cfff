"""Records with chosen figures, for the tests of the pages that are made of records."""

from hsdlab.costs import Cost
from hsdlab.records.bench import BenchCell, BenchEnvironment, BenchResult, BenchSide, Spread
from hsdlab.records.example import ExampleRecord
from hsdlab.records.model_info import ModelInfo
from hsdlab.records.provenance import GitState, Machine, RunInfo
from hsdlab.records.strategy import StrategyConfig
from hsdlab.records.strategy_result import StrategyResult

RUN = RunInfo(
    date_utc="2031-01-02T03:04:05+00:00",
    command=("evaluate.py",),
    seed=0,
    config={"model": {"name": "m", "num_beams": 1}},
    versions={"torch": "9.9", "transformers": "8.8"},
    git=GitState("0123456789" * 4, dirty=False),
    machine=Machine("A CPU", cores=2, torch_threads=1, memory_gib=None, gpus=(), system="A system"),
    examples="e",
    weights="w",
)


def strategy_result(strategy, layers, scores, num_layers=20, step_ms=None):
    """Two examples of 4 tokens with the scores of the whole; a decode step takes a millisecond a layer by default."""
    cost = Cost(
        num_layers=num_layers,
        decode_passes=10,
        decode_steps=10,
        executed_layers=round(10 * layers),
        computed_steps=10,
        computed_layers=round(10 * layers),
        decode_s=(layers if step_ms is None else step_ms) / 100,
    )
    examples = tuple(
        ExampleRecord(
            id=letter,
            prediction="",
            references=(),
            new_tokens=4,
            average_layers=layers,
            scores=scores,
            bleu_statistics=(9,) * 10,
        )
        for letter in "ab"
    )
    return StrategyResult(repr(strategy), StrategyConfig.of(strategy.config()), num_layers, scores, cost, examples)


def bench_side(name, layers, speed_up):
    """A decode step takes 50 ms at a speed-up of 1."""
    spread = Spread(speed_up, speed_up - 0.1, speed_up + 0.1)
    step_ms = Spread(50 / speed_up, 50 / speed_up, 50 / speed_up)
    rounds = ((1.0,),)
    return BenchSide(
        name=name,
        average_layers=layers,
        decode_step_ms=step_ms,
        tokens_per_second=spread,
        speed_up=spread,
        ideal_speed_up=None,
        reached=None,
        time_over_plain=spread,
        prompt_ms=spread,
        flops_per_token=None,
        cache_mib=None,
        prompt_s=rounds,
        decode_s=rounds,
        decode_passes=((1,),),
    )


def bench_result(*sides):
    """A bench of some sides in one cell."""
    model = ModelInfo("m", "LlamaForCausalLM", "float32", "cpu", num_layers=20, parameters=1)
    environment = BenchEnvironment(1, 1, {}, None, None)
    return BenchResult(model, 50, 3, 1, environment, (BenchCell(1, 1, "float32", (8,), sides),), 1, RUN)
