"""Write CommonGen's training data with as many new concept sets again, of 4 and 5 concepts, as its test set has them.

    python -m benchmarks.longer_concept_sets    into runs/results/common_gen_longer

Three quarters of the training sets have 3 concepts, every test set 4 or 5. A new set is a training set with more of the
concepts that one of its own references mentions: "dog run park", if "Two dogs were running through the snowy park"
were a reference, may become "park snow dog run". A teacher needs no more than such a source
(configs/results/teacher_common_gen.yaml).
"""

import json
import random
import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from benchmarks.results_data import ROOT, RUNS
from hsdlab.data.batches import Example
from hsdlab.data.jsonl import read_examples
from hsdlab.data.places import resolved_folder

SOURCE = "data/common_gen"
OUTPUT = RUNS / "common_gen_longer"
MOST_CONCEPTS = 5
SEED = 0


def stems(word: str) -> Iterator[str]:
    """Yield what a word may be an inflection of, itself first.

    >>> list(stems("skis")), list(stems("running"))
    (['skis', 'ski'], ['running', 'runn', 'runne', 'run'])
    """
    yield word
    if word.endswith("ies") or word.endswith("ied"):
        yield word[:-3] + "y"
    for ending in ("s", "es", "d", "ed", "y", "ing"):
        if word.endswith(ending):
            stem = word.removesuffix(ending)
            yield stem
            if ending == "ing":
                yield stem + "e"
            if ending in ("ing", "ed", "y") and stem[-1:] == stem[-2:-1]:
                yield stem[:-1]


def mentioned(text: str, concepts: Set[str]) -> list[str]:
    """Return the concepts that a text mentions, in its order.

    >>> mentioned("Two dogs were running through the snowy park.", {"run", "snow", "park", "dog"})
    ['dog', 'run', 'snow', 'park']
    """
    words = re.findall("[a-z]+", text.lower())
    found = (next((stem for stem in stems(word) if stem in concepts), None) for word in words)
    return list(dict.fromkeys(concept for concept in found if concept is not None))


def longer(examples: Sequence[Example], taken: Set[frozenset[str]], seed: int = SEED) -> list[Example]:
    """Return new concept sets, as many as there are examples or as many as their references give.

    Args:
        examples: The training sets.
        taken: Sets that must not come about: those that a model is tested on.
        seed: Of the choice and the order of concepts.

    Returns:
        Sets of 4 or 5 concepts, none of them twice and none an example's own, each with the reference that mentions it.
    """
    generator = random.Random(seed)
    concepts = {concept for example in examples for concept in example.source.split()}
    used = set(taken) | {frozenset(example.source.split()) for example in examples}
    new: list[Example] = []
    pairs = [(example, number) for example in examples for number in range(len(example.references))]
    generator.shuffle(pairs)
    for example, number in pairs:
        own = example.source.split()
        more = [concept for concept in mentioned(example.references[number], concepts) if concept not in own]
        size = generator.randint(4, MOST_CONCEPTS) - len(own)
        if not 0 < size <= len(more):
            continue
        source = own + generator.sample(more, size)
        if frozenset(source) in used:
            continue
        used.add(frozenset(source))
        generator.shuffle(source)
        new.append(Example(f"{example.id}-longer-{number}", " ".join(source), (example.references[number],)))
        if len(new) == len(examples):
            break
    return new


def _write(path: Path, examples: Sequence[Example]) -> None:
    lines = (
        json.dumps({"id": each.id, "source": each.source, "references": each.references}, ensure_ascii=False) + "\n"
        for each in examples
    )
    path.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Write both splits; validation stays as it is."""
    train, validation, test = (
        read_examples(resolved_folder(SOURCE) / f"{split}.jsonl") for split in ("train", "validation", "test")
    )
    new = longer(train, {frozenset(example.source.split()) for example in [*validation, *test]})
    OUTPUT.mkdir(parents=True, exist_ok=True)
    _write(OUTPUT / "train.jsonl", [*train, *new])
    _write(OUTPUT / "validation.jsonl", validation)
    print(f"{OUTPUT.relative_to(ROOT)}: {len(train)} training sets and {len(new)} longer ones")


if __name__ == "__main__":
    main()
