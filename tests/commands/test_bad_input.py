"""Whatever is wrong with what a user gives is said in one line that names the fix, with exit code 2 or 1."""

import errno
import os
from pathlib import Path

import pytest
import torch

from fastarat.runs.checkpoint import load_checkpoint
from tests.helpers.command_line import ONE_EPOCH, TINY, full_disk, newest

HUGE = "99999999999999999999999"
"""fits no int64"""

# What is typed after `fastarat train`, and words of the answer.
SETTINGS = [
    (("digits-arrat",), ("unknown recipe 'digits-arrat'", "'digits-arat'")),
    (("--atack.steps", "3"), ("unknown option --atack.steps", "--attack.steps")),
    (("--method.gama", "3"), ("unknown option --method.gama", "--method.gamma")),
    (("digits-at", "--method.gamma", "3"), ("--method.gamma",)),
    (("--attack.name", "pgdd"), ("unknown attack 'pgdd'", "did you mean 'pgd'")),
    (("--epochs", "many"), ("--epochs", "many")),
    (("--dtype", "fp23"), ("fp23", "bf16")),
    (("--method.stop-gradient", "adversarail"), ("adversarail", "adversarial")),
    (("--attack.eps-255", "-1"), ("attack eps_255 is -1", "0 or more")),
    (("--attack.eps-255", "nan"), ("attack eps_255 is nan", "finite")),
    (("--attack.steps", "0"), ("attack steps is 0", "1 or more")),
    (("--epochs", "0"), ("epochs is 0", "1 or more")),
    (("--epochs", "-3"), ("epochs is -3", "1 or more")),
    (("--batch", "0"), ("batch is 0", "1 or more")),
    (("--batch", "-64"), ("batch is -64", "1 or more")),
    (("--batch", "300"), ("batch 300 is larger than the 256", "smaller --batch")),
    (("--num-train-images", "0"), ("num_train_images is 0", "1 or more")),
    (("--num-train-images", "5000"), ("1437", "--num-train-images")),
    (("--seed", "-1"), ("seed is -1", "0 or more")),
    (("--method.layers", "layer2.0.bn9"), ("unknown layer 'layer2.0.bn9'", "layer2.0.bn1")),
    (("--model.name", "resnet81"), ("unknown model 'resnet81'", "'resnet18'")),
    (("--model.name", "wrn-15-2"), ("wrn-15-2", "6n + 4")),
    (("--data", "cifar10"), ("fastarat data fetch cifar10",)),
    (("--data", "digit"), ("unknown data set 'digit'", "'digits'")),
    (("--data", "no/such/folder"), ("no/such/folder",)),
    (("--gpus", "2", "--procs", "2"), ("exclude each other",)),
    (("--procs", "3"), ("batch 64 does not divide among 3",)),
    (("--procs", "2", "--port", "99999"), ("--port 99999", "65535")),
    (("--averaging.kind", "swa"), ("starts at epoch 76 of 2", "--averaging.start-epoch")),
    (("--schedule.milestones", "5", "3"), ("milestones", "rising")),
    (("--checkpoint.keep", "0"), ("keep is 0", "1 or more")),
    (("--batch", HUGE), (f"batch is {HUGE}", "give a number below 2^32")),
    (("--evaluation.batch", HUGE), (f"evaluation batch is {HUGE}", "give a number below 2^32")),
    (("--from", "nowhere"), ("nowhere", "run directory")),
    (("--batch", "0", "--epochs", "0"), ("epochs is 0", "batch is 0")),
]


@pytest.mark.parametrize(("args", "words"), SETTINGS, ids=[" ".join(args) for args, _ in SETTINGS])
def test_a_wrong_setting_is_named_with_the_right_one_and_leaves_nothing_behind(fastarat, tmp_path, args, words):
    recipe = args[:1] if not args[0].startswith("-") else ()
    result = fastarat("train", *recipe, *TINY, *args[len(recipe) :], "--out", "out")
    assert result.code == 2 and all(word in result.error for word in words), result.error
    assert list(tmp_path.iterdir()) == []


def test_a_radius_in_pixel_units_is_asked_about_by_training_and_evaluation(fastarat, trained):
    asked = "eps is 0.0314/255 of the pixel range, which leaves images all but as they are; if 8/255 is meant, flags"
    result = fastarat("train", "digits-at", *ONE_EPOCH, "--attack.eps-255", "0.0314", "--out", "run")
    assert result.code == 0 and result.err.count(asked) == 1
    result = fastarat("eval", trained, "--num-images", "5", "--eps-255", "0.0314")
    assert result.code == 0 and (result.out.count(asked), result.err.count(asked)) == (1, 1)  # before hours of work too


def test_an_unknown_command_suggests_the_right_one(fastarat):
    result = fastarat("trian")
    assert result.code == 2 and "unknown command 'trian'" in result.error and "'train'" in result.error


