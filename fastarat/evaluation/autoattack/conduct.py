"""How an evaluation is carried out: where its state lies, for how long it runs, who shares the work."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastarat.common.distributed import World


def _tells_nobody(amount: float) -> None:
    pass


@dataclass(frozen=True)
class Conduct:
    """None of it changes which images break."""

    state: Path | None = None
    """directory that keeps what is done, batch by batch: the same call goes on from there and ends in the same flags.
    Processes that do not see the first one's directory keep nothing"""
    budget: float | None = None
    """seconds after which no batch is begun, nor one that would probably end later; but one at least"""
    advance: Callable[[float], None] = _tells_nobody
    """is told what is done, in images"""
    world: World | None = None
    """the processes among which batches are dealt out, all of which get the result; None: this one alone"""
