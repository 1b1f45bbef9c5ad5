"""`fastarat doctor` tells what is there, what is missing and what cannot be loaded, without importing any of it."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

from fastarat.verification import doctor
from tests.helpers.optional import each_loader, needs_ffcv


@pytest.mark.parametrize("name", each_loader("ffcv", "dali"))
def test_the_loaders_are_found_and_say_what_they_are_for(name):
    finding = doctor._optional(name)
    assert (finding.subject, finding.state) == (name, "ok") and "feeds trainings" in finding.detail


@pytest.mark.parametrize("name", doctor.OPTIONAL)
def test_what_is_not_installed_is_missing(name, monkeypatch):
    # An empty path finds nothing, and nothing is in memory already.
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    for module in [module for module in sys.modules if module.partition(".")[0] in (name, "nvidia")]:
        monkeypatch.delitem(sys.modules, module)
    assert doctor._optional(name) == doctor.Finding(name, "missing", doctor.OPTIONAL[name])


def test_a_package_of_one_file_is_found(tmp_path, monkeypatch):
    (tmp_path / "pynvml.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    assert doctor._optional("pynvml").state == "ok"


@pytest.mark.parametrize(("threads", "said"), [(1, ", 1 thread"), (2, ", 2 threads")])
def test_threads_are_counted_in_words_that_fit(monkeypatch, threads, said):
    monkeypatch.setattr(
        doctor,
        "environment",
        lambda: dict.fromkeys(("fastarat", "commit", "python", "torch"), "1") | {"threads": threads},
    )
    assert doctor._software()[-1].detail.endswith(said)


def test_an_ffcv_whose_libraries_are_gone_is_broken_with_the_loaders_own_words(tmp_path, monkeypatch):
    (tmp_path / "_libffcv.so").write_bytes(b"not a library")
    monkeypatch.setattr(doctor, "_places", lambda package: [tmp_path])
    finding = doctor._optional("ffcv")
    assert finding.state == "broken" and str(tmp_path) in finding.detail and "install it again" in finding.detail
    (tmp_path / "_libffcv.so").unlink()
    assert doctor._optional("ffcv").state == "ok"


@needs_ffcv
def test_ffcvs_compiled_module_is_where_doctor_looks():
    names = [Path(file).name for file in importlib.metadata.files("ffcv") or [] if file.suffix == ".so"]
    (place,) = doctor._places("ffcv")
    assert names == [path.name for path in place.glob("*.so")] and names


def test_a_step_that_fails_is_broken_with_the_first_line_of_its_reason(monkeypatch):
    def no_step(*_):
        raise AssertionError("libcuda.so cannot found!\nPossible files are located at []")

    monkeypatch.setattr("fastarat.training.build.start_training", no_step)
    finding = doctor._training("cpu")
    assert (finding.subject, finding.state) == ("training step on cpu", "broken")
    assert finding.detail == "libcuda.so cannot found!"


def test_runs_that_are_no_folder_are_broken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "runs"
    assert doctor._runs().state == "ok"  # it will be made
    for make, state in ((place.touch, "broken"), (lambda: place.symlink_to("nowhere"), "broken"), (place.mkdir, "ok")):
        make()
        assert doctor._runs().state == state
        (place.rmdir if state == "ok" else place.unlink)()
