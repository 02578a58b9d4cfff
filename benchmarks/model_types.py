"""Count the causal language models of transformers that hsdlab decodes: ``python -m benchmarks.model_types``.

For every model_type of transformers' mapping, the default config with small sizes and random weights: what
``hsdlab models check`` finds, and the logits of ``replay`` against a reference without cache that shares no code with
the engine. Each runs in a process of its own, with a limit of CPU time. Results are written as they come, and those
that are there are not made again. ``--write`` fills docs/families.md.
"""

import argparse
import json
import logging
import multiprocessing
import re
import resource
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
from hsdlab.reasons import reason
from hsdlab.reporting.markdown import markdown_table
from hsdlab.testing.model_check import CRASHED, EXACT, REFUSED, WRONG, check_model
from hsdlab.testing.reduced import reduced_model
from hsdlab.testing.tiny import prompts
from tests.reference import slow

ORDER = (EXACT, REFUSED, WRONG, CRASHED)
RESULTS = Path(__file__).parents[1] / "docs/model_types.json"
PAGE = Path(__file__).parents[1] / "docs/families.md"
LIMIT_CPU_S = 90

_ONE_GROUP = {"n_group": 1, "topk_group": 1}
RELEASED: dict[str, dict[str, Any]] = {
    "dbrx": {
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000},
        "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
    },
    "deepseek_v2": {**_ONE_GROUP, "n_routed_experts": 64, "num_experts_per_tok": 6, "first_k_dense_replace": 1},
    "dots1": {**_ONE_GROUP, "n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "granitemoehybrid": {
        "layer_types": ["attention" if layer % 10 == 5 else "mamba" for layer in range(40)],
        "num_hidden_layers": 40,
        "num_key_value_heads": 4,
    },
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 6, "num_hidden_layers": 24},
    "nemotron": {"num_key_value_heads": 8},
}
"""What the configs of released models have (DBRX, DeepSeek-V2-Lite, dots.llm1, Granite 4.0 H Tiny, LFM2-8B-A1B,
Nemotron-4), where the default of transformers describes no model."""


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
    began = time.process_time()
    try:
        config = CONFIG_MAPPING[model_type](**RELEASED.get(model_type, {}))
        if hasattr(config, "is_decoder"):  # BERT's kin, which else attend to later tokens
            config.is_decoder = True
    except Exception as error:  # of any class
        return {"result": REFUSED, "reason": f"transformers builds no default config: {reason(error)}."}
    report = check_model(config)
    found = asdict(report) | {"result": report.result, "reason": report.reason}
    if report.result == EXACT:
        difference = oracle_difference(config)
        found["from_reference"] = difference
        if not difference < 1e-4:
            found |= {
                "result": WRONG,
                "reason": f"replay differs from the reference without cache by {difference:.1g}.",
            }
    return found | {"seconds": round(time.process_time() - began, 1)}


def _child(model_type: str, answers: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_CPU_S, LIMIT_CPU_S))
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
        return here.recv()
    except EOFError:
        return {"result": CRASHED, "reason": f"its process ended, or took more than {LIMIT_CPU_S} s"}
    finally:
        process.kill()
        process.join()


REASONS = {
    r"in its KV cache|AltUp|time steps|recurrent state": "another kind of state, shared or sparse attention",
    r"encoder-decoder|cross-attention": "attention to an encoder",
    r"found no list": "no list of decoder layers (BERT and what derives from it)",
    r"builds no": "transformers builds no small model of the default config",
    r"differs from|differ from|position_ids": "the probe: another result than `replay`",
    r".*": "the probe: an error",
}
"""A part of the sentence -> how docs/families.md calls it; the first that is found."""


def summary(results: dict[str, dict[str, Any]]) -> str:
    """Compose a table of the counts, by result and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for model_type, each in results.items():
        kind = next(name for part, name in REASONS.items() if re.search(part, each["reason"])) if each["reason"] else ""
        groups.setdefault((each["result"], kind), []).append(model_type)
    of_result = sorted(groups.items(), key=lambda item: (ORDER.index(item[0][0]), -len(item[1])))
    rows = [[result, kind, str(len(found)), ", ".join(found)] for (result, kind), found in of_result]
    share = Counter(each["result"] for each in results.values())[EXACT]
    table = markdown_table(["Result", "Why", "Number", "`model_type`"], rows, align=["left", "left", "right", "left"])
    return f"Of {len(results)} model types, hsdlab decodes {share} exactly.\n\n{table}"


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
        lines = [f"{json.dumps(name)}: {json.dumps(each)}" for name, each in sorted(results.items())]
        given.results.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    if given.write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), "model_types", summary(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
