"""Compile every kernel ahead of time for the GPUs that matter, and refuse spills: needs no GPU and no driver.

    python -m fastarat_kernels.aot --arch 80 90 100 [--kernels pgd_step …] [--json]

Prints a row for each kernel, configuration and architecture: registers a thread, shared bytes a program, spilled
bytes a thread, seconds; the last line sums up. Exit 1 if anything spills or does not compile, 2 for wrong input.
"""

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, NoReturn

from fastarat_kernels.launch import Launch, recording
from fastarat_kernels.registry import KERNELS

if TYPE_CHECKING:  # Importing compilation imports Triton, which `main` first looks for.
    from fastarat_kernels.compilation import Compilation, Usage

ARCHITECTURES = (80, 86, 89, 90, 100, 120)

Configurations = Iterable[tuple[str, Callable[[], object]]]


@dataclass(frozen=True)
class Row:
    """One kernel of one configuration on one architecture; `failure` is None if it may run."""

    kernel: str
    configuration: str
    arch: int
    registers: int | None
    shared_bytes: int | None
    spill_bytes: int | None
    seconds: float
    failure: str | None


def configurations(name: str) -> Configurations:
    """What the kernel `name` runs with, or one configuration that raises what kept it from saying."""
    try:
        return list(importlib.import_module(f"{KERNELS[name]}.triton").configurations())
    except Exception as error:
        return [("configurations", partial(_raise, error))]


def _raise(error: Exception) -> NoReturn:
    raise error


def check(kernels: dict[str, Configurations], architectures: Sequence[int]) -> list[Row]:
    """A row for each launch of `kernels` (by name: labels and calls on meta tensors) and each architecture.

    Launches that run the same machine code are compiled once. Never raises for what a kernel does wrong.
    """
    from fastarat_kernels.compilation import Usage, one_line, specialise

    planned: list[tuple[str, str, int, Compilation | Usage]] = []
    for name, label, call in ((name, *each) for name, of_kernel in kernels.items() for each in of_kernel):
        try:
            for launch, arch in product(_recorded(call), architectures):
                planned.append((f"{name}.{launch.kernel.__name__}", label, arch, specialise(launch, arch)))
        except Exception as error:
            planned += [(name, label, arch, Usage(failure=one_line(error))) for arch in architectures]
    distinct = {work.key: work for *_, work in planned if not isinstance(work, Usage)}
    usages = dict(zip(distinct, _compile(list(distinct.values())), strict=True))
    rows = {}
    for kernel, label, arch, work in planned:
        usage, key = (work, None) if isinstance(work, Usage) else (usages[work.key], work.key)
        # A configuration may launch the same machine code twice: one row.
        rows[kernel, label, arch, key] = Row(kernel, label, arch, **asdict(usage))
    return list(rows.values())


def _recorded(call: Callable[[], object]) -> list[Launch]:
    with recording() as launches:
        call()
    if not launches:
        raise ValueError("it starts no kernel")
    return launches


_work: "list[Compilation]" = []


def _compile(work: "list[Compilation]") -> "list[Usage]":
    """Compile all in forked processes: jit functions cannot be sent to others, but are there after a fork."""
    from fastarat_kernels.compilation import Usage

    if not work:
        return []
    workers = min(len(os.sched_getaffinity(0)), len(work))
    with ProcessPoolExecutor(workers, get_context("fork"), initializer=_receive, initargs=(work,)) as pool:
        futures = [pool.submit(_compile_number, number) for number in range(len(work))]
        _show_progress(futures)
    died = Usage(failure="the compiler's process died, here or beside it: give --kernels one at a time")
    return [died if isinstance(future.exception(), BrokenProcessPool) else future.result() for future in futures]


def _receive(work: "list[Compilation]") -> None:
    _work[:] = work
    # Triton reports some failures on stdout, where only rows belong.
    os.dup2(2, 1)


def _compile_number(number: int) -> "Usage":
    from fastarat_kernels.compilation import compile_ahead

    return compile_ahead(_work[number])


def _show_progress(futures: "Sequence[Future[Usage]]") -> None:
    """A line on stderr every few seconds, and at the end."""
    start = shown = time.monotonic()
    for done, _ in enumerate(as_completed(futures), start=1):
        now = time.monotonic()
        if now - shown > 3 or done == len(futures):
            left = (now - start) / done * (len(futures) - done)
            print(f"compiled {done}/{len(futures)}, {left:.0f} s left", file=sys.stderr, flush=True)
            shown = now


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows as aligned text, headings first."""
    lines = [["kernel", "configuration", "arch", "registers", "shared", "spill", "seconds", ""]]
    for row in rows:
        numbers = ["-" if n is None else str(n) for n in (row.registers, row.shared_bytes, row.spill_bytes)]
        verdict = f"FAILED: {row.failure}" if row.failure else "ok"
        lines.append([row.kernel, row.configuration, f"sm_{row.arch}", *numbers, f"{row.seconds:.2f}", verdict])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, print; returns the exit code."""
    parser = _Parser(prog="fastarat_kernels.aot", description="Compile every kernel ahead of time; needs no GPU.")
    known: dict[str, Any] = {"type": lambda text: text.removeprefix("sm_"), "choices": [*map(str, ARCHITECTURES)]}
    parser.add_argument("--arch", nargs="+", **known, default=["80", "90", "100"], metavar="SM")
    parser.add_argument("--kernels", nargs="+", choices=tuple(KERNELS), default=tuple(KERNELS), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print one JSON object: rows, failed, seconds")
    chosen = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("TRITON_INTERPRET is set, which hides the compiler: unset it")
    if importlib.util.find_spec("triton") is None:
        parser.error("triton is not installed: pip install triton")
    start = time.monotonic()
    rows = check({name: configurations(name) for name in chosen.kernels}, [int(arch) for arch in chosen.arch])
    seconds, num_failed = time.monotonic() - start, sum(row.failure is not None for row in rows)
    if chosen.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "failed": num_failed > 0, "seconds": seconds}))
    else:
        verdict = f"{num_failed} of {len(rows)} FAILED" if num_failed else f"all {len(rows)} compile without a spill"
        print(*table(rows), f"{verdict}; {seconds:.1f} s", sep="\n")
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
