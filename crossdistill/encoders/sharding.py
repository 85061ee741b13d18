"""``--teacher-sharding``: a frozen network whose weights are divided among the processes (FSDP2).

Zhao et al.: PyTorch FSDP, VLDB 2023, arXiv 2304.11277; torch's ``fully_shard``. A process gathers the weights of one
block at a time and drops them after use, so it holds its share of the network and one whole block.
"""

from __future__ import annotations

import torch
from torch import distributed

from crossdistill.encoders.base import Encoder
from crossdistill.encoders.recomputation import innermost_blocks
from crossdistill.errors import UserError


def shard(encoder: Encoder, device: torch.device) -> None:
    """Divide a network's weights among all processes, in place, and move each share to the process's device.

    Every process must then call the network equally often, because all of them gather its weights together. The network
    may be on the CPU before: only shares and single blocks come to a GPU.

    Raises:
        UserError: There is only one process.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        raise UserError(
            "--teacher-sharding divides a teacher among several processes, and there is one: start more with torchrun, "
            "or remove it"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for module in (*innermost_blocks(encoder.body), encoder):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
