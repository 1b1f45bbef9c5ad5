"""`fastarat data …` as a user types it."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

from fastarat.commands.data import run
from fastarat.common.errors import UserError
from fastarat.data.formats import cifar
from tests.helpers.small_sets import cifar_archive, cifar_files, jpeg, one_line, pack


@pytest.mark.parametrize("args", [[], ["--help"]])
def test_the_overview_names_every_subcommand(args, capsys):
    assert run(args) == 0
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in ("list", "fetch", "prepare", "build", "check", "info"))


@pytest.mark.parametrize("name", ["list", "fetch", "prepare", "build", "check", "info"])
def test_every_subcommand_explains_itself_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        run([name, "--help"])
    assert stop.value.code == 0
    assert f"For example: fastarat data {name}" in capsys.readouterr().out.replace("\n", " ")


def test_an_unknown_subcommand_suggests_the_right_one():
    with pytest.raises(UserError) as error:
        run(["chekc"])
    assert "unknown data command 'chekc'" in one_line(error) and "'check'" in one_line(error)


def test_the_list_shows_known_names_and_what_was_added(photos, root, capsys):
    run(["prepare", str(photos), str(root / "mine")])
    capsys.readouterr()
    assert run(["list"]) == 0
    text = capsys.readouterr().out
    assert "digits" in text and "fastarat data fetch cifar10" in text and str(root / "mine") in text
    run(["list", "--json"])
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == [
        "digits",
        "cifar10",
        "cifar100",
        "mine",
    ]


def test_prepare_shows_what_was_written(photos, tmp_path, capsys):
    assert run(["prepare", str(photos), str(tmp_path / "out"), "--size", "8", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["shape"] == [8, 8, 3] and facts["bytes"] == 10 * 8 * 8 * 3
    assert facts["train"] == {"images": 6, "class_min": 3, "class_max": 3}


def test_info_describes_the_digits(capsys):
    assert run(["info", "digits"]) == 0
    text = capsys.readouterr().out
    assert "1437 images, 139 to 146 a class" in text and "8x8x1" in text and "max_value    16" in text


def test_check_passes_a_whole_set_and_names_every_problem_of_another(photos, tmp_path, capsys):
    assert run(["check", str(photos)]) == 0 and run(["check", "digits"]) == 0
    assert "no problems found" in capsys.readouterr().out
    (photos / "train/cat/0.jpg").write_bytes(b"")
    (photos / "train/cat/1.jpg").write_bytes(b"text")
    (photos / "stray.txt").touch()
    assert run(["check", str(photos)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert run(["check", str(photos), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 3


def test_check_names_a_cut_archive_of_images(photos, tmp_path, capsys):
    archive = pack(photos, tmp_path / "packed.tar.xz", "w:xz")
    archive.write_bytes(archive.read_bytes()[:1000])
    assert run(["check", str(archive)]) == 1
    assert "damaged or cut short" in capsys.readouterr().out


def test_check_compares_an_archive_with_the_published_one(tmp_path, capsys):
    path = cifar_archive(tmp_path / "cifar.tar.gz", "cifar10", cifar_files("cifar10", label=12))
    assert run(["check", str(path)]) == 1
    text = capsys.readouterr().out
    assert "is not the published cifar-10-binary.tar.gz" in text and "label 12" in text


def test_fetch_says_where_the_archive_is(tmp_path, root, monkeypatch, capsys):
    path = cifar_archive(tmp_path / "cifar.tar.gz", "cifar10", cifar_files("cifar10"))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar.ARCHIVES, "cifar10", replace(cifar.ARCHIVES["cifar10"], md5=md5))
    assert run(["fetch", "cifar10", "--source", str(path)]) == 0
    assert "cifar-10-binary.tar.gz, checksum verified" in capsys.readouterr().out
    run(["fetch", "cifar10", "--json"])
    assert json.loads(capsys.readouterr().out)["path"] == str(root / "cifar-10-binary.tar.gz")


def test_help_loads_neither_torch_nor_an_image_library():
    code = "import sys, fastarat.commands.data; print({'torch', 'sklearn', 'PIL'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_build_writes_a_beton_that_info_describes_draws_and_check_finds_whole(photos, tmp_path, capsys):
    out = tmp_path / "photos.beton"
    assert run(["build", str(photos), str(out), "--mode", "jpeg", "--longest-side", "8", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["classes"] == ["cat", "dog"] and facts["stored"] == {"raw": 0, "jpeg": 10}
    assert facts["train"] == {"images": 6, "class_min": 3, "class_max": 3} and facts["sizes"]["max"] == [8, 8]
    assert run(["info", str(out), "--sheet", str(tmp_path / "sheet.png")]) == 0
    text = capsys.readouterr().out
    assert "min 8x8, median 8x8, max 8x8" in text and "0 raw, 10 jpeg" in text
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and len(sheet.convert("RGB").getcolors(10**6) or []) > 100
    assert run(["check", str(out)]) == 0


def test_check_names_the_bad_image_of_a_beton(photos, tmp_path, capsys):
    out = tmp_path / "photos.beton"
    run(["build", str(photos), str(out), "--mode", "raw"])
    capsys.readouterr()
    content = bytearray(out.read_bytes())
    content[2**21 + 3 * 12 * 12 * 2 + 5] ^= 1  # in the third image
    out.write_bytes(content)
    assert run(["check", str(out), "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert "train image 2 " in problem


def test_info_of_photographs_of_several_sizes_gives_their_span(photos, capsys, tmp_path):
    (photos / "train/cat/0.jpg").write_bytes(jpeg(3, 30, 20))
    assert run(["info", str(photos), "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert "min 12x12, median 12x12, max 30x20" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("args", "fix"),
    [
        (["digits", "out.beton"], "not of 8-bit RGB images"),
        (["photos", "out"], "ends with .beton"),
        (["photos", "out.beton", "--quality", "0"], "--quality 0: give 1 to 100"),
        (["photos", "out.beton", "--longest-side", "0"], "--longest-side 0"),
        (["nowhere", "out.beton"], "nowhere"),
        (["mine.beton", "out.beton"], "mine.beton is a .beton already"),
    ],
)
def test_what_cannot_be_built_is_one_line_and_nothing_is_left(photos, tmp_path, monkeypatch, args, fix):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.beton").touch()
    with pytest.raises(UserError) as error:
        run(["build", *args])
    assert fix in one_line(error) and not list(tmp_path.glob("out*"))
