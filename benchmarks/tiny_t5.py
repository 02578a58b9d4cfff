"""The small T5 of hsdlab-adapters: its random start, and its folder in the distribution.

    python -m benchmarks.tiny_t5 start runs/tiny_t5_start
    python train.py fit --config experiment/tiny_t5
    python -m benchmarks.tiny_t5 publish runs/tiny_t5/model

`start` trains the tokenizer on the texts of `SyntheticTables` and writes a T5 of random weights, with 8 layers in the
encoder and in the decoder, as CALM's (arXiv 2207.07061). `publish` stores the trained weights in float16.
"""

import argparse
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from hsdlab import load_model
from hsdlab.data import SyntheticTables

VOCABULARY = 320
PUBLISHED = Path("adapters/hsdlab_adapters/t5_tiny_tables")
CARD = """\
---
library_name: transformers
---

# embedded:t5-tiny-tables

A T5 of {parameters:,} weights ({size_mb:.1f} MB in float16): 8 encoder and 8 decoder layers of width 64. It writes a
text from facts about invented places, and can do nothing else.

- Load: `load_model("embedded:t5-tiny-tables")`
- Start: random weights (`python -m benchmarks.tiny_t5 start runs/tiny_t5_start`)
- Data: `SyntheticTables` of hsdlab, which a program makes; 5,000 examples, no licence needed.
- Command: `python train.py fit --config experiment/tiny_t5`, float32, one thread of a CPU. Each layer's output is
  trained to predict the next token, with CALM's weights (arXiv 2207.07061).
- Licence: Apache-2.0, as hsdlab.
"""
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer on the training split; it ends each text with </s>, as T5's does."""
    backend = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace("▁", prepend_scheme="always"), pre_tokenizers.Punctuation()]
    )
    backend.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    examples = SyntheticTables().examples("train")
    texts = [text for example in examples for text in (example.source, *example.references)]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL.values()), show_progress=False)
    backend.train_from_iterator(texts, trainer)
    end = SPECIAL["eos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, backend.token_to_id(end))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, padding_side="right", **SPECIAL
    )


def start(folder: Path, seed: int) -> None:
    """Write the random model and its tokenizer."""
    made = tokenizer()
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(made),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=8,
        num_decoder_layers=8,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="relu",
        pad_token_id=made.pad_token_id,
        eos_token_id=made.eos_token_id,
        decoder_start_token_id=made.pad_token_id,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    made.save_pretrained(folder)


def publish(trained: Path) -> None:
    """Store the trained model in float16 in the distribution."""
    model, made = load_model(trained, device="cpu")
    shutil.rmtree(PUBLISHED, ignore_errors=True)
    model.half().save_pretrained(PUBLISHED)
    made.save_pretrained(PUBLISHED)
    size_mb = (PUBLISHED / "model.safetensors").stat().st_size / 1e6
    (PUBLISHED / "README.md").write_text(CARD.format(parameters=model.num_parameters(), size_mb=size_mb))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiny_t5", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    starts = commands.add_parser("start")
    starts.add_argument("folder", type=Path)
    starts.add_argument("--seed", type=int, default=0)
    commands.add_parser("publish").add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.command == "start":
        start(given.folder, given.seed)
    else:
        publish(given.folder)


if __name__ == "__main__":
    main()
