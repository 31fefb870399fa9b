"""Where a run computes: its device, its precision, and whether one process works or several.

Under ``accelerate launch`` every process takes its share of a step's micro-batches and gradients are summed in one
transfer, so that the numbers are those of one process that does all of them. No wrapper goes around the
module: a task calls its own model in any way it likes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from megacontext.errors import ConfigError
from megacontext.training.config import RunConfig

T = TypeVar("T")


def device_for(config: RunConfig) -> torch.device:
    """The device of ``config.device``; tasks load what is frozen onto it. ConfigError where there is no GPU."""
    present = torch.cuda.is_available()
    if config.device == "cuda" and not present:
        raise ConfigError("device: cuda, but torch sees no GPU here: set device to auto or cpu")
    if config.device == "cpu" or not present:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def share_of(accumulate: int, processes: int, rank: int) -> range:
    """The micro-batches of a step that process ``rank`` computes; ConfigError where not all would get as many."""
    if accumulate % processes:
        raise ConfigError(
            f"accumulate: {accumulate} micro-batches a step cannot be shared evenly by {processes} processes: "
            f"set accumulate to a multiple of {processes}"
        )
    return range(rank, accumulate, processes)


class Runtime:
    """One process on one device. ``share``: the micro-batches of a step that it computes."""

    processes = 1
    rank = 0

    def __init__(self, config: RunConfig) -> None:
        self.device = device_for(config)
        self.share = share_of(config.accumulate, self.processes, self.rank)
        wanted = config.precision
        self._bf16 = wanted == "bf16" or (wanted == "auto" and self.device.type == "cuda")
        if self._bf16 and self.device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ConfigError("precision: bf16, but this GPU has no bf16 units: set precision to fp32")

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Within, matrix products run in bf16 if the run is in bf16; weights and losses stay float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in place."""

    def gather(self, own: list[T]) -> list[T]:
        """The lists of all processes, joined."""
        return own

    def from_main(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the main process, which alone calls it."""
        return make()


class AcceleratedRuntime(Runtime):
    """One of the processes that ``accelerate launch`` started, or the only one."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        try:
            from accelerate import Accelerator
        except ImportError as err:
            raise ConfigError("several processes need the extra: pip install 'megacontext[train]'") from err
        accelerator = Accelerator(cpu=self.device.type == "cpu")
        self.device = accelerator.device
        self.processes = accelerator.num_processes
        self.rank = accelerator.process_index
        self._accelerator = accelerator
        self.share = share_of(config.accumulate, self.processes, self.rank)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """See ``Runtime``. A parameter that no process used keeps no gradient, as with one process."""
        if self.processes == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        used = torch.tensor([float(p.grad is not None) for p in trained], device=self.device)
        touched = [p for p, count in zip(trained, self._sum(used).tolist(), strict=True) if count]
        flat = self._sum(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in touched]))
        for parameter, part in zip(touched, torch.split(flat, [p.numel() for p in touched]), strict=True):
            parameter.grad = part.view_as(parameter)

    def gather(self, own: list[T]) -> list[T]:
        """See ``Runtime``."""
        from accelerate.utils import gather_object

        return own if self.processes == 1 else list(gather_object(own))

    def from_main(self, make: Callable[[], T]) -> T:
        """See ``Runtime``; the others wait."""
        from accelerate.utils import broadcast_object_list

        held: list[Any] = [make() if self.is_main else None]
        if self.processes > 1:
            broadcast_object_list(held, from_process=0)
        result: T = held[0]
        return result

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = self._accelerator.reduce(values, reduction="sum")
        return summed


def runtime_for(config: RunConfig) -> Runtime:
    """The runtime of a run: accelerate's where asked for or where a launcher started several processes."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return AcceleratedRuntime(config) if config.accelerate or several else Runtime(config)
