"""Several processes with whole parameters each: accelerate wraps the model in DDP."""

from __future__ import annotations

import os
import warnings

from torch import nn


def wrapped(model: nn.Module) -> nn.Module:
    """The model in DDP over the process group that is there; the model itself stays usable beside it.

    A tensor that no rank used in a step keeps no gradient, as with one process, and one that this rank did not use gets
    the other ranks' (``find_unused_parameters``): one rank may hold rows with images and another only text. Buffers are
    not broadcast: frozen modules are in eval mode and do not change them.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedDataParallelKwargs

    cpu = next(model.parameters()).device.type == "cpu"
    settings = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    before = dict(os.environ)
    if cpu:  # without it accelerate tells every rank on a CPU that it is the only one
        os.environ["ACCELERATE_USE_CPU"] = "true"
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[settings])
        out: nn.Module = accelerator.prepare_model(model)
        accelerator.free_memory()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()
        for name in set(os.environ) - set(before):  # DeepSpeed would read some of what accelerate adds
            os.environ.pop(name)
        os.environ.update(before)
    return out
