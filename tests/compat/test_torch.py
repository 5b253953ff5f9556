"""DDP in a process group of one, over gloo."""

import pytest
import torch
import torch.distributed as distributed
from torch.nn.parallel import DistributedDataParallel

from loradag.compat.torch import leave_frozen_parameters


@pytest.fixture
def group():
    distributed.init_process_group(
        "gloo", store=distributed.HashStore(), rank=0, world_size=1
    )  # fmt: skip
    yield
    distributed.destroy_process_group()


def test_ddp_leaves_frozen_parameters_alone(group) -> None:
    """Fails where torch no longer reads the attribute that names them."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    model[0].requires_grad_(False)
    leave_frozen_parameters(model)
    wrapped = DistributedDataParallel(model)
    assert wrapped.parameters_to_ignore == {"0.weight", "0.bias"}
    wrapped(torch.ones(3, 4)).sum().backward()
    assert model[0].weight.grad is None
    assert model[1].weight.grad is not None
