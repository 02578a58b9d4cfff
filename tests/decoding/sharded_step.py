"""Training steps of a tiny model that processes share by FSDP2: `python -m tests.decoding.sharded_step FOLDER`.

Started once a process. The first one writes the losses and the weights after the steps. A process that is alone
(WORLD_SIZE=1) trains the whole model on the whole batch.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hsdlab import replay
from hsdlab.decoding.families import decoder_parts
from hsdlab.testing import prompts, tiny_model

STEPS = 2


def shard(model):
    """Share out the weights of each layer, and those outside of the layers."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in (*decoder_parts(model).layers, model):
        fully_shard(module, mesh=mesh)


def batch():
    """Four texts. The first half skips layer 1 in all tokens, the second layer 2 in the last two."""
    ids = torch.cat([prompts(1, seed=seed)[0] for seed in range(4)])
    executed = torch.ones(*ids.shape, 4, dtype=torch.bool)
    executed[:2, :, 1] = False
    executed[2:, -2:, 2] = False
    return ids, executed


def loss_of(model, skips):
    """Of this process's share of the batch."""
    ids, executed = (each.chunk(dist.get_world_size())[dist.get_rank()] for each in batch())
    logits = replay(model, input_ids=ids, executed=executed) if skips else model(input_ids=ids).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def main(folder):
    dist.init_process_group("gloo")
    for skips in (False, True):
        model = tiny_model(num_layers=4, dtype=torch.float32).train()
        if dist.get_world_size() > 1:
            shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            losses.append(loss_of(model, skips))
            losses[-1].backward()
            optimizer.step()
        mean = torch.stack(losses).detach()
        dist.all_reduce(mean)
        weights = {
            name: weight.full_tensor() if isinstance(weight, DTensor) else weight
            for name, weight in model.state_dict().items()
        }
        if dist.get_rank() == 0:
            found = {"losses": mean / dist.get_world_size(), "weights": weights}
            torch.save(found, folder / f"{dist.get_world_size()}_{'skips' if skips else 'plain'}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
