"""Two processes of a training, one after the other in this one: do they come to the same meetings, in the same order?

Whoever hangs in the second process, or leaves the first one hanging, fails here at once and by name.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from fastarat.common.distributed import World
from fastarat.config import Config
from fastarat.config.recipes import recipe
from fastarat.training import train as trainer


class Meetings:
    """The first process's collectives and their results; the second has to come to the same ones, and gets those."""

    def __init__(self, monkeypatch):
        self.held: list[tuple[Any, Any]] = []
        self.rank, self.next = 0, 0
        self.group_name = "all"
        monkeypatch.setattr(dist, "all_reduce", self._all_reduce)
        monkeypatch.setattr(torch.ops._c10d_functional, "all_reduce", self._start)
        monkeypatch.setattr(torch.ops._c10d_functional, "wait_tensor", lambda values: values)
        monkeypatch.setattr(dist, "broadcast_object_list", self._broadcast)
        monkeypatch.setattr(dist, "all_gather_object", self._gather)
        monkeypatch.setattr(dist, "barrier", lambda group: self._meet("barrier"))
        monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
        monkeypatch.setattr(trainer, "join_world", lambda device: self.world())
        monkeypatch.setattr(trainer, "with_short_waits", lambda world: world)
        monkeypatch.setattr(trainer, "is_first", lambda: self.rank == 0)

    def world(self) -> World:
        """The place of the process whose turn it is."""
        group: Any = self
        return World(torch.device("cpu"), self.rank, 2, group, group)

    def second(self) -> None:
        """From now on it is the second process's turn."""
        self.rank = 1

    def end(self) -> None:
        """Both have come to their ends."""
        waits = [what for what, _ in self.held[self.next :]]
        assert not waits, f"the first process waits for ever in {waits[0]}"

    def _meet(self, what: Any, result: Any = None) -> Any:
        if self.rank == 0:
            self.held.append((what, result))
            return result
        assert self.next < len(self.held), f"the second process waits for ever in {what}"
        expected, result = self.held[self.next]
        self.next += 1
        assert what == expected, f"meeting {self.next}: the second process stands in {what}, the first in {expected}"
        return result

    def _all_reduce(self, tensor: torch.Tensor, op: Any = None, group: Any = None) -> None:
        tensor.copy_(self._meet(("all_reduce", tensor.shape, tensor.dtype, op), tensor.clone()))

    def allreduce(self, tensors: list[torch.Tensor], options: dist.AllreduceOptions) -> Any:
        """What a group of gloo's does."""
        for tensor in tensors:
            self._all_reduce(tensor, options.reduceOp)
        return SimpleNamespace(wait=lambda: None)

    def _start(self, values: torch.Tensor, op: str, group: str) -> torch.Tensor:
        return self._meet(("all_reduce", values.shape, values.dtype, op), values.clone())

    def _broadcast(self, box: list[Any], src: int, group: Any) -> None:
        box[:] = self._meet("broadcast", list(box))

    def _gather(self, found: list[Any], value: Any, group: Any) -> None:
        found[:] = self._meet("all_gather_object", [value] * len(found))


def small(**settings) -> Config:
    """Two epochs of two steps, each evaluated, on two processes."""
    config = recipe("digits-at")
    evaluation = replace(config.evaluation, num_images=4, num_clean_images=4, steps=1, every_epochs=1)
    attack = replace(config.attack, steps=1)
    few = {"num_train_images": 128, "epochs": 2, "batch": 64, "procs": 2, "evaluation": evaluation, "attack": attack}
    return replace(config, **{**few, **settings})
