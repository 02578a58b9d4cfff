"""CALM's ablation (arXiv 2207.07061, section 3.3.1): what a token that exits leaves behind in the layers that it skips.

    python -m benchmarks.copied_keys runs/tiny_t5/model runs/tiny_t5_1/model runs/tiny_t5_2/model

Each skipped layer either projects keys and values from the state with which the token exited, as hsdlab does, or takes
those that the exit layer made for the token (copied). A T5 decoder is computed here by hand, greedily: the engine
has no copied keys. With projected ones, the texts are compared with the engine's, text by text.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hsdlab import CALM, OracleExit, generate, load_model
from hsdlab.data import SyntheticTables
from hsdlab.metrics import ROUGE
from hsdlab.reporting.markdown import markdown_table

NEW_TOKENS = 48
CHECKED = 20  # texts that are compared with the engine's
THRESHOLD = 0.5
RULES = {"oracle": OracleExit(), f"softmax response {THRESHOLD}": CALM(THRESHOLD)}


class Decoder:
    """The decoder of a T5, one new token of each row at a time, with the keys and values of each layer in the open."""

    def __init__(self, model: Any, input_ids: Tensor, attention_mask: Tensor) -> None:
        self.model = model
        self.blocks = list(model.decoder.block)
        encoded = model.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        self.source_mask = torch.where(attention_mask.bool(), 0.0, -torch.inf)[:, None, None]  # (rows, 1, 1, source)
        cross = [block.layer[1].EncDecAttention for block in self.blocks]
        self.source = [(heads(each, each.k(encoded)), heads(each, each.v(encoded))) for each in cross]
        self.own: list[list[tuple[Tensor, Tensor]]] = [
            [] for _ in self.blocks
        ]  # by layer and token: (rows, heads, 1, d)

    def step(self, tokens: Tensor) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Run all layers for a token of each row; return their outputs, and the keys and values of the token."""
        state = self.model.shared(tokens)[:, None]  # (rows, 1, d)
        first = self.blocks[0].layer[0].SelfAttention
        length = len(self.own[0]) + 1
        bias = first.compute_bias(length, length)[:, :, -1:]  # (1, heads, 1, length)
        outputs, made = [], []
        for index, block in enumerate(self.blocks):
            own, cross, dense = block.layer
            made.append(self.project(index, state))
            keys, values = (torch.cat(each, dim=2) for each in zip(*self.own[index], made[-1], strict=True))
            state = state + attend(own.SelfAttention, own.layer_norm(state), keys, values, bias)
            of_source = attend(cross.EncDecAttention, cross.layer_norm(state), *self.source[index], self.source_mask)
            state = state + of_source
            state = state + dense.DenseReluDense(dense.layer_norm(state))
            outputs.append(state)
        return outputs, made

    def project(self, index: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """Make the keys and values of a layer from the state that arrives at it."""
        own = self.blocks[index].layer[0]
        normed = own.layer_norm(state)
        return heads(own.SelfAttention, own.SelfAttention.k(normed)), heads(
            own.SelfAttention, own.SelfAttention.v(normed)
        )

    def logits(self, state: Tensor) -> Tensor:
        """Predict from the output of any layer: (rows, vocabulary)."""
        return self.model.lm_head(self.model.decoder.final_layer_norm(state) * self.model.model_dim**-0.5)[:, 0]


def heads(attention: Any, projected: Tensor) -> Tensor:
    """Split (rows, length, heads · d) into (rows, heads, length, d)."""
    return projected.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)


