"""A tiny model and texts to score."""

import pytest
import torch

from hsdlab.data.batches import Pair, collate_pairs
from hsdlab.testing import VOCABULARY

MAX_STEPS = 6


@pytest.fixture
def batch():
    """Prompts and texts of different lengths; one of a single token, which has no decode step, one of T tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = [(5, 3), (2, MAX_STEPS), (7, 1), (3, 4)]
    texts = [torch.randint(7, VOCABULARY, (a + b,), generator=generator).tolist() for a, b in lengths]
    return collate_pairs([Pair(text[:a], text[a:]) for text, (a, _) in zip(texts, lengths, strict=True)], 0)
