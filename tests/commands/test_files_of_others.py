"""No command overwrites, follows or gives away what it did not make."""

import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastarat.commands.analyze import FILES, _make
from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import write_text
from fastarat.config import to_json
from fastarat.config.data import ExtraConfig
from fastarat.config.recipes import recipe
from fastarat.data.formats.prepared import write
from fastarat.data.images.dataset import from_splits
from fastarat.data.open import open_dataset
from fastarat.models.published_names import published_model, split_layers
from fastarat.models.registry import build_model
from fastarat.runs.checkpoint import save_checkpoint
from fastarat.runs.run import Run
from tests.helpers.command_line import ONE_EPOCH, full_disk, newest


def mine(folder: str, *names: str) -> dict[Path, bytes]:
    """A folder with somebody's files of these names."""
    files = {Path(folder) / name: f"my {name}".encode() for name in names}
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files


def everything_in(folder: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["README.md", "model.py", "model.safetensors"])
def test_export_touches_nothing_where_one_of_its_files_is_there(fastarat, one_epoch, name):
    files = mine("project", name)
    assert name in fastarat("export", one_epoch, "--out", "project").error
    assert everything_in("project") == files


@pytest.mark.parametrize("name", ["metrics.jsonl", "notes.md", "checkpoints/step-000000001.pt", "train/cat/1.png"])
def test_train_touches_nothing_in_a_folder_that_is_in_use_and_no_run(fastarat, name):
    files = mine("project", name)
    result = fastarat("train", "digits-at", *ONE_EPOCH, "--out", "project")
    assert result.code == 2 and f"project holds {name.split('/')[0]} and is no run" in result.error
    assert everything_in("project") == files


def test_a_new_run_may_find_logs_and_what_a_killed_one_had_begun_with(tmp_path):
    mine("run", "slurm-1.out", "log.txt")
    Path("run/.lock").touch()
    Path("run/checkpoints").mkdir()
    Run(Path("run")).create(recipe("digits-at"), {})
    assert Path("run/config.json").exists()


@pytest.mark.parametrize("out", ["photos/run", "photos/train/cat/run", "elsewhere/../photos/run"])
def test_nothing_is_written_into_a_data_set(fastarat, one_epoch, out):
    Path("elsewhere").mkdir()
    before, spoilt = (
        mine("photos", *(f"{s}/{c}/1.png" for s in ("train", "val") for c in ("cat", "dog"))),
        "lies in the data set photos, which it would spoil",
    )
    assert spoilt in fastarat("data", "prepare", "photos", out).error
    assert spoilt in fastarat("data", "build", "photos", f"{out}.beton").error
    config = replace(recipe("digits-at"), data="photos")
    with pytest.raises(UserError, match=spoilt):
        Run(Path(out)).create(config, {})
    with pytest.raises(UserError, match=spoilt):
        Run(Path(out)).create(replace(config, data="digits", extra=ExtraConfig(data="photos")), {})
    Path("a run").mkdir()
    shutil.copy(one_epoch / "model.safetensors", "a run")
    Path("a run/config.json").write_text(to_json(config))
    assert spoilt in fastarat("export", "a run", "--out", out).error
    assert everything_in("photos") == before and not any(path.name == "run" for path in Path("photos").rglob("*"))


def test_convert_never_overwrites_what_it_reads(fastarat):
    net = build_model("wrn-10-1", 10)
    tensors = published_model(net.state_dict(), split_layers(net))
    Path("published").mkdir()
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, "published/model.safetensors")
    before = everything_in("published")
    result = fastarat("convert", "published/model.safetensors", "--out", "published")
    assert result.code == 2 and "another --out" in result.error and everything_in("published") == before


def test_an_analysis_replaces_analyses_alone():
    files = mine("project", "gallery.png", ".analysis")
    with pytest.raises(UserError, match=r"gallery\.png that is no analysis"):
        _make(Path("project"), is_own=False)
    assert everything_in("project") == files
    mine("earlier", *FILES[1:], ".analysis")
    Path("earlier/analysis.json").write_text('{"run": "a", "states": [], "summary": {}}')
    _make(Path("earlier"), is_own=False)
    assert Path("earlier/.analysis").exists()


