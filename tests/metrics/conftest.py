"""What the metric tests share: a tiny encoder made on the spot, and random texts."""

import random
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

WORDS = ["the", "The", "a", "cat", "dogs", "running", "runs", "quickly", "house", "Houses", "sat", "sits"]
WORDS += ["on", ",", ".", "!", "it's", "well-known", "3.5", "1,000"]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    """Save a random BERT (2 layers, width 32, at most 48 tokens) with a WordPiece vocabulary of letters."""
    folder = tmp_path_factory.mktemp("encoder")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "cat",
        *letters,
        *(f"##{c}" for c in letters),
    ]
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)  # without a maximal length
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=48,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_texts() -> tuple[list[str], list[list[str]]]:
    """Give 41 predictions with one to four references each; some texts are empty."""
    source = random.Random(0)

    def text() -> str:
        return " ".join(source.choices(WORDS, k=source.randrange(0, 25)))

    predictions = [text() for _ in range(39)]
    references = [[text() for _ in range(source.randint(1, 4))] for _ in predictions]
    # an empty prediction, and a prediction with nothing to compare with
    return [*predictions, "", "a cat"], [*references, ["the cat", "a dog sat"], ["", " "]]
