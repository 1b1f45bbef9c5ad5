"""A part of a benchmark's work: --share K/N by hand, or by the number that a launcher gave this process."""

import argparse
import os

import torch

from fastarat.common.processes import forget_ranks, join_ranks, launched
from fastarat.common.ranks import gpu_of


def share(text: str) -> tuple[int, int]:
    """K and N of `K/N`, as argparse takes it for a flag's type."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text} is none: give K/N, such as 1/4 to 4/4")
    return int(number), int(of)


def share_by_launcher() -> tuple[int, int]:
    """K and N by the launcher that started this process among others; 1, 1 where none did.

    From here on the process is on its own, with one of its machine's GPUs: what it does is no work of several. To be
    called before CUDA starts. Raises `UserError` where the launcher does not say enough.
    """
    join_ranks()
    if not launched():
        return 1, 1
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    forget_ranks()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[gpu_of(local_rank, len(gpus))]
    return rank + 1, size
