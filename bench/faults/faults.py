"""The faults: what is done to two machines that train, and what has to come of it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.faults.scene import ELASTIC, ENDLESS, FIXED, Fault, Scene

LATER = """
import datetime
class Later(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=60)
datetime.datetime = Later
"""
OTHER_VERSION = "import fastarat.common.version as v; v.__version__ = '0.0.9'"
OTHER_RATE = ("--optimizer.learning-rate", "0.05")
OTHER_DATA = ("--data", "images.npz", "--num-validation-images", "64")


def _since(begin: float) -> float:
    return time.monotonic() - begin


def _rank_killed(scene: Scene) -> tuple[float, str]:
    begin = time.monotonic()
    os.kill(scene.rank(scene.moments.randrange(2)), signal.SIGKILL)
    said = scene.goes_on(2)
    return _since(begin), said


def _rank_stopped(scene: Scene) -> tuple[float, str]:
    pid = scene.rank(scene.moments.randrange(2))
    os.kill(pid, signal.SIGSTOP)
    time.sleep(30)
    begin, lines = time.monotonic(), _lines(scene)
    os.kill(pid, signal.SIGCONT)
    scene.wait(lambda: _lines(scene) > lines or scene.processes[0].poll() is not None)
    return _since(begin), (scene.events() or ["nothing"])[-1]


def _lines(scene: Scene) -> int:
    metrics = scene.run / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def _goes_on(scene: Scene, machines: int, happens: Callable[[], None]) -> tuple[float, str]:
    """Let something happen to an endless training, which has to go on with so many machines."""
    begin = time.monotonic()
    happens()
    said = scene.goes_on(machines)
    seconds = _since(begin)
    if machines == 1:
        scene.is_left(1)
    return seconds, said


def _launcher_killed(scene: Scene) -> tuple[float, str]:
    return _goes_on(scene, 1, lambda: scene.processes[1].kill())


def _machine_killed(scene: Scene) -> tuple[float, str]:
    return _goes_on(scene, 1, lambda: scene.machines[1].kill())


def _told_to_end(scene: Scene) -> tuple[float, str]:
    return _goes_on(scene, 1, lambda: scene.processes[1].terminate())


def _cable_out_for_20_s(scene: Scene) -> tuple[float, str]:
    def out_and_in() -> None:
        scene.machines[1].plug(False)
        time.sleep(20)
        scene.machines[1].plug(True)

    return _goes_on(scene, 2, out_and_in)


def _cable_out(scene: Scene) -> tuple[float, str]:
    found = _goes_on(scene, 1, lambda: scene.machines[1].plug(False))  # its command finds nobody, and gives up
    scene.machines[1].plug(True)
    return found


def _late(scene: Scene) -> tuple[float, str]:
    return _goes_on(scene, 2, lambda: scene.start(1, *ELASTIC, *ENDLESS))


def _disk_full(scene: Scene) -> tuple[float, str]:
    begin = time.monotonic()
    subprocess.run(["dd", "if=/dev/zero", f"of={scene.run}/full", "bs=64k"], capture_output=True, check=False)
    scene.ended(0, 1)
    return _since(begin), scene.said(0)


def _store_lost(scene: Scene) -> tuple[float, str]:
    begin = time.monotonic()
    scene.machines[0].kill()
    scene.ended(1)
    return _since(begin), scene.said(1)


def _first_launcher_killed(scene: Scene) -> tuple[float, str]:
    begin = time.monotonic()
    scene.processes[0].kill()
    scene.ended(0, 1)
    seconds = _since(begin)
    scene.is_left(0)
    return seconds, scene.said(1)


def _another_setting_late(scene: Scene) -> tuple[float, str]:
    begin = time.monotonic()
    scene.start(1, *ELASTIC, *ENDLESS, *OTHER_RATE)
    scene.ended(1)
    seconds = _since(begin)
    scene.saves()  # the first one trains on
    return seconds, scene.said(1) if not scene.events() else f"stopped for it: {scene.events()[-1]}"


def _other_images_late(scene: Scene) -> tuple[float, str]:
    begin = time.monotonic()
    scene.start(1, *ELASTIC, *ENDLESS, *OTHER_DATA)
    scene.ended(1)
    scene.goes_on(1)  # the first one, which had stopped for it
    return _since(begin), scene.said(1)


def _clocks_apart(scene: Scene) -> tuple[float, str]:
    begin = time.monotonic()
    scene.start(1, *ELASTIC, *ENDLESS, PYTHONPATH=_site(scene, LATER))
    scene.ended(1)
    return _since(begin), scene.said(1)


def _other_version(scene: Scene) -> tuple[float, str]:
    return _differs(scene, PYTHONPATH=_site(scene, OTHER_VERSION))


def _other_recipe(scene: Scene) -> tuple[float, str]:
    return _differs(scene, *OTHER_RATE)


def _other_data(scene: Scene) -> tuple[float, str]:
    return _differs(scene, *OTHER_DATA)


def _differs(scene: Scene, *flags: str, **variables: str) -> tuple[float, str]:
    begin = time.monotonic()
    scene.start(1, *FIXED, *ENDLESS, *flags, **variables)
    scene.ended(0, 1)
    return _since(begin), scene.said(1)


def _site(scene: Scene, code: str) -> str:
    folder = Path(scene.disks[1]) / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return str(folder)


RANK_KILLED = Fault("a process is killed", _rank_killed, "goes on with both", "was killed (SIGKILL", bits_stay=True)
RANK_STOPPED = Fault("a process stands still for 30 s", _rank_stopped, "the others wait", "nothing", bits_stay=True)
LAUNCHER_KILLED = Fault("a launcher is killed", _launcher_killed, "goes on with the other", "in 1 process")
MACHINE_LOST = Fault("a machine is lost", _machine_killed, "goes on with the other", "in 1 process")
TOLD_TO_END = Fault("a machine is told to end (SIGTERM)", _told_to_end, "goes on with the other", "in 1 process")
CABLE_OUT_FOR_20_S = Fault("a cable is out for 20 s", _cable_out_for_20_s, "goes on with both", "in 2 processes")
CABLE_OUT = Fault("a cable is out", _cable_out, "goes on with the other", "in 1 process")
DISK_FULL = Fault("the disk is full", _disk_full, "ends on both", "cannot write run/")
STORE_LOST = Fault("the machine at --rendezvous is lost", _store_lost, "ends", "is that machine gone?")
FIRST_LAUNCHER_KILLED = Fault(
    "the launcher at --rendezvous is killed", _first_launcher_killed, "ends on both", "is that machine gone?"
)
ANOTHER_SETTING_LATE = Fault(
    "a machine comes late with another setting", _another_setting_late, "the first goes on", "another optimizer than"
)
OTHER_IMAGES_LATE = Fault(
    "a machine comes late with other images", _other_images_late, "the first goes on", "other images"
)
LATE = Fault("a machine comes late", _late, "goes on with both", "in 2 processes: a machine comes in")
CLOCKS_APART = Fault("clocks 60 s apart", _clocks_apart, "the second ends", "clock is")
OTHER_IMAGES = Fault("other images", _other_data, "ends on both", "other images")
ANOTHER_VERSION = Fault("another version", _other_version, "ends on both", "another version of fastarat")
ANOTHER_SETTING = Fault("another setting", _other_recipe, "ends on both", "another optimizer")


def a_set_on_each_disk(scene: Scene) -> None:
    """Give each machine images of its own under the same name."""
    for seed, disk in enumerate(scene.disks):
        draw, labels = np.random.default_rng(seed), np.arange(512) % 10
        images = draw.integers(0, 255, (512, 8, 8, 1), dtype=np.uint8)
        np.savez(disk / "images.npz", images=images, labels=labels)
