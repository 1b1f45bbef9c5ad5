"""Energy by the machine's own counters: processor packages and their memory (Linux's powercap), and GPUs (NVML).

A counter counts whatever runs there, not this process alone.
"""

from collections.abc import Callable
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
"""https://docs.kernel.org/power/powercap/powercap.html; Linux lets root alone read its counters"""
MEMORY = "dram"
"""the one part of a package that is not counted in it"""


class EnergyMeter:
    """Joules since it was last read.

    `device`: a GPU whose energy counts. `packages`: whether those of this machine count, of several processes on it in
    one. A package's counter begins again at 0 after some hundred kilojoules, which takes it an hour or less: `sample`
    more often than that.
    """

    def __init__(self, device: torch.device, *, packages: bool, powercap: Path = POWERCAP):
        counters = (_package_counters(powercap) if packages else []) + _gpu_counters(device)
        self._counters = [(read, most, read()) for read, most in counters]
        self._joules = 0.0

    def sample(self) -> None:
        """Read all counters, so that none begins anew unseen."""
        for number, (read, most, before) in enumerate(self._counters):
            try:
                now = read()
            except Exception:  # NVML's errors have no class that is there without it; a training does not end for this
                self._counters = []
                return
            # Below the last reading it has begun anew, once: after its largest value comes 0.
            self._joules += (now - before if now >= before else now - before + most) / 1e6
            self._counters[number] = (read, most, now)

    def taken(self) -> float | None:
        """Joules since the last call, or since the meter was made; None where there is no counter, or one failed."""
        self.sample()
        joules, self._joules = self._joules, 0.0
        return joules if self._counters else None


Counter = tuple[Callable[[], int], int]
"""what reads it, in microjoules, and how much it has counted when it begins again at 0"""


def _package_counters(powercap: Path) -> list[Counter]:
    found: list[Counter] = []
    for zone in sorted(powercap.glob("intel-rapl:*")):  # AMD's too
        try:
            name = (zone / "name").read_text().strip()
            if not name.startswith("package") and name != MEMORY:
                continue
            file, most = zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())
            int(file.read_text())
        except (OSError, ValueError):
            continue
        found.append((lambda file=file: int(file.read_text()), most))
    return found


def _gpu_counters(device: torch.device) -> list[Counter]:
    if device.type != "cuda":
        return []
    try:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # by number NVML sees GPUs that are hidden here
        gpu = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except Exception:  # as above
        return []
    # Millijoules in 64 bits, which do not run out.
    return [(lambda: 1000 * pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu), 2**64)]
