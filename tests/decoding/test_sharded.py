"""FSDP2: replay and training on weights that processes share; decoding on them is refused."""

import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from hsdlab import HSD, generate, replay
from hsdlab.decoding.families import UnsupportedModelError
from hsdlab.testing import prompts, tiny_model
from tests.decoding import sharded_step


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_replay_takes_a_sharded_model_and_decoding_does_not(group):
    ids, executed = sharded_step.batch()
    model = tiny_model(num_layers=4)
    expected = replay(model, input_ids=ids, executed=executed)
    sharded_step.shard(model)
    classes = [type(layer) for layer in model.model.layers]
    torch.testing.assert_close(replay(model, input_ids=ids, executed=executed), expected, rtol=0, atol=1e-12)
    assert [type(layer) for layer in model.model.layers] == classes
    with pytest.raises(UnsupportedModelError, match=r"shared out over processes \(FSDP\)"):
        generate(model, input_ids=prompts(1)[0], strategy=HSD(1, 0, 2), max_new_tokens=4)


@pytest.mark.slow
def test_steps_of_two_processes_are_those_of_one(tmp_path):
    """Also where the one skips a layer in its whole batch, which the other runs."""
    for world in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        command = [sys.executable, "-m", "tests.decoding.sharded_step", str(tmp_path)]
        processes = [subprocess.Popen(command, env=shared | {"RANK": str(rank)}) for rank in range(world)]
        assert [process.wait(timeout=500) for process in processes] == [0] * world
    for kind in ("plain", "skips"):
        one, two = (torch.load(tmp_path / f"{world}_{kind}.pt") for world in (1, 2))
        torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
        assert one["losses"][1] < one["losses"][0]
