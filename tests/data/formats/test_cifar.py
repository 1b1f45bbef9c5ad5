"""CIFAR is read from the published binary archive, and what is wrong with one is named."""

import gzip
import shutil

import numpy as np
import pytest

from fastarat.common.errors import UserError
from fastarat.data.formats import cifar
from fastarat.data.open import open_dataset
from fastarat.data.tools.fetch import fetch
from tests.helpers.small_sets import cifar_archive, cifar_files, one_line, pack


@pytest.fixture
def archive(root):
    root.mkdir()

    def write(name, files):
        return cifar_archive(root / cifar.ARCHIVES[name].filename, name, files)

    return write


def test_a_fetched_archive_opens_by_name(archive):
    files = cifar_files("cifar10")
    archive("cifar10", files)
    dataset = open_dataset("cifar10")
    assert dataset.name == "cifar10" and dataset.max_value == 255
    assert dataset.train.images.shape == (100, 32, 32, 3) and dataset.test.images.shape == (20, 32, 32, 3)
    assert dataset.classes[3] == "class 3" and len(dataset.classes) == 10
    first = np.frombuffer(files["data_batch_1.bin"], np.uint8)[1:3073].reshape(3, 32, 32)
    assert np.array_equal(dataset.train.images[0], first.transpose(1, 2, 0))
    assert dataset.train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_cifar100_has_its_fine_labels(archive):
    path = archive("cifar100", cifar_files("cifar100", records=120))
    dataset = open_dataset(str(path))
    assert dataset.name == "cifar100" and len(dataset.classes) == 100
    assert dataset.test.labels.max() == 99


def test_a_name_that_was_not_fetched_says_how_to():
    with pytest.raises(UserError) as error:
        open_dataset("cifar100")
    assert "run 'fastarat data fetch cifar100'" in one_line(error)


def test_a_truncated_archive_is_named(archive):
    path = archive("cifar10", cifar_files("cifar10"))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError) as error:
        open_dataset("cifar10")
    assert "cifar-10-binary.tar.gz is damaged or cut short" in one_line(error)


def test_a_missing_batch_is_named(archive):
    files = cifar_files("cifar10")
    del files["data_batch_4.bin"]
    archive("cifar10", files)
    with pytest.raises(UserError) as error:
        open_dataset("cifar10")
    assert "has no data_batch_4.bin" in one_line(error)


def test_a_batch_with_half_a_record_is_named(archive):
    files = cifar_files("cifar10")
    files["test_batch.bin"] = files["test_batch.bin"][:-1]
    archive("cifar10", files)
    with pytest.raises(UserError) as error:
        open_dataset("cifar10")
    assert "test_batch.bin has 61459 bytes, not a multiple of 3073" in one_line(error)


def test_a_label_that_no_class_has_is_named(archive):
    archive("cifar10", cifar_files("cifar10", label=77))
    with pytest.raises(UserError) as error:
        open_dataset("cifar10")
    assert "data_batch_1.bin: label 77 of image 0 is not in 0 … 9" in one_line(error)


@pytest.mark.parametrize("name", cifar.ARCHIVES)
def test_the_version_for_python_is_named_and_never_opened(tmp_path, name):
    archive = cifar.ARCHIVES[name]
    for file in archive.python_files:
        (tmp_path / "files" / archive.python_folder / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / archive.python_folder / file).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    packed = pack(tmp_path / "files", tmp_path / "python.tar.gz", "w:gz")
    shutil.copytree(tmp_path / "files" / archive.python_folder, tmp_path / "renamed")
    for path in (packed, tmp_path / "files" / archive.python_folder, tmp_path / "files", tmp_path / "renamed"):
        with pytest.raises(UserError) as error:
            open_dataset(str(path))
        assert f"is the version of {name} for Python: pickles" in one_line(error)
        assert f"'fastarat data fetch {name}' brings the binary version" in one_line(error)
    with pytest.raises(UserError, match=r"is the version of .* for Python"):
        fetch(name, packed, tmp_path / "root")
    assert packed.exists()


def test_an_unpacked_archive_says_that_the_archive_is_wanted(tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    with pytest.raises(UserError, match=r"is an unpacked cifar-10-binary\.tar\.gz: give the archive itself"):
        open_dataset(str(tmp_path))


def test_a_file_that_is_there_twice_is_named(archive):
    path = archive("cifar10", cifar_files("cifar10"))
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content.rstrip(b"\0") + bytes(-len(content.rstrip(b"\0")) % 512) + content))
    with pytest.raises(UserError, match=r"has batches\.meta\.txt twice"):
        open_dataset("cifar10")
