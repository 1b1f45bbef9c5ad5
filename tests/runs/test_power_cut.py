"""A power cut at any moment leaves a whole checkpoint: of what was written a disk keeps what fsync has asked for."""

import os
from pathlib import Path

import pytest
import torch

from fastarat.config.recipes import recipe
from fastarat.runs.run import Run


class Disk:
    """What would be found after a power cut, in the worst case.

    A file's bytes are safe once it was synchronised, a name once its folder was; a name that is removed may be gone at
    once, and one that is written over may already stand for the new file.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path):
        self.root, self.moments = root, []
        self.files, self.names = set(), {root: set()}
        for name in ("fsync", "replace", "unlink"):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))

    def found(self) -> set[str]:
        """The files that are there whole, by their paths."""
        return {
            str(path.relative_to(self.root))
            for folder, names in self.names.items()
            for path, inode in names
            if inode in self.files and self._is_reached(folder)
        }

    def _is_reached(self, folder: Path) -> bool:
        above = {path for names in self.names.values() for path, _ in names}
        return all(place in above for place in (folder, *folder.parents) if self.root in place.parents)

    def _watched(self, name, original):
        def call(what, *more, **settings):
            if name == "fsync":
                self._keep(Path(f"/proc/self/fd/{what}").readlink())
            gone = Path(what if name == "unlink" else more[0]) if name != "fsync" else None
            inode = Path(what).stat().st_ino if name == "replace" else None
            for folder, names in self.names.items():
                old = {entry for entry in names if entry[0] == gone}
                self.names[folder] = names - old | {(gone, inode) for _ in old if name == "replace"}
            result = original(what, *more, **settings)
            self.moments.append(self.found())
            return result

        return call

    def _keep(self, path: Path) -> None:
        if path.is_dir():
            self.names[path] = {(entry, entry.stat().st_ino) for entry in path.iterdir()}
        else:
            self.files.add(path.stat().st_ino)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_checkpoint_that_is_being_written_never_costs_the_one_before(tmp_path, monkeypatch, keep):
    disk, run = Disk(monkeypatch, tmp_path), Run(tmp_path / "runs" / "first")
    run.create(recipe("digits-at"), {})
    for step in range(1, 5):
        run.save({"step": step, "weights": torch.full((1000,), float(step))}, keep)
        run.save_best({"step": step})
        run.finish_writing()
        files = disk.found()
        assert {"runs/first/config.json", f"runs/first/checkpoints/step-{step:09d}.pt"} <= files
    run.unlock()
    whole = [sorted(file for file in files if "/step-" in file) for files in disk.moments]
    first = next(number for number, files in enumerate(whole) if files)
    assert all(whole[first:]) and whole == sorted(whole, key=lambda files: files[-1:])
    best = ["runs/first/checkpoints/best.pt" in files for files in disk.moments]
    assert all(best[best.index(True) :])
