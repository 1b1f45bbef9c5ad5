"""Stories: faults that happen to one run after one another, since starting Python and torch anew is what takes time."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from bench.faults import faults
from bench.faults.scene import ELASTIC, ENDLESS, FINITE, FIXED, Fault, Scene


@dataclass(frozen=True)
class Story:
    """What happens to two machines that train one run."""

    name: str
    tell: Callable[[Scene], None]
    faults: tuple[Fault, ...]
    """those that happen in it"""

    @property
    def bits_stay(self) -> bool:
        """Whether the run ends, in the bits of an undisturbed one."""
        return self.faults[0].bits_stay


PROCESSES = (faults.RANK_KILLED, faults.RANK_STOPPED)
GO = (faults.LAUNCHER_KILLED, faults.MACHINE_LOST, faults.TOLD_TO_END, faults.CABLE_OUT)
"""after these the second machine is gone"""


def _processes_fail(scene: Scene) -> None:
    """In either order, and then the run ends."""
    scene.trains(*ELASTIC, *FINITE)
    for fault in _shuffled(scene, PROCESSES):
        scene.saves()
        scene.let(fault)
    scene.ended(0, 1)


def _machines_come_and_go(scene: Scene) -> None:
    """In any order; whatever has gone comes again; in the end the one where they meet is lost."""
    scene.trains(*ELASTIC, *ENDLESS)
    for fault in _shuffled(scene, (*GO, faults.CABLE_OUT_FOR_20_S)):
        scene.saves()
        scene.let(fault)
        if fault in GO:
            scene.let(faults.LATE)
    scene.let(faults.STORE_LOST)


def _the_first_launcher_is_killed(scene: Scene) -> None:
    scene.trains(*ELASTIC, *ENDLESS)
    scene.saves()
    scene.let(faults.FIRST_LAUNCHER_KILLED)


def _one_comes_with_another_setting(scene: Scene) -> None:
    scene.start(0, *ELASTIC, *ENDLESS)
    scene.saves()
    scene.let(faults.ANOTHER_SETTING_LATE)


def _one_comes_with_other_images(scene: Scene) -> None:
    faults.a_set_on_each_disk(scene)
    scene.start(0, *ELASTIC, *ENDLESS, *faults.OTHER_DATA)
    scene.saves()
    scene.let(faults.OTHER_IMAGES_LATE)


def _disk_fills_up(scene: Scene) -> None:
    scene.run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", scene.run], check=True)
    try:
        scene.trains(*ELASTIC, *ENDLESS)
        scene.saves()
        scene.let(faults.DISK_FULL)
    finally:
        subprocess.run(["umount", "-l", scene.run], check=True)


def _clocks_differ(scene: Scene) -> None:
    scene.start(0, *ELASTIC, *ENDLESS)
    scene.let(faults.CLOCKS_APART)


def _versions_differ(scene: Scene) -> None:
    scene.start(0, *FIXED, *ENDLESS)
    scene.let(faults.ANOTHER_VERSION)


def _settings_differ(scene: Scene) -> None:
    scene.start(0, *FIXED, *ENDLESS)
    scene.let(faults.ANOTHER_SETTING)


def _images_differ(scene: Scene) -> None:
    faults.a_set_on_each_disk(scene)
    scene.start(0, *FIXED, *ENDLESS, *faults.OTHER_DATA)
    scene.let(faults.OTHER_IMAGES)


def _shuffled(scene: Scene, several: tuple[Fault, ...]) -> list[Fault]:
    return scene.moments.sample(several, len(several))


STORIES = (
    Story("processes fail", _processes_fail, PROCESSES),
    Story(
        "machines come and go",
        _machines_come_and_go,
        (*GO, faults.CABLE_OUT_FOR_20_S, faults.LATE, faults.STORE_LOST),
    ),
    Story("the first launcher is killed", _the_first_launcher_is_killed, (faults.FIRST_LAUNCHER_KILLED,)),
    Story("one comes with another setting", _one_comes_with_another_setting, (faults.ANOTHER_SETTING_LATE,)),
    Story("one comes with other images", _one_comes_with_other_images, (faults.OTHER_IMAGES_LATE,)),
    Story("the disk fills up", _disk_fills_up, (faults.DISK_FULL,)),
    Story("clocks differ", _clocks_differ, (faults.CLOCKS_APART,)),
    Story("images differ", _images_differ, (faults.OTHER_IMAGES,)),
    Story("versions differ", _versions_differ, (faults.ANOTHER_VERSION,)),
    Story("settings differ", _settings_differ, (faults.ANOTHER_SETTING,)),
)
