"""A link that leads nowhere, or to itself, is missed where it stands: nothing else is taken in its place."""

import pytest

from fastarat.common.errors import UserError
from fastarat.config.recipes import recipe
from fastarat.data.open import open_dataset, prepare
from fastarat.models.registry import build_plain_model
from fastarat.runs.deployed import images_of, load_deployed
from fastarat.runs.run import Run
from fastarat.runs.weights import Description, save_weights
from tests.helpers.shard_files import samples, tar_shard
from tests.helpers.small_sets import jpeg

SAYS = {"itself": "Too many levels of symbolic links", "nowhere": "is a link to what is not there"}
DIGITS = Description("digits", 10, 1, (8, 8), 16, tuple("0123456789"), "digits", "linf", 45.9, "at")


@pytest.fixture(params=SAYS)
def broken(request):
    """Makes a link of one kind, and gives what is said of it."""

    def make(path):
        path.symlink_to(path.name if request.param == "itself" else "not-there")
        return SAYS[request.param]

    return make


@pytest.fixture
def run(tmp_path):
    """A run with a configuration and a checkpoint's name, and no more."""
    run = Run(tmp_path / "run")
    run.create(recipe("digits-at"), {})
    run.unlock()
    (run.checkpoints / "step-000000001.pt").touch()
    return run


def test_a_run_whose_weights_are_a_broken_link_does_not_give_its_checkpoint(run, broken, capsys):
    says = broken(run.weights_file)
    with pytest.raises(UserError, match=rf"model\.safetensors.*{says}.*--checkpoint last takes the newest checkpoint"):
        load_deployed(run.path)
    assert "has not finished" not in capsys.readouterr().err


def test_a_run_whose_configuration_is_a_broken_link_is_not_an_export(run, broken):
    save_weights(run.weights_file, build_plain_model("digits", 10, 1), DIGITS)
    run.config_file.unlink()
    says = broken(run.config_file)
    for use in (lambda: load_deployed(run.path), lambda: images_of(run.path, DIGITS)):
        with pytest.raises(UserError, match=rf"config\.json.*{says}"):
            use()


def test_an_export_or_a_file_that_is_a_broken_link_is_named(tmp_path, broken):
    broken(tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_deployed(path)


@pytest.mark.parametrize(("name", "use"), [("record.json", Run.sessions), ("metrics.jsonl", Run.metrics)])
def test_a_record_that_is_a_broken_link_is_not_an_empty_one(run, broken, name, use):
    (run.path / name).unlink(missing_ok=True)
    says = broken(run.path / name)
    with pytest.raises(UserError, match=rf"{name}.*{says}"):
        use(run)


def test_a_best_checkpoint_that_is_a_broken_link_is_there(run, broken):
    broken(run.best_file)
    assert run.checkpoint("best") == run.best_file


def test_a_data_set_that_is_a_broken_link_is_not_looked_for_elsewhere(tmp_path, monkeypatch, broken):
    monkeypatch.setenv("FASTARAT_DATA", str(tmp_path / "root"))
    (tmp_path / "root").mkdir()
    prepare("digits", tmp_path / "root" / "photos")
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("photos").train) == 1437
    broken(tmp_path / "photos")
    with pytest.raises(UserError, match=r"cannot read photos: (Too many levels of symbolic links|No such file)"):
        open_dataset("photos")


def test_names_of_classes_that_are_a_broken_link_are_missed(tmp_path, monkeypatch, broken):
    monkeypatch.setenv("FASTARAT_DATA", str(tmp_path / "root"))
    for split in ("train", "test"):
        tar_shard(tmp_path / "shards" / f"{split}-0.tar", samples([(jpeg(i), i % 2) for i in range(4)]))
    open_dataset(str(tmp_path / "shards"))
    broken(tmp_path / "shards" / "classes.txt")
    with pytest.raises(UserError, match=r"classes\.txt"):
        open_dataset(str(tmp_path / "shards"))