def attend(attention: Any, normed: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """T5's attention, which does not scale: (rows, 1, d)."""
    scores = heads(attention, attention.q(normed)) @ keys.transpose(2, 3) + bias  # (rows, heads, 1, length)
    return attention.o((scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2))


def exit_layers(rule: str, logits: Sequence[Tensor]) -> Tensor:
    """Return the layer after which each row exits, LongTensor (rows,)."""
    stacked = torch.stack(list(logits))  # (layers, rows, vocabulary)
    if rule == "oracle":
        exits = stacked.argmax(dim=-1) == stacked[-1].argmax(dim=-1)
    else:
        best = stacked.softmax(dim=-1).topk(2, dim=-1).values
        exits = best[..., 0] - best[..., 1] >= THRESHOLD
        exits[-1] = True
    return exits.long().argmax(dim=0)


def decode(model: Any, batch: dict[str, Tensor], rule: str, copied: bool) -> tuple[Tensor, float]:
    """Decode greedily; return the new tokens (rows, T), padded, and the average depth."""
    decoder = Decoder(model, **batch)
    rows, end, pad = len(batch["input_ids"]), model.config.eos_token_id, model.config.pad_token_id
    every = torch.arange(rows)
    tokens, live = torch.full((rows,), model.generation_config.decoder_start_token_id), torch.ones(rows).bool()
    found, depth, steps = [], 0, 0
    for position in range(NEW_TOKENS):
        outputs, made = decoder.step(tokens)
        predicted = [decoder.logits(each) for each in outputs]
        last = torch.full((rows,), len(outputs) - 1)
        exits = last if position == 0 else exit_layers(rule, predicted)  # the prompt's pass runs all layers
        state = torch.stack(outputs)[exits, every]  # (rows, 1, d)
        for index, own in enumerate(decoder.own):
            skipped = (exits < index)[:, None, None, None]
            keys = torch.stack([each for each, _ in made])[exits, every]  # (rows, heads, 1, d)
            values = torch.stack([each for _, each in made])[exits, every]
            instead = (keys, values) if copied else decoder.project(index, state)
            own.append(tuple(torch.where(skipped, new, old) for new, old in zip(instead, made[index], strict=True)))
        if position:
            depth, steps = depth + int((exits + 1)[live].sum()), steps + int(live.sum())
        tokens = torch.stack(predicted)[exits, every].argmax(dim=-1).masked_fill(~live, pad)
        found.append(tokens)
        live = live & (tokens != end)
        if not live.any():
            break
    return torch.stack(found, dim=1), depth / max(steps, 1)


@torch.inference_mode()
def measured(folder: str, examples: int) -> list[list[Any]]:
    """Decode the test split with one model; return a row for each exit rule."""
    model, tokenizer = load_model(folder, device="cpu")
    chosen = SyntheticTables(limit=examples).examples("test")
    batch = dict(tokenizer([each.source for each in chosen], return_tensors="pt", padding=True))
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    rows = []
    for rule, strategy in RULES.items():
        scores, depths = [], []
        for copied in (False, True):
            ids, depth = decode(model, batch, rule, copied)
            if not copied:
                check_against_engine(model, batch, strategy, ids)
            texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
            rouge = ROUGE()
            rouge.update(texts, [list(each.references) for each in chosen])
            scores.append(f"{float(rouge.compute()['rougeL']):.4f}")
            depths.append(f"{depth:.2f}")
        full = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)[:, 1:]
        rouge = ROUGE()
        texts = tokenizer.batch_decode(full, skip_special_tokens=True)
        rouge.update(texts, [list(each.references) for each in chosen])
        rows.append(
            [folder, rule, f"{float(rouge.compute()['rougeL']):.4f}", scores[0], depths[0], scores[1], depths[1]]
        )
    return rows


def check_against_engine(model: Any, batch: dict[str, Tensor], strategy: Any, ids: Tensor) -> None:
    """Refuse a program that decodes other texts than the engine does."""
    some = {name: each[:CHECKED] for name, each in batch.items()}
    output = generate(model, **some, strategy=strategy, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)
    expected = output.sequences[:, output.trace.prompt_length :]
    if not torch.equal(ids[:CHECKED, : expected.shape[1]], expected):
        raise RuntimeError(f"{strategy}: the engine decodes other texts; the program above is wrong.")


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.copied_keys", description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--examples", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    heading = ["Model", "Exit", "Full depth", "Projected", "Depth", "Copied", "Depth"]
    rows = [row for folder in given.models for row in measured(folder, given.examples)]
    print(markdown_table(heading, rows))


if __name__ == "__main__":
    main()
