"""Training through every loader: the same bits, the same order after a resume, an orderly end whatever happens."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastarat.__main__ import main
from fastarat.training.loop import Loop
from tests.helpers.command_line import (
    CHECKOUT,
    assert_same,
    finish,
    metrics,
    newest,
    start,
    state_of,
    stop_after,
    wait_for_checkpoint,
)
from tests.helpers.optional import each_loader, needs_dali, needs_ffcv
from tests.helpers.step_parts import nets_of_one_block

SHARED = CHECKOUT.parent / "shared" / "data"
LOADERS = {"resident": "folder", "plain": "folder", "dali": "folder", "ffcv": "folder.beton"}
FEW = (
    *("--epochs", "2", "--batch", "16", "--attack.steps", "1", "--num-validation-images", "0", "--device", "cpu"),
    *("--evaluation.num-images", "20", "--evaluation.steps", "1", "--loading.workers", "1"),
)
SMALL = ("cifar10-tiny-arat", *FEW)
LONG = (
    *SMALL,
    "--compile",
    "eager",
    "--epochs",
    "400",
    "--evaluation.every-epochs",
    "0",
    "--checkpoint.every-s",
    "0.2",
)


def write_images(folder: Path, size: int, train: int = 40, test: int = 10) -> None:
    """PNGs of coloured noise in two classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in ("noise", "other"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i:02}.png")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Small images as files, and as a .beton beside them; made once."""
    place = tmp_path_factory.mktemp("sources")
    write_images(place / "folder", 32)
    assert main(["data", "build", str(place / "folder"), str(place / "folder.beton"), "--mode", "raw"]) == 0
    return place


@pytest.fixture
def folder(sources, tmp_path) -> Path:
    """A copy of the images, and of the .beton, where the test works."""
    for file in sources.glob("folder.beton*"):
        shutil.copy(file, tmp_path)
    return shutil.copytree(sources / "folder", tmp_path / "folder")


@pytest.fixture
def small_nets():
    with nets_of_one_block():
        yield


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory) -> Path:
    """A run by the resident loader that nothing stopped, made once."""
    run = tmp_path_factory.mktemp("whole") / "run"
    data = ("--data", str(sources / "folder"), "--loader", "resident")
    with nets_of_one_block():
        assert main(["train", *SMALL, *data, "--out", str(run)]) == 0
    return run


def assert_same_training(ours: Path, theirs: Path) -> None:
    """Equal bit by bit in all but the fingerprint, which tells decoded images from stored ones."""
    states = [state_of(newest(run)) for run in (ours, theirs)]
    for state in states:
        del state["fingerprint"], state["seconds"], state["metrics"]
    assert_same(*states)
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


def processes_in(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of) == session and state != "Z":
            found.append(int(entry.name))
    return found


