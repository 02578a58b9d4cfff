"""Count the causal language models of transformers that hsdlab decodes: ``python -m benchmarks.model_types``.

For every model_type of transformers' mapping, the default config with small sizes and random weights: what
``hsdlab models check`` finds, and the logits of ``replay`` against a reference without cache that shares no code with
the engine. Each runs in a process of its own, with a limit of time. Results are written as they come, and those that are
there are not made again. ``--write`` fills docs/families.md.
"""

import argparse
import json
import logging
import multiprocessing
import time
import warnings
from collections import Counter
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.markers import filled
from hsdlab import replay
from hsdlab.reporting.markdown import markdown_table
from hsdlab.testing.check_model import CRASHED, EXACT, REFUSED, WRONG, check_model
from hsdlab.testing.reduced import reduced_model
from hsdlab.testing.tiny import prompts
from tests.reference import slow

RESULTS = Path(__file__).parents[1] / "docs/results/model_types.json"
PAGE = Path(__file__).parents[1] / "docs/families.md"
LIMIT_S = 180

_DOTS1 = {"n_routed_experts": 128, "n_shared_experts": 2, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 6}
RELEASED: dict[str, dict[str, Any]] = {
    "dots1": _DOTS1,
    "gemma4_assistant": {},
}
"""What the released models' configs have where the default of transformers describes no model."""


def oracle_difference(config: PreTrainedConfig) -> float:
    """How far ``replay`` of random layers is from a plain pass in which hooks undo each layer that does not run."""
    model = reduced_model(config)
    input_ids, mask = prompts(3)
    input_ids, mask = torch.cat([input_ids, input_ids.flip(1)], dim=1), torch.cat([mask, torch.ones_like(mask)], dim=1)
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    executed = torch.rand(*input_ids.shape, layers, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        got = replay(model, input_ids=input_ids, attention_mask=mask, executed=executed)[mask.bool()]
        expected = slow.masked_logits(model, input_ids, mask, executed)[mask.bool()]
    return float((got - expected).abs().max() / expected.abs().max())


def judged(model_type: str) -> dict[str, Any]:
    """Check one family."""
    began = time.monotonic()
    config = CONFIG_MAPPING[model_type](**RELEASED.get(model_type, {}))
    report = check_model(config)
    found = asdict(report) | {"result": report.result, "reason": report.reason}
    if report.result == EXACT:
        difference = oracle_difference(config)
        found["from_reference"] = difference
        if not difference < 1e-4:
            found |= {"result": WRONG, "reason": f"replay differs from the reference without cache by {difference:.1g}."}
    return found | {"seconds": round(time.monotonic() - began, 1)}


def _child(model_type: str, answers: Connection) -> None:
    try:
        answers.send(judged(model_type))
    except Exception as error:
        answers.send({"result": CRASHED, "reason": f"{type(error).__name__}: {error}"})


def in_a_process(model_type: str) -> dict[str, Any]:
    """Check one family in a process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(model_type, there))
    process.start()
    there.close()
    try:
        if not here.poll(LIMIT_S):
            return {"result": CRASHED, "reason": f"took more than {LIMIT_S} s"}
        return here.recv()
    except EOFError:
        return {"result": CRASHED, "reason": "its process ended"}
    finally:
        process.kill()
        process.join()


def summary(results: dict[str, dict[str, Any]]) -> str:
    """Compose the counts and the reasons."""
    counts = Counter(each["result"] for each in results.values())
    return markdown_table(["Result", "Families"], [[name, counts[name]] for name in (EXACT, REFUSED, WRONG, CRASHED)])


def main() -> None:
    """Check all families that have no result yet, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_types", nargs="*", help="check these, again if they have a result")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="fill docs/families.md")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    results = json.loads(given.results.read_text()) if given.results.exists() else {}
    for model_type in given.model_types or [each for each in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if each not in results]:
        found = results[model_type] = in_a_process(model_type)
        print(f"{model_type}: {found['result']} {found['reason'][:200]}", flush=True)
        given.results.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    if given.write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), "model_types", summary(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