WRITERS = {
    "eval --out": (("eval", "RUN", "--attack", "none", "--num-images", "10"), "--out", "result.json"),
    "eval --save": (("eval", "RUN", "--steps", "1", "--num-images", "10"), "--save", "broken.npz"),
    "data info --sheet": (("data", "info", "digits"), "--sheet", "sheet.png"),
    "report --out": (("report", "RUN", "--num-images", "0"), "--out", "page.html"),
}


@pytest.mark.parametrize(("args", "flag", "name"), WRITERS.values(), ids=WRITERS)
def test_a_file_is_written_in_the_place_of_an_earlier_one_of_its_kind_alone(fastarat, one_epoch, args, flag, name):
    run = shutil.copytree(one_epoch, "run")
    command = [run if arg == "RUN" else arg for arg in args]
    for _ in range(2):
        assert fastarat(*command, flag, name).code == 0
    taken = Path(f"mine{Path(name).suffix}")
    taken.write_text('{"my": "notes"}')
    result = fastarat(*command, flag, taken)
    assert result.code == 2 and f"{taken} is a file of another kind, and stays as it is" in result.error
    assert taken.read_text() == '{"my": "notes"}'
    taken.write_text("")  # as mktemp makes one: nothing is lost
    assert fastarat(*command, flag, taken).code == 0
    taken.unlink()
    os.mkfifo(taken)
    assert f"{taken} is no file but a FIFO" in fastarat(*command, flag, taken).error
    taken.unlink()
    taken.mkdir()
    assert f"{taken} is a directory: give a file" in fastarat(*command, flag, taken).error
    assert "there is no directory deep; make it first" in fastarat(*command, flag, Path("deep") / name).error


@pytest.mark.parametrize("kind", ["link", "dangling link", "file", "fifo", "folder"])
def test_what_lies_in_the_place_of_a_lock_is_left_alone(fastarat, one_epoch, tmp_path, kind):
    run = shutil.copytree(one_epoch, tmp_path / "run")
    (run / ".lock").unlink()
    (tmp_path / "victim").write_text("precious")
    make = {
        "link": lambda lock: lock.symlink_to("../victim"),
        "dangling link": lambda lock: lock.symlink_to("../new"),
        "file": lambda lock: lock.write_text("precious"),
        "fifo": os.mkfifo,
        "folder": Path.mkdir,
    }
    make[kind](run / ".lock")
    result = fastarat("train", "--resume", run, "--epochs", "2")
    assert result.code == 2 and ".lock is no lock of fastarat's" in result.error
    assert (tmp_path / "victim").read_text() == "precious" and not (tmp_path / "new").exists()
    assert kind != "file" or (run / ".lock").read_text() == "precious"


def test_links_in_the_place_of_outputs_are_not_followed(fastarat, one_epoch, with_curves, tmp_path):
    run = shutil.copytree(one_epoch, tmp_path / "run")
    victims = mine("victims", "metrics.jsonl", "record.json", "model.safetensors", "learning_curves.png")
    shutil.copy(run / "record.json", "victims")
    victims = everything_in("victims")
    for path in victims:
        (run / path.name).unlink()
        (run / path.name).symlink_to(path.absolute())
    assert fastarat("train", "--resume", run, "--epochs", "2").code == 0
    assert everything_in("victims") == victims
    assert not any((run / path.name).is_symlink() for path in victims)


def test_an_export_to_a_full_disk_is_one_line_and_leaves_nothing(fastarat, one_epoch):
    with full_disk():
        result = fastarat("export", one_epoch, "--out", "exported")
    assert result.code == 1 and "cannot write exported/model.safetensors" in result.error
    assert not Path("exported").exists()


