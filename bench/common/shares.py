"""A part of a benchmark's work: --share K/N by hand, or by the number that a launcher gave this process."""

import argparse
import os
from collections.abc import Mapping

import torch

from fastarat.common.errors import UserError
from fastarat.common.processes import end_with_launcher, forget_ranks
from fastarat.common.ranks import HERE, found_ranks, gpu_of


def share(text: str) -> tuple[int, int]:
    """K and N of `K/N`, as argparse takes it for a flag's type."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text} is none: give K/N, such as 1/4 to 4/4")
    return int(number), int(of)


def share_of(given: tuple[int, int] | None) -> tuple[int, int]:
    """K and N as they are `given`, or by the launcher that started this process among others; 1, 1 where none did.

    From here on the process is on its own, with a GPU of its own: what it does is no work of several. To be called
    before CUDA starts. Raises `UserError` where a machine has fewer GPUs than processes, and for two shares.
    """
    # Nobody meets here, so that nobody needs an address.
    ranks = found_ranks({"MASTER_ADDR": HERE, **os.environ})
    if ranks is None or int(ranks["WORLD_SIZE"]) == 1:
        forget_ranks()
        return given or (1, 1)
    if given:
        raise UserError(f"--share {given[0]}/{given[1]}: the launcher has given shares already: leave it out")
    end_with_launcher()
    forget_ranks()
    _take_own_gpu(ranks)
    return int(ranks["RANK"]) + 1, int(ranks["WORLD_SIZE"])


def _take_own_gpu(ranks: Mapping[str, str]) -> None:
    """See no other GPU of this machine, if it has any: srun --gpus-per-task=1 has done that already."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = seen.split(",") if seen else [str(number) for number in range(torch.cuda.device_count())]
    here, is_own = int(ranks["LOCAL_WORLD_SIZE"]), bool(seen) and len(gpus) == 1
    if 0 < len(gpus) < here and not is_own:
        raise UserError(f"{here} processes on a machine with {len(gpus)} GPUs: start no more than it has")
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[gpu_of(int(ranks["LOCAL_RANK"]), len(gpus))]
