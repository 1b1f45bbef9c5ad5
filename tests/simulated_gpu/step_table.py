"""Count steps on the simulated GPU: `tests/simulated_gpu/run python -m tests.simulated_gpu.step_table [CELL...]`.

The table in kernels/README.md is written from the rows in `steps.jsonl`, which these counts replace. A cell is
RECIPE:COMPILE:KERNELS; without any all are counted, which takes hours, since each of them compiles a net. `--page`
writes the table from the rows that there are, on any machine.
"""

import argparse
import gc
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE, ROWS = ROOT / "kernels" / "README.md", Path(__file__).with_name("steps.jsonl")
BLOCK = re.compile(r"(<!-- table: simulated-steps -->\n).*?(<!-- end -->)", re.DOTALL)
NETS = {"cifar10-tiny": "tiny", "cifar10-resnet18": "ResNet-18", "cifar10-wrn-34-10": "WRN-34-10"}
METHODS = {"at": "AT", "arat": "AR-AT", "trades": "TRADES"}
FORMS = {
    ("eager", "pytorch"): "eager",
    ("eager", "triton"): "eager, fused kernels",
    ("compile", "triton"): "compiled, fused kernels",
    ("graph", "triton"): "captured, fused kernels",
}
CELLS = [f"{net}-{method}:{compile}:{kernels}" for net in NETS for method in METHODS for compile, kernels in FORMS]


def counted(cell: str) -> dict[str, Any]:
    """A row: what a step of this cell asks of the device, at the recipe's batch size and attack, in bf16."""
    import torch

    from fastarat.config.recipes import recipe
    from fastarat.training.choices import Choices
    from tests.helpers.simulated_gpu import black_images, step_counts

    name, compile, kernels = cell.split(":")
    config = replace(recipe(name), num_validation_images=0, num_train_images=None)
    dataset = black_images(32, 3, 6 * config.batch)
    gc.collect()
    torch.cuda.empty_cache()  # what earlier steps left decides otherwise whether the sixth has to ask for more
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    counts = step_counts(config, dataset, Choices("cuda", "bf16", kernels, compile))  # type: ignore[arg-type]
    return {
        "cell": cell,
        "batch": config.batch,
        "attack_steps": config.attack.steps,
        "torch": torch.__version__.partition("+")[0],
        "launches": counts.launches,
        "copies": counts.copies,
        "nodes": counts.nodes,
        "disturbances": counts.disturbances,
        "peak_mb": round((torch.cuda.max_memory_allocated() - before) / 1e6),
        "families": dict(counts.families.most_common()),
    }


def rows() -> dict[str, dict[str, Any]]:
    """The newest row of each cell."""
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    return {row["cell"]: row for row in map(json.loads, lines)}


def keep(row: dict[str, Any]) -> None:
    """Put a row in the place of its cell's."""
    kept = rows() | {row["cell"]: row}
    ROWS.write_text("".join(f"{json.dumps(kept[cell])}\n" for cell in CELLS if cell in kept))


def table() -> str:
    """Every row that there is, as Markdown."""
    lines = [
        "| net | method | form | launches | graph nodes | waits, host copies, allocations | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    found = rows()
    for cell in filter(found.get, CELLS):
        row = found[cell]
        name, compile, kernels = cell.split(":")
        net, _, method = name.rpartition("-")
        launched, disturbed = row["launches"] + row["copies"], sum(row["disturbances"].values())
        columns = [NETS[net], METHODS[method], FORMS[compile, kernels]]
        columns += [f"{number:,}" for number in (launched, row["nodes"], disturbed)]
        lines.append(f"| {' | '.join(columns)} | {row['peak_mb']:,} MB |")
    versions = ", ".join(sorted({row["torch"] for row in found.values()}))
    return "\n".join(
        [
            *lines,
            "",
            f"One step of the recipe in bf16; launches with copies; the simulated GPU's torch, {versions}.",
            "",
        ]
    )


def main() -> int:
    """Count the cells, and write the page; `--check`: say whether the page is the rows'."""
    parser = argparse.ArgumentParser(prog="tests.simulated_gpu.step_table", description="Count steps: minutes a cell.")
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"RECIPE:COMPILE:KERNELS, such as {CELLS[0]}")
    parser.add_argument("--page", action="store_true", help="count nothing")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is not the rows'")
    given = parser.parse_args()
    if not (given.page or given.check):
        cells = given.cells or CELLS
        if len(cells) == 1:
            keep(counted(cells[0]))
        else:  # what one cell has not given back yet would lie in the next one's peak
            for cell in cells:
                subprocess.run([sys.executable, "-m", "tests.simulated_gpu.step_table", cell], check=True)
    before = PAGE.read_text()
    after = BLOCK.sub(lambda match: match[1] + table() + match[2], before)
    if given.check:
        return int(before != after)
    PAGE.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
