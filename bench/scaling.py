"""What more GPUs should bring: compute and exposed communication of AR-AT on 1 to 64 H200s, predicted.

    python -m bench.scaling        # count ResNet-18 and WRN-34-10, predict, draw docs/images/scaling.png

Nothing here is measured. Counted are a step's FLOP, bytes and kernels, the gradients' bytes, and how far the backward
pass is when a bucket of them is full. Assumed are the figures in `GPU` and `CLUSTERS`. A step computes for as long as
its matrix work takes at the GPU's peak, its bytes at the bandwidth of a copy, and its kernels one microsecond each. A
bucket's ring goes over the GPUs of a machine, then over the machines, one bucket after the other, beside the backward
pass; what is on its way after that is exposed.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from bench.common import command
from bench.common.inputs import random_images
from bench.common.rows import RESULTS, Row, base_row, markdown, read_rows, write_rows
from fastarat.common.console import notice, print_table
from fastarat.common.distributed import World
from fastarat.common.figures import COLOURS, figure_of, finish
from fastarat.config.recipes import recipe
from fastarat.models.split_batch_norm import forward
from fastarat.training.build import build_training
from fastarat.training.profiling.cost import step_cost
from fastarat.training.state import Training
from fastarat.training.step.gradients import in_buckets

ROOT = Path(__file__).parents[1]
ROWS, PICTURE = RESULTS / "scaling.jsonl", ROOT / "docs/images/scaling.png"
NETS = {"ResNet-18": "cifar10-resnet18-arat", "WRN-34-10": "cifar10-wrn-34-10-arat"}
COUNTS = (1, 2, 4, 8, 16, 32, 64)
BATCH = 128


@dataclass(frozen=True)
class GPU:
    """An H200, by its data sheet and the copy bandwidth that others measured."""

    flops_per_s: float = 790e12
    bytes_per_s: float = 4.3e12
    seconds_a_kernel: float = 1e-6
    """between the nodes of a CUDA graph"""


@dataclass(frozen=True)
class Link:
    """Bytes/s of one ring through all that it connects, and seconds of each of its hops."""

    bytes_per_s: float
    seconds_a_hop: float

    def all_reduce(self, size: int, number: int) -> float:
        """Seconds of a ring all-reduce of `size` bytes among `number`."""
        if number == 1:
            return 0.0
        return 2 * (number - 1) / number * size / self.bytes_per_s + 2 * (number - 1) * self.seconds_a_hop


@dataclass(frozen=True)
class Cluster:
    """Machines alike: the link inside and the one between them."""

    name: str
    most_in_one: int
    inside: Link
    between: Link

    def all_reduce(self, size: int, number: int) -> float:
        """Seconds of an all-reduce of `size` bytes over `number` GPUs: in each machine, then among machines."""
        here = min(number, self.most_in_one)
        return self.inside.all_reduce(size, here) + self.between.all_reduce(size, number // here)


CLUSTERS = (
    Cluster("NVLink, 400 Gb/s a GPU", 8, Link(360e9, 2e-6), Link(8 * 40e9, 5e-6)),
    Cluster("PCIe 4, 100 Gb/s a machine", 8, Link(20e9, 5e-6), Link(10e9, 10e-6)),
    Cluster("Ethernet, 25 Gb/s, one GPU a machine", 1, Link(1.0, 0.0), Link(2.5e9, 25e-6)),
)


@dataclass(frozen=True)
class Counted:
    """A step of one GPU at batch `BATCH`."""

    flops: float
    bytes: float
    kernels: int
    backward: float
    """share of the step that is the update's backward pass"""
    buckets: tuple[tuple[int, float], ...]
    """bytes of each, in the order of their travel, and the share of the backward pass after which it is full"""

    def compute(self, batch: int, gpu: GPU) -> float:
        """Seconds of a step of `batch` images."""
        whole = self.flops / gpu.flops_per_s + self.bytes / gpu.bytes_per_s
        return whole * batch / BATCH + self.kernels * gpu.seconds_a_kernel

    def exposed(self, batch: int, number: int, cluster: Cluster, gpu: GPU, *, overlap: bool = True) -> float:
        """Seconds for which a step of `number` GPUs with `batch` images each waits for gradients."""
        compute = self.compute(batch, gpu)
        begins = compute * (1 - self.backward)
        free = 0.0
        for size, share in self.buckets:
            ready = begins + compute * self.backward * share if overlap else compute
            free = max(free, ready) + cluster.all_reduce(size, number)
        return max(free - compute, 0.0) if number > 1 else 0.0


def count(name: str) -> Counted:
    """Count a recipe's step."""
    config = recipe(name)
    images = random_images("cifar10", config.batch)
    training = build_training(config, images, World(torch.device("cpu")), dtype="bf16")
    costs = step_cost(training, fused=True).values()
    parameters = training.parts.parameters
    sizes = [parameter.nbytes for parameter in parameters]
    done = dict(zip(map(id, parameters), _done_when_ready(training), strict=True))
    buckets = tuple(
        (sum(sizes[i] for i in bucket), max(done[id(parameters[i])] for i in bucket)) for bucket in in_buckets(sizes)
    )
    steps = config.attack.steps
    return Counted(
        flops=float(sum(cost.flops for cost in costs)) * BATCH / config.batch,
        bytes=float(sum(cost.bytes for cost in costs)) * BATCH / config.batch,
        kernels=_kernels(name, sum(cost.launches for cost in costs)),
        backward=4 / (2 * steps + 6),  # forwards of B images: 2 an attack step, 6 an update of both halves, 4 backward
        buckets=buckets,
    )