def children_of(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.mark.usefixtures("small_nets")
@pytest.mark.no_cover  # what it runs is counted by others
@pytest.mark.parametrize("loader", each_loader("plain", "dali", "ffcv"))
def test_a_run_stopped_in_mid_epoch_and_resumed_by_another_loader_trains_the_same_bits(
    fastarat, folder, whole, tmp_path, loader, monkeypatch
):
    before = children_of(os.getpid())
    with monkeypatch.context() as patch:
        stop_after(patch, 3)  # of five steps
        stopped = fastarat("train", *SMALL, "--data", LOADERS[loader], "--loader", loader, "--out", "parts")
    assert stopped.code == 128 + signal.SIGINT and "goes on from there" in stopped.err, stopped.err
    assert set(children_of(os.getpid())) <= set(before)
    assert not (tmp_path / "parts/model.safetensors").exists()
    assert fastarat("train", "--resume", "parts", "--data", LOADERS[loader], "--loader", loader).code == 0
    assert_same_training(tmp_path / "parts", whole)


@pytest.mark.slow
def test_a_run_stopped_while_its_images_grow_trains_the_same_bits(fastarat, folder, tmp_path, monkeypatch):
    growing = ("--augment.crop", "resized", "--size", "64", "--augment.start-size", "32", "--augment.growth", "1")
    settings = (*SMALL, *growing, "--epochs", "3", "--data", "folder", "--loader", "plain")
    assert fastarat("train", *settings, "--out", "whole").code == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 12)  # of fifteen, in the last epoch, whose images are larger
        assert fastarat("train", *settings, "--out", "parts").code == 128 + signal.SIGINT
    assert fastarat("train", "--resume", "parts").code == 0
    assert_same_training(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_imagenet_s_recipe_takes_a_step(fastarat, folder, tmp_path):
    sizes = ("--size", "32", "--batch", "40", "--epochs", "1", "--evaluation.num-images", "4", "--device", "cpu")
    result = fastarat("train", "imagenet-resnet50-arat", *sizes, "--data", "folder", "--out", "run")
    assert result.code == 0, result.err
    (line,) = metrics(tmp_path / "run")
    assert line["step"] == 2 and 0 < line["train"]["loss"] < 80  # 30 times an invariance of up to 2, and the rest


@pytest.mark.usefixtures("small_nets")
def test_a_run_goes_on_with_another_loader_but_not_with_other_images(fastarat, folder, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    more = ("train", "--resume", "run", "--epochs", "3", "--data", "folder")
    assert fastarat(*more, "--loader", "plain").code == 0
    write_images(tmp_path / "others", 32, train=39)
    result = fastarat("train", "--resume", "run", "--epochs", "4", "--data", "others", "--loader", "plain")
    assert result.code == 2 and "other images" in result.error


def test_ctrl_c_in_mid_epoch_leaves_a_checkpoint_and_no_process(folder, tmp_path):
    """By the loader that starts processes, which hear it too."""
    process = start("train", *LONG, "--data", "folder", "--loader", "plain", "--out", "run", start_new_session=True)
    wait_for_checkpoint(tmp_path / "run", process, after=0)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of it
    result = finish(process)
    assert result.code == 128 + signal.SIGINT and "goes on from there" in result.err, result.err
    assert "Traceback" not in result.err
    assert processes_in(process.pid) == []


@pytest.mark.usefixtures("small_nets")
def test_a_worker_killed_in_mid_epoch_is_one_line_and_the_run_goes_on_from_its_checkpoint(
    fastarat, folder, tmp_path, monkeypatch
):
    before = children_of(os.getpid())

    def killing(loop: Loop) -> None:
        between(loop)
        workers = set(children_of(os.getpid())).difference(before)
        if loop.training.step == 8 and workers:  # of five in an epoch
            os.kill(workers.pop(), signal.SIGKILL)

    between = Loop._between_steps
    data = ("--data", "folder", "--loader", "plain")
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_between_steps", killing)
        result = fastarat("train", *LONG, *data, "--checkpoint.every-s", "0", "--out", "run")
    assert result.code == 1 and "a process that decodes images has died" in result.error
    assert set(children_of(os.getpid())) <= set(before)
    epochs = state_of(newest(tmp_path / "run"))["epoch"]
    assert fastarat("train", "--resume", "run", "--epochs", epochs).code == 0


@pytest.mark.slow
def test_two_processes_share_the_batches_of_one(fastarat, folder, tmp_path):
    settings = (*SMALL, "--data", "folder", "--loader", "plain", "--sync-bn", "--dtype", "fp64")
    assert fastarat("train", *settings, "--out", "one").code == 0
    result = finish(start("train", *settings, "--procs", "2", "--out", "two"))
    assert result.code == 0, result.err
    one, two = ([line["train"]["loss"] for line in metrics(tmp_path / run)] for run in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-6, abs=1e-6)


@pytest.mark.usefixtures("small_nets")
@needs_dali
def test_a_loader_s_choice_is_printed_and_recorded(fastarat, folder, tmp_path):
    result = fastarat(
        "train",
        *SMALL,
        "--epochs",
        "1",
        "--data",
        "folder",
        "--out",
        "run",
        "--augment.crop",
        "resized",
        "--size",
        "16",
    )
    assert result.code == 0 and "loader: dali (resized crops need the images as they are stored" in result.err
    record = (tmp_path / "run/record.json").read_text()
    assert '"what": "loader"' in record and '"name": "dali"' in record
    result = fastarat("eval", "run", "--num-images", "10", "--steps", "1", "--json")
    assert result.code == 0 and result.json["num_images"] == 10


@pytest.mark.parametrize(
    ("flags", "fix"),
    [
        (("--loader", "ffcv", "--data", "folder"), "'fastarat data build folder OUT.beton' makes one"),
        (("--loader", "dali", "--data", "folder.beton"), "DALI reads image files and shards"),
        (("--augment.crop", "resized", "--data", "folder"), "resized crops need a size: give --size"),
        (
            ("--augment.crop", "resized", "--size", "16", "--loader", "resident"),
            "the resident loader has no resized crops",
        ),
        pytest.param(
            ("--data", "folder", "--loader", "dali", "--loading.decode", "gpu"),
            "needs a CUDA device: leave it out",
            marks=needs_dali,
        ),
        (("--data", "folder", "--loading.workers", "-1"), "loading workers is -1: give 0 to 256"),
        (("--data", "folder", "--augment.start-size", "64"), "--augment.crop resized with it"),
        (("--data", "folder", "--loader", "fcv"), "fcv"),
    ],
)
def test_what_a_loader_cannot_do_is_one_line(fastarat, folder, flags, fix):
    result = fastarat("train", *SMALL, *flags, "--out", "run")
    assert result.code == 2 and fix in result.error


@pytest.mark.slow
@needs_dali
@needs_ffcv
def test_real_images_give_the_same_training_through_every_loader(fastarat, tmp_path):
    if not (SHARED / "cifar10-jpeg.tar.xz").exists():
        pytest.skip("shared/data/cifar10-jpeg.tar.xz is not here")
    import tarfile

    with tarfile.open(SHARED / "cifar10-jpeg.tar.xz") as archive:
        archive.extractall("cifar", filter="data")
    assert fastarat("data", "build", "cifar", "cifar.beton", "--mode", "raw").code == 0
    settings = (*SMALL[:1], "--epochs", "2", "--num-train-images", "1000", "--num-validation-images", "200")
    settings = (*settings, "--attack.steps", "2", "--evaluation.steps", "2")
    for loader, data in LOADERS.items():
        data = data.replace("folder", "cifar")
        result = fastarat("train", *settings, "--data", data, "--loader", loader, "--device", "cpu", "--out", loader)
        assert result.code == 0, result.err
        assert_same_training(tmp_path / loader, tmp_path / "resident")


@pytest.mark.slow
@pytest.mark.parametrize("loader", each_loader("plain", "dali", "ffcv"))
def test_photographs_train_through_every_jpeg_path(fastarat, tmp_path, loader):
    photos = SHARED / "photos-320.tar"
    if not photos.exists():
        pytest.skip("shared/data/photos-320.tar is not here")
    data = photos
    if loader == "ffcv":
        data = tmp_path / "photos.beton"
        assert fastarat("data", "build", photos, data, "--mode", "jpeg").code == 0
    settings = ("imagenette-resnet18-arat", *FEW, "--epochs", "1", "--size", "64")
    result = fastarat("train", *settings, "--data", data, "--loader", loader, "--out", "run")
    assert result.code == 0, result.err
    (line,) = metrics(tmp_path / "run")
    assert line["step"] == 243 // 16
    assert 0 < line["train"]["loss"] < 80  # 30 times an invariance of up to 2, and the rest


@pytest.mark.slow
def test_a_profile_counts_what_is_trained_on_images_of_the_size_that_is_recorded(fastarat, folder, tmp_path):
    small = (*SMALL, "--data", "folder", "--size", "32", "--loader", "resident")
    growing = (*SMALL, "--data", "folder", "--size", "64", "--augment.crop", "resized", "--augment.start-size", "32")
    counts = []
    for name, settings in (("small", small), ("growing", (*growing, "--loader", "plain"))):
        result = fastarat("train", *settings, "--out", name, "--profile", "1")
        assert result.code == 0, result.err
        profile = json.loads((tmp_path / name / "profile" / "profile.json").read_text())
        counts.append([(row["part"], row["gb"], row["gflop"]) for row in profile["parts"]])
    assert counts[0] == counts[1]
