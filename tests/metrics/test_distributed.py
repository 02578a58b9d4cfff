"""Two processes with uneven shares give what one process gives."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hsdlab.costs import Cost
from hsdlab.metrics import BLEU, ROUGE, BERTScore, Efficiency
from tests.forked import CONTEXT

pytestmark = pytest.mark.xdist_group("processes")
SHARES = {"uneven": slice(0, 13), "one_empty": slice(0, 0)}  # the share of process 1; process 0 has the rest


def costs(index: int) -> Cost:
    """Invent the costs of call number ``index``."""
    return Cost(
        executed_layers=70 * index + 31,
        decode_steps=3 * index + 2,
        computed_layers=150 * index + 9,
        computed_steps=7 * index + 4,
        num_layers=30,
        decode_s=0.1 * index + 0.3,
        decode_passes=index + 1,
        prompt_s=0.01 * index + 0.2,
        prompt_passes=1,
        flops=1e9 * index + 5e8,
        peak_cache_bytes=2**20 * (index % 7),
        new_tokens=2 * index + 1,
        late_key_values=index % 5,
        intermediate_predictions=5 * index + 1,
        intermediate_weights=640 * index,
        bytes_read=1e7 * index + 3e6,
        wall_s=0.11 * index + 0.5,
    )


def results(encoder: Path, texts: tuple[list[str], list[list[str]]], indices: list[int]) -> dict[str, torch.Tensor]:
    """Update all metrics with the given examples, one by one, and compute."""
    torch.set_num_threads(1)
    metrics = [ROUGE(use_stemmer=True), BLEU(), BERTScore(encoder=encoder)]
    efficiency = Efficiency()
    for index in indices:
        for metric in metrics:
            metric.update([texts[0][index]], [texts[1][index]])
        efficiency.update(costs(index))
    values: dict[str, torch.Tensor] = {}
    for metric in [*metrics, efficiency]:
        values.update(metric.compute())
    return values


def work(rank: int, folder: Path, encoder: Path, texts: tuple[list[str], list[list[str]]]) -> None:
    """Run one process: every share in turn, results to a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for name, share in SHARES.items():
        indices = list(range(len(texts[0])))
        mine = indices[share] if rank == 1 else [i for i in indices if i not in indices[share]]
        found[name] = results(encoder, texts, mine)
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory, encoder, random_texts) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("processes")
    mp.start_processes(work, args=(folder, encoder, random_texts), nprocs=2, start_method=CONTEXT.get_start_method())
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("share", ["uneven", pytest.param("one_empty", marks=pytest.mark.slow)])
def test_two_processes_equal_one(found, encoder, random_texts, share):
    expected = results(encoder, random_texts, list(range(len(random_texts[0]))))
    assert len(expected) == 3 + 4 + 3 + 11
    for rank in (0, 1):
        for key, value in expected.items():
            assert found[rank][share][key].item() == pytest.approx(value.item(), rel=1e-12, abs=1e-12), key