def test_a_checkpoint_on_a_full_disk_is_one_line_and_the_old_one_stays():
    path = Path("step.pt")
    path.write_bytes(b"the old one")
    with full_disk(), pytest.raises(WorkError, match=r"^cannot write step\.pt: [^\n]+$"):
        save_checkpoint(path, {"weights": torch.ones(10_000)})
    assert everything_in(".") == {path: b"the old one"}


def test_the_umask_decides_who_may_read(fastarat, one_epoch):
    before = os.umask(0o027)
    try:
        assert fastarat("export", one_epoch, "--out", "exported").code == 0
        write_text(Path("exported/more"), "")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in Path("exported").iterdir()} == {0o640}


@pytest.fixture
def secret(fastarat) -> Path:
    """A run on somebody's own images, which lie in a folder that nobody should hear of."""
    digits = open_dataset("digits")
    Path("secret-project").mkdir()
    write(
        from_splits("pets", digits.decoded_train, digits.test, digits.classes, 16), Path("secret-project/pets"), "test"
    )
    images = ("--data", "secret-project/pets", "--loader", "resident")
    assert fastarat("train", "digits-at", *ONE_EPOCH, *images, "--out", "my run").code == 0
    return Path("my run")


def test_an_export_names_the_data_and_not_where_they_lay_nor_the_machine(fastarat, secret):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    assert fastarat("export", secret, "--out", "exported", "--onnx").code == 0
    for path, content in everything_in("exported").items():
        for word in ("secret-project", str(Path.cwd()), str(Path(torch.__file__).parent), "site-packages", "my run"):
            assert word.encode() not in content, f"{path} tells of {word}"
    assert Path("exported/README.md").read_text().startswith("# digits, at, pets\n")
    assert not [path for path in secret.iterdir() if socket.gethostname() in path.name]


def test_a_run_on_a_relative_path_is_found_from_any_folder_and_its_advice_can_be_pasted(fastarat, secret, monkeypatch):
    home = secret.absolute()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert fastarat("eval", home, "--attack", "none", "--json").code == 0
    result = fastarat("train", "--resume", home, "--epochs", "2")
    assert result.code == 0 and f"\"fastarat eval '{home}'\" measures it" in " ".join(result.err.split())


def test_a_finished_run_keeps_its_configuration(fastarat, one_epoch, tmp_path):
    run = shutil.copytree(one_epoch, tmp_path / "run")
    before = (run / "config.json").read_bytes()
    result = fastarat("train", "--resume", run, "--optimizer.learning-rate", "0.5")
    assert result.code == 2 and "has finished its 1 epochs: give more --epochs" in result.error
    assert (run / "config.json").read_bytes() == before
    assert fastarat("train", "--resume", run).code == 0


def test_files_that_are_named_almost_as_a_runs_are_left_alone(fastarat, one_epoch, tmp_path):
    run = shutil.copytree(one_epoch, tmp_path / "run")
    (run / "checkpoints/history").mkdir()
    others = [run / "checkpoints" / name for name in ("step-final.pt", "step-²².pt", "history/epoch-best.pt")]
    for path in others:
        shutil.copy(newest(one_epoch), path)
    assert fastarat("train", "--resume", run, "--epochs", "2").code == 0
    assert all(path.exists() for path in others)
    for asked in ("7", "9" * 5000, "²", "final"):
        result = fastarat("eval", run, "--checkpoint", asked)
        assert result.code == 2 and "has no checkpoint" in result.error and len(result.error) < 500


@pytest.mark.parametrize("path", ["~nosuchuser/photos", "~nosuchuser"])
def test_a_home_that_is_nobodys_is_one_line(fastarat, monkeypatch, path):
    result = fastarat("data", "info", path)
    assert result.code == 2 and "~nosuchuser is nobody's home" in result.error
    monkeypatch.setenv("FASTARAT_DATA", path)
    assert "~nosuchuser is nobody's home" in fastarat("data", "list").error
