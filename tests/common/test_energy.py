"""Energy is what the counters moved, over their end too; where it cannot be known there is none."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastarat.common import energy
from fastarat.common.energy import MOST_WATTS, EnergyMeter, total

CPU = torch.device("cpu")


def zone(powercap: Path, number: str, name: str, microjoules: int, most: int = 1_000_000_000) -> Path:
    folder = powercap / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_packages_and_their_memory_count_and_what_lies_within_a_package_does_not_twice(tmp_path):
    parts = {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "package-1", "2": "psys"}
    files = {number: zone(tmp_path, number, name, 7_000_000) for number, name in parts.items()}
    meter = EnergyMeter(CPU, packages=True, powercap=tmp_path)
    for file, joules in zip(files.values(), (5, 3, 2, 4, 50), strict=True):
        file.write_text(str(7_000_000 + joules * 1_000_000))
    assert meter.taken() == {"processors": pytest.approx(5 + 2 + 4)} and meter.taken() == {"processors": 0}


def test_a_counter_that_begins_anew_is_followed_and_one_that_may_have_done_so_twice_tells_nothing(
    tmp_path, monkeypatch
):
    now, most = [0.0], 100_000_000
    monkeypatch.setattr(energy, "time", SimpleNamespace(monotonic=lambda: now[0]))
    file = zone(tmp_path, "0", "package-0", 90_000_000, most)
    meter = EnergyMeter(CPU, packages=True, powercap=tmp_path)
    for microjoules in (5_000_000, 95_000_000, 1_000_000):
        file.write_text(str(microjoules))
        meter.sample()
    assert meter.taken() == {"processors": pytest.approx(15 + 90 + 6)}
    now[0] = most / 1e6 / MOST_WATTS
    assert meter.taken() == {"processors": None} and meter.taken() == {"processors": 0}


@pytest.mark.parametrize("harm", ["no powercap", "not to be read", "not a number"])
def test_where_nothing_can_be_read_it_is_not_known(tmp_path, harm):
    if harm != "no powercap":
        file = zone(tmp_path, "0", "package-0", 1)
        zone(tmp_path, "1", "package-1", 1)
    if harm == "not to be read":
        file.unlink()
        file.mkdir()
    if harm == "not a number":
        file.write_text("")
    assert EnergyMeter(CPU, packages=True, powercap=tmp_path).taken() == {"processors": None}
    assert EnergyMeter(CPU, packages=False, powercap=tmp_path).taken() == {}


def test_a_counter_that_fails_in_the_middle_ends_nothing(tmp_path):
    file = zone(tmp_path, "0", "package-0", 1)
    meter = EnergyMeter(CPU, packages=True, powercap=tmp_path)
    file.unlink()
    assert meter.taken() == meter.taken() == {"processors": None}


def test_a_gpu_is_found_by_its_uuid(tmp_path, monkeypatch):
    counted = iter([2_000, 9_500])  # millijoules
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: {"GPU-12ab": counted}[gpu].__next__(),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12ab"))
    assert EnergyMeter(torch.device("cuda", 0), packages=False).taken() == {"gpus": pytest.approx(7.5)}


def test_of_several_processes_only_what_all_know_is_a_sum():
    assert total([{"processors": 1.0, "gpus": 2.0}, {"gpus": 3.0}]) == {"processors": 1.0, "gpus": 5.0}
    assert total([{"processors": None, "gpus": 2.0}, {"gpus": 3.0}]) == {"gpus": 5.0}
    assert total([{"processors": 1.0, "gpus": 2.0}, {"gpus": None}]) == {"processors": 1.0}
    assert total([{}]) == {}