def _kernels(name: str, otherwise: int) -> int:
    """Nodes of the captured step, by the simulated GPU; of a net that was not captured there what is launched."""
    for line in (ROOT / "tests/simulated_gpu/steps.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["cell"] == f"{name}:graph:triton":
            return int(row["nodes"])
    return otherwise


def _done_when_ready(training: Training) -> list[float]:
    """For each parameter the share of the backward pass after which its gradient is there, by the matrix work of the
    layers; what has none is ready with the layer after it."""
    model, work = training.parts.model, {}

    def note(layer: nn.Module, _: Any, out: torch.Tensor) -> None:
        assert isinstance(layer.weight, torch.Tensor)
        work[id(layer.weight)] = out.numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    forward(model, torch.zeros(2, 3, 32, 32), "adv", "eval")
    for hook in hooks:
        hook.remove()
    total, done, shares = sum(work.values()), 0, []
    for parameter in reversed(training.parts.parameters):
        done += work.get(id(parameter), 0)
        shares.append(done / total)
    return shares[::-1]


class Prediction(NamedTuple):
    """Seconds of a step of `number` GPUs: its compute, and how long it then waits, with overlap and without."""

    cluster: Cluster
    number: int
    compute: float
    exposed: float
    exposed_after: float


def predictions(counted: Counted, batch_of: dict[int, int]) -> Iterator[Prediction]:
    """Of each cluster, for these numbers of GPUs and images of each."""
    gpu = GPU()
    for cluster in CLUSTERS:
        for number, batch in batch_of.items():
            both = (counted.exposed(batch, number, cluster, gpu, overlap=overlap) for overlap in (True, False))
            yield Prediction(cluster, number, counted.compute(batch, gpu), *both)


WEAK: dict[int, int] = dict.fromkeys(COUNTS, BATCH)
STRONG: dict[int, int] = {number: max(BATCH // number, 1) for number in COUNTS}


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Milliseconds exposed, and images/s over those of one GPU, at 128 images a GPU and at 128 in all."""
    cells = []
    for row in rows:
        counted = counted_of(row)
        alone = counted.compute(BATCH, GPU())
        for weak, strong in zip(predictions(counted, WEAK), predictions(counted, STRONG), strict=True):
            if weak.number in (8, 64):
                exposed = f"{1e3 * weak.exposed:.2f} ({1e3 * weak.exposed_after:.2f})"
                speeds = (
                    weak.number * alone / (weak.compute + weak.exposed),
                    alone / (strong.compute + strong.exposed),
                )
                head = [row["net"], weak.cluster.name, str(weak.number), f"{1e3 * weak.compute:.1f}"]
                cells.append([*head, exposed, *(f"{speed:.1f}" for speed in speeds)])
    columns = ["net", "links", "GPUs", "ms compute", "ms exposed (without overlap)"]
    return [*columns, "x one GPU, 128 images each", "x one GPU, 128 in all"], cells


def as_markdown(rows: list[Row]) -> str:
    """The table, with what it predicts; empty for no rows."""
    if not rows:
        return ""
    buckets = ", ".join(f"{len(row['buckets'])} of {row['net']}" for row in rows)
    return f"{markdown(*table(rows))}\n**Predicted, not measured.** AR-AT, bf16, H200; buckets: {buckets}.\n"


def counted_of(row: Row) -> Counted:
    """What a row holds."""
    fields = {name: row[name] for name in ("flops", "bytes", "kernels", "backward")}
    return Counted(**fields, buckets=tuple((int(size), float(share)) for size, share in row["buckets"]))


def draw(path: Path, rows: list[Row]) -> None:
    """How much of so many GPUs trains, at 128 images each."""
    with figure_of(path, 1, len(rows), (4.4 * len(rows), 3.4), "predicted, not measured") as (_, axes):
        for axis, row in zip(axes[0], rows, strict=True):
            for cluster, colour in zip(CLUSTERS, COLOURS, strict=False):
                found = [each for each in predictions(counted_of(row), WEAK) if each.cluster is cluster]
                for style, waits in (("-", [p.exposed for p in found]), (":", [p.exposed_after for p in found])):
                    shares = [100 * p.compute / (p.compute + wait) for p, wait in zip(found, waits, strict=True)]
                    name = cluster.name if style == "-" else None
                    axis.plot(range(len(COUNTS)), shares, style, color=colour, marker=".", label=name)
            axis.set(xlabel="GPUs, 128 images each", ylabel="% of a step not waiting for gradients", ylim=(0, 105))
            axis.set_title(f"{row['net']} (dotted: without overlap)", fontsize=9)
            axis.set_xticks(range(len(COUNTS)), [str(number) for number in COUNTS])
            finish(axis, loc="lower left")


@command.program("bench.scaling")
def main(args: list[str] | None) -> int:
    """Count, write the rows and the picture, print the table."""
    command.Parser("bench.scaling", __doc__).parse_args(args)
    rows = []
    for net, name in NETS.items():
        notice(f"counting {net}")
        row = base_row("scaling", recipe(name), "random", device="cpu")
        rows.append({**row, "correct": True, "net": net, **vars(count(name))})
    write_rows(ROWS, rows, instead_of=list(read_rows(ROWS)))
    draw(PICTURE, rows)
    print_table("predicted, not measured", *table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
