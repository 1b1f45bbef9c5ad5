"""Energy by the machine's own counters: processor packages and their memory (Linux's powercap), and GPUs (NVML).

A counter counts whatever runs there, not this process alone.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
"""https://docs.kernel.org/power/powercap/powercap.html; Linux lets root alone read its counters"""
MEMORY = "dram"
"""the one part of a package that is not counted in it"""
MOST_WATTS = 500
"""of a package: a counter that was not read for so long that it may have begun anew twice tells nothing"""
NONE_LOST = 2**64
"""where a counter of 64 bits would begin anew"""


@dataclass
class _Counter:
    read: Callable[[], int]
    """microjoules so far"""
    most: int
    """microjoules at which it begins again at 0"""
    before: int = field(init=False)
    when: float = field(init=False)

    def __post_init__(self) -> None:
        self.before, self.when = self.read(), time.monotonic()

    def moved(self) -> float | None:
        """Joules since the last call; None if it cannot be known."""
        try:
            now, when = self.read(), time.monotonic()
        except Exception:  # NVML's errors have no class that is there without it; a training does not end for this
            return None
        microjoules = now - self.before if now >= self.before else now - self.before + self.most
        is_known = (when - self.when) * MOST_WATTS < self.most / 1e6
        self.before, self.when = now, when
        return microjoules / 1e6 if is_known else None


class EnergyMeter:
    """Joules since it was last read, of "processors" and of "gpus".

    `device`: a GPU whose energy counts. `packages`: whether the processors of this machine count, of several processes
    on it in one. Their counters begin again at 0 after some 65 to 260 kilojoules, minutes: `sample` more often.
    """

    def __init__(self, device: torch.device, *, packages: bool, powercap: Path = POWERCAP):
        counters = {"processors": _package_counters(powercap)} if packages else {}
        if device.type == "cuda":
            counters["gpus"] = _gpu_counters(device)
        self._counters = counters
        self._joules: dict[str, float | None] = {kind: 0.0 if own else None for kind, own in counters.items()}

    def sample(self) -> None:
        """Read all counters, so that none begins anew unseen."""
        for kind, counters in self._counters.items():
            moved = [self._joules[kind], *(counter.moved() for counter in counters)]
            known = [joules for joules in moved if joules is not None]
            self._joules[kind] = sum(known) if len(known) == len(moved) else None

    def taken(self) -> dict[str, float | None]:
        """Joules since the last call, or since the meter was made, by kind; None for a kind that cannot be known: where
        there is no counter, where one failed, or was not sampled for too long."""
        self.sample()
        taken = dict(self._joules)
        self._joules = {kind: 0.0 if own else None for kind, own in self._counters.items()}
        return taken


def total(of_processes: Iterable[dict[str, float | None]]) -> dict[str, float]:
    """The sum of what the meters of all processes give, of the kinds that each which has any of them knows."""
    found: dict[str, list[float | None]] = {}
    for taken in of_processes:
        for kind, joules in taken.items():
            found.setdefault(kind, []).append(joules)
    known = {kind: [joules for joules in values if joules is not None] for kind, values in found.items()}
    return {kind: round(sum(known[kind]), 1) for kind, values in found.items() if len(known[kind]) == len(values)}


def _package_counters(powercap: Path) -> list[_Counter]:
    found = []
    for zone in sorted(powercap.glob("intel-rapl:*")):  # AMD's too
        try:
            name = (zone / "name").read_text().strip()
            if name.startswith("package") or name == MEMORY:
                file, most = zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())
                found.append(_Counter(lambda file=file: int(file.read_text()), most))
        except (OSError, ValueError):
            return []  # a part would be taken for the whole
    return found


def _gpu_counters(device: torch.device) -> list[_Counter]:
    try:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # by number NVML sees GPUs that are hidden here
        gpu = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return [_Counter(lambda: 1000 * pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu), NONE_LOST)]
    except Exception:  # as above
        return []