def test_a_run_is_never_overwritten(fastarat, trained):
    before = newest(trained).read_bytes()
    result = fastarat("train", *TINY, "--out", trained)
    assert result.code == 2 and "--resume" in result.error and "--out" in result.error
    assert newest(trained).read_bytes() == before


def test_a_place_that_a_run_cannot_have_is_refused_before_images_are_opened(fastarat, trained, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("fastarat.training.agreement.open_for_training", lambda *_: pytest.fail("too late"))
    for out, says in ((trained, "holds a run already"), ("file", "Not a directory"), ("file/run", "Not a directory")):
        assert says in fastarat("train", *TINY, "--out", out).error
    monkeypatch.setattr("os.access", lambda *_: False)
    assert (
        "cannot make the run directory new/run: Permission denied" in fastarat("train", *TINY, "--out", "new/run").error
    )


def test_a_read_only_directory_is_refused(fastarat, tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = fastarat("train", *TINY, "--out", "run")
    assert result.code == 2 and "Permission denied" in result.error and "another --out" in result.error


@pytest.mark.parametrize("writes_before", [0, 1])
def test_a_full_disk_ends_the_run_and_leaves_the_earlier_checkpoint_whole(
    fastarat, tmp_path, monkeypatch, writes_before
):
    save, written = torch.save, []

    def until_full(state, file):
        if len(written) == writes_before:
            Path(file).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(file)
        save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", until_full)
        result = fastarat("train", *ONE_EPOCH, "--out", "run")
    assert result.code == 1 and "No space left" in result.error and "free some space" in result.error
    files = sorted((tmp_path / "run/checkpoints").iterdir())
    assert [file.name for file in files] == ["step-000000000.pt"][:writes_before]
    assert all(load_checkpoint(file)["step"] == 0 for file in files)
    assert fastarat("train", "--resume", "run").code == 0


def test_a_write_that_the_system_cuts_off_ends_the_run_in_one_line(fastarat, tmp_path):
    with full_disk(100_000):
        result = fastarat("train", *ONE_EPOCH, "--out", "run")
    assert result.code == 1 and "cannot write" in result.error and "step-000000000.pt" in result.error
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


def test_a_loss_that_is_not_finite_ends_the_run_and_the_advice_works(fastarat, tmp_path):
    result = fastarat("train", *ONE_EPOCH, "--optimizer.learning-rate", "1e30", "--out", "run")
    assert result.code == 1 and "not finite at step 1" in result.error and "--optimizer.learning-rate" in result.error
    state = load_checkpoint(newest(tmp_path / "run"))
    assert str(newest(Path("run"))) in result.error
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    where = ("--resume", "run") if "--resume" in result.error else ("--from", "run", "--out", "anew")
    assert fastarat("train", *where, "--optimizer.learning-rate", "0.01").code == 0


EVALUATIONS = [
    (("--attack", "pgdd"), ("unknown attack 'pgdd'", "'pgd'")),
    (("--eps-255", "-1"), ("--eps-255 -1", "above 0")),
    (("--eps-255", "0"), ("--eps-255 0", "--attack none")),
    (("--steps", "0"), ("--steps 0", "1 or more")),
    (("--step-255", "0"), ("--step-255 0", "give a number above 0")),
    (("--batch", HUGE), (f"--batch {HUGE}", "give a number below 2^32")),
    (("--num-images", "0"), ("--num-images 0", "1 or more")),
    (("--batch", "0"), ("--batch 0", "1 or more")),
    (("--restarts", "0"), ("--restarts 0", "1 or more")),
    (("--norm", "l2"), ("--eps-255",)),
    (("--data", "nowhere"), ("unknown data set 'nowhere'",)),
    (("--checkpoint", "best"), ("no checkpoint 'best'", "8, 0")),
    (("--checkpoint", "5"), ("no checkpoint '5'", "8, 0")),
    (("--checkpoint", "²"), ("no checkpoint '²'", "8, 0")),
]


@pytest.mark.parametrize(("args", "words"), EVALUATIONS, ids=[" ".join(args) for args, _ in EVALUATIONS])
def test_a_wrong_flag_of_eval_is_named(fastarat, trained, args, words):
    few = () if "--num-images" in args else ("--num-images", "10")
    result = fastarat("eval", trained, *few, *args)
    assert result.code == 2 and all(word in result.error for word in words), result.error


def test_a_data_set_that_the_model_was_not_made_for_is_refused(fastarat, trained, tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / split / name / "0.png")
    result = fastarat("eval", trained, "--data", "pictures")
    assert result.code == 2 and "2 classes of 3x8x8" in result.error and "10 of 1x8x8" in result.error


def test_another_recipe_than_that_of_the_run_is_refused(fastarat, trained):
    result = fastarat("train", "digits-at", "--from", trained, "--out", "out")
    assert result.code == 2 and "digits-at" in result.error and "leave the recipe out" in result.error


def test_a_recipe_that_is_asked_to_be_shown_is_suggested(fastarat):
    result = fastarat("recipes", "digits-aart")
    assert result.code == 2 and "'digits-arat'" in result.error
