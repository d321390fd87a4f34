"""`uftlab` under FSDP on CPUs: torchrun divided.py ARGUMENTS [+ ARGUMENTS ...].

accelerate divides a model on accelerators alone, though torch can on CPUs too. So here it takes a group of CPU
processes for one of GPUs. Exit code 77: the library of collective operations on CPUs lacks those of FSDP.
"""

import os
import sys

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType

# as `accelerate launch` sets them from the file in docs/clusters.md
os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
os.environ |= {"FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
os.environ |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "ACCELERATE_USE_CPU": "true"}
usual = PartialState.__init__


def taken_for_gpus(self, *args, **options):
    usual(self, *args, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


PartialState.__init__ = taken_for_gpus
PartialState(cpu=True)
try:
    dist.reduce_scatter_tensor(torch.zeros(1), torch.zeros(dist.get_world_size()))
except (RuntimeError, NotImplementedError):
    sys.exit(77)

from uftlab.cli import app  # noqa: E402

told = " ".join(sys.argv[1:]).split(" + ")
for line in told:
    app(line.split(), standalone_mode=False)
