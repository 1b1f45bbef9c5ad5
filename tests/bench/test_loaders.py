"""The loader benchmark: the same images for all, right before fast, in turns, and every row says what it was."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import tables
from bench.common.inputs import random_images
from bench.common.rows import read_rows
from bench.loaders import (
    __main__ as loaders,
)
from bench.loaders import (
    check as loaders_check,
)
from bench.loaders import (
    cpu_time as loaders_cpu,
)
from bench.loaders import (
    feeds as loaders_feeds,
)
from bench.loaders import (
    measure as loaders_run,
)
from bench.loaders import (
    report as loaders_report,
)
from bench.loaders import (
    training as loaders_training,
)
from bench.loaders.cases import Case, photo_cases, photo_plan, small_cases, small_plan
from bench.loaders.check import MOST_KEPT, differences
from bench.loaders.cpu_time import cpu_seconds, descendants
from bench.loaders.in_a_process import Mark, speed
from bench.loaders.measure import Effort, Failed, OutOfTime, measure, rows_of
from bench.loaders.stores import Stores, photo_stores, random_photos, small_stores
from fastarat.data.formats.find import find
from fastarat.data.images.decoding import pixels_of
from tests.helpers.optional import each_loader, needs_dali, needs_ffcv

EVERY = {"benchmark", "dataset", "device", "gpu", "driver", "torch", "triton", "commit", "date", "config", "correct"}
LOADERS = {"loader", "workers", "stage", "images_per_s", "cpu_s_per_1000", "waiting_share", "size", "stored"}
ALL = {("arrays", "raw"), ("files", "png"), ("beton", "raw"), ("files", "jpeg"), ("beton", "jpeg")}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Stores:
    """Forty images of CIFAR's size in every form."""
    return small_stores(random_images("cifar10", 40), ALL, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Stores:
    """Smooth JPEGs of different sizes in a tar and a .beton."""
    folder = tmp_path_factory.mktemp("photos")
    random_photos(folder / "photos.tar", 24)
    return photo_stores(folder / "photos.tar", ALL, folder)


@pytest.fixture(autouse=True)
def data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTARAT_DATA", str(tmp_path / "root"))


def case(cases: list[Case], loader: str, stored: str) -> Case:
    (found,) = (case for case in cases if (case.loader, case.stored) == (loader, stored))
    return found


@pytest.fixture
def of_small(small) -> list[Case]:
    return small_cases(small, small_plan("cpu", True, 32), [1], "cpu")


@pytest.fixture
def of_photos(photos) -> list[Case]:
    return photo_cases(photos, photo_plan("cpu", True), [1], "cpu")


# ---- the same images ------------------------------------------------------------------------------


def test_every_form_holds_the_same_images_in_the_same_order(small, photos):
    for stores, count in ((small, 3), (photos, 2)):
        sets = {shape: find(str(path)).open_stored().train for shape, path in stores.paths.items()}
        assert len(sets) == count
        reference = find(str(stores.reference)).open_stored().train
        for shape, images in sets.items():
            np.testing.assert_array_equal(images.labels, reference.labels)
            for i in range(len(images)):
                size = tuple(map(int, images.sizes[i]))
                box = np.array([0, 0, *size])
                right = pixels_of(reference.file(i), box, size)
                np.testing.assert_array_equal(pixels_of(images.file(i), box, size), right, err_msg=str(shape))
    jpegs = [find(str(path)).open_stored().train for path in photos.paths.values()]
    assert all(jpegs[0].read(i) == jpegs[1].read(i) for i in range(len(jpegs[0]))), "a JPEG was encoded anew"


def test_random_pixels_keep_their_labels(small):
    dataset, images = random_images("cifar10", 40).decoded_train, find(str(small.reference)).open_stored().train
    label_of = {pixels.tobytes(): label for pixels, label in zip(dataset.images, dataset.labels, strict=True)}
    assert [label_of[images.read(i)] for i in range(40)] == list(images.labels)


# ---- right before fast ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loader", "stored"),
    [
        *(("resident", "raw"), ("plain", "raw"), ("plain", "png")),
        pytest.param("ffcv", "raw", marks=needs_ffcv),
        pytest.param("dali", "png", marks=needs_dali),
    ],
)
def test_pixels_without_loss_are_exact(of_small, loader, stored):
    found = differences(case(of_small, loader, stored).form)
    assert found.exact == 0 and found.problem is None


@pytest.mark.parametrize("loader", each_loader("plain", "ffcv", "dali"))
def test_jpegs_differ_by_decoder_and_filter_alone(of_photos, loader):
    found = differences(case(of_photos, loader, "jpeg").form)
    assert found.problem is None and found.exact is None
    assert found.kept is not None and found.resized is not None
    assert (found.kept == 0) == (loader != "ffcv"), "FFCV takes libjpeg's faster ways"


class Wrong:
    """A decoder that gives pixels which another has spoiled."""

    def __init__(self, decoder, spoil):
        self.decoder, self.spoil = decoder, spoil

    def decode(self, requests):
        return (self.spoil(pixels) for pixels in self.decoder.decode(requests))

    def close(self):
        self.decoder.close()


SPOILS = {
    "one level": lambda pixels: pixels ^ 1,
    "one pixel to the side": lambda pixels: pixels.roll(1, 2),
    "mirrored": lambda pixels: pixels.flip(2),
    "two images swapped": lambda pixels: pixels.roll(1, 0),
    "blue for red": lambda pixels: pixels.flip(3),
}


def spoiled(monkeypatch, spoil):
    build = loaders_feeds.build_decoder
    monkeypatch.setattr(loaders_feeds, "build_decoder", lambda *given, **where: Wrong(build(*given, **where), spoil))


@pytest.mark.parametrize("name", SPOILS)
def test_any_other_pixels_are_wrong(of_small, of_photos, name, monkeypatch):
    spoiled(monkeypatch, SPOILS[name])
    problem = differences(case(of_small, "plain", "raw").form).problem
    assert problem is not None and problem.startswith("WRONG: pixels differ by up to")
    if name != "one level":
        problem = differences(case(of_photos, "plain", "jpeg").form).problem
        assert problem is not None and "from PIL's" in problem and f"allowed: {MOST_KEPT:g}" in problem


def test_another_shape_other_labels_or_no_batch_are_wrong(of_small, of_photos, monkeypatch):
    form = case(of_small, "plain", "raw").form
    with pytest.raises(ValueError, match="WRONG: labels are not those of the files"):
        differences(replace(form, reference=case(of_photos, "plain", "jpeg").form.path))
    spoiled(monkeypatch, lambda pixels: pixels[:, :-1])
    with pytest.raises(ValueError, match=r"WRONG: a batch is torch.uint8 \(16, 31, 32, 3\)"):
        differences(form)
    with pytest.raises(ValueError, match="WRONG: there is no batch"):
        loaders_check._compare(iter(()), form.images())


# ---- what is counted ------------------------------------------------------------------------------


BUSY = (
    "import os, sys, time\n"
    "child = os.fork() == 0\n"
    "while time.process_time() < 0.2: pass\n"
    "if child: os.write(1, b'x')\n"
    "sys.stdin.read()\n"
)


def test_cpu_time_is_that_of_all_processes_living_or_ended():
    before, own = cpu_seconds(), time.process_time()

    def others() -> float:
        return cpu_seconds() - before - (time.process_time() - own)

    process = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdin is not None
    process.stdout.read(1)
    deadline = time.monotonic() + 60
    while others() < 0.39:  # the parent and its child
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    assert process.pid in descendants(os.getpid())
    process.stdin.close()
    process.wait()
    process.stdout.close()
    assert process.pid not in descendants(os.getpid())
    # The grandchild may be left to the system, which does not tell its time.
    assert others() >= 0.19


def test_cpu_time_of_less_than_a_tick_is_counted():
    for _ in range(50):
        before, begun = cpu_seconds(), time.process_time()
        sum(range(1000))
        least = time.process_time() - begun
        assert 0 < least <= cpu_seconds() - before
        begun = time.process_time()
        assert begun <= loaders_cpu.own_seconds(os.getpid()) <= time.process_time()


def test_a_process_that_has_ended_took_no_more():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert loaders_cpu.own_seconds(process.pid) == 0


def test_a_loader_is_timed_over_whole_epochs(of_small, monkeypatch):
    epochs = []
    monkeypatch.setattr(
        loaders_feeds.ResidentFeed,
        "epoch",
        lambda self, number, real=loaders_feeds.ResidentFeed.epoch: epochs.append(number) or real(self, number),
    )
    found = speed(case(of_small, "resident", "raw").form, 0.01)
    assert found["first"]["images"] == 40 and found["first"]["first_batch_s"] > 0
    assert epochs == list(range(1, len(epochs) + 1)) and found["steady"]["images"] == 40 * (len(epochs) - 1) > 0
    assert all(found[stage]["images_per_s"] > 0 for stage in ("first", "steady"))


def test_a_loader_is_timed_over_an_epoch_at_least(of_small):
    assert speed(case(of_small, "resident", "raw").form, 0.0)["steady"]["images"] == 40


def test_images_per_second_are_those_since_the_mark(monkeypatch):
    marks = iter([(10.0, 3.0), (12.0, 3.5)])
    monkeypatch.setattr(Mark, "now", classmethod(lambda cls: cls(*next(marks))))
    found = Mark.now().since(1000)
    assert found == {"images": 1000, "images_per_s": 500, "cpu_s_per_1000": 0.5}


def test_waiting_is_the_time_between_a_steps_end_and_the_next_ones_start(monkeypatch):
    class State:
        def advance(self, step, batch):
            seen.append(batch)

    seen, times = [], iter([0.0, 1.0, 4.0, 4.5, 8.0])  # waits 1, steps 3, waits 0.5, steps 3.5
    monkeypatch.setattr(loaders_training, "mark", lambda on_gpu: next(times))
    found = loaders_training._steps(State(), None, iter("ab"), 2, False)  # type: ignore[arg-type]
    assert found == {"ms": 8000, "waiting_ms": 1500} and seen == ["a", "b"]


@pytest.mark.parametrize(("loader", "stored"), [("resident", "raw"), ("plain", "png")])
def test_a_training_is_fed_by_the_loader_and_says_what_it_is(of_small, loader, stored):
    fed = case(of_small, loader, stored).fed
    assert fed is not None
    found = loaders_training.training(fed, 0.01)
    assert (found["model"], found["batch"], found["attack_steps"]) == ("tiny", 8, 1)
    assert found["steps"] >= 4 and found["images"] == 8 * found["steps"]
    assert 0 < found["waiting_share"] < 1 and found["cpu_s_per_1000"] > 0


# ---- rows -----------------------------------------------------------------------------------------


def results(speed: float, cpu: float, share: float | None = None) -> dict:
    stage = {"images": 8, "images_per_s": speed, "cpu_s_per_1000": cpu}
    found = {"first": {**stage, "first_batch_s": 0.5}, "steady": stage}
    training = {**stage, "waiting_share": share, "ms_a_step": 3.0, "model": "tiny", "batch": 8, "attack_steps": 1}
    return found | ({"training": training} if share is not None else {})


class Fake:
    """Stands in for the processes: a loader's results, turn by turn, or what is wrong with it."""

    def __init__(self, turns: dict, wrong: dict[str, str] | None = None):
        self.turns, self.wrong, self.order = {k: list(v) for k, v in turns.items()}, wrong or {}, []

    def run(self, task, form):
        name = (form.loader, Path(form.path).name)
        if task == "check":
            return {"problem": self.wrong.get(form.loader), "differences": {"exact": 0.0}}
        self.order.append((task, *name))
        found = self.turns[name][0]
        if isinstance(found, Exception):
            raise found
        if task == "speed":
            return {stage: value for stage, value in found.items() if stage != "training"}
        return self.turns[name].pop(0)["training"]


@pytest.fixture
def fake(monkeypatch):
    def install(turns, wrong=None) -> Fake:
        found = Fake(turns, wrong)
        monkeypatch.setattr(loaders_run, "Processes", lambda cache, effort: found)
        return found

    return install


EFFORT = Effort(2, 0.1, float("inf"))


def test_loaders_take_turns_and_are_compared_turn_by_turn(of_small, fake, tmp_path):
    names = [("plain", "arrays"), ("ffcv", "raw.beton"), ("plain", "png.tar")]
    faked = fake(
        {
            names[0]: [results(100, 2.0, 0.1), results(200, 1.0, 0.3)],
            names[1]: [results(300, 1.0, 0.02), results(400, 0.1, 0.04)],
            names[2]: [results(50, 4.0, 0.5), results(50, 4.0, 0.5)],
        }
    )
    cases = [case(of_small, *key) for key in (("plain", "raw"), ("ffcv", "raw"), ("plain", "png"))]
    entries = measure(cases, tmp_path, EFFORT, lambda share: None)
    turn = [(task, *name) for name in names for task in ("speed", "training")]
    back = [(task, *name) for name in names[::-1] for task in ("speed", "training")]
    assert faked.order == turn + back
    rows = {(row["loader"], row["stored"], row["stage"]): row for row in rows_of(entries, {})}
    assert len(rows) == 9 and all(row["correct"] and row["turns"] == 2 for row in rows.values())
    steady = rows["ffcv", "raw", "steady"]
    assert (steady["images_per_s"], steady["cpu_s_per_1000"]) == (350, 0.55)
    assert steady["ratios"]["images_per_s"] == {"low": 2.0, "median": 2.5, "high": 3.0}
    assert steady["ratios"]["images_per_cpu_s"] == {"low": 2.0, "median": 6.0, "high": 10.0}
    assert rows["ffcv", "raw", "training"]["waiting_share"] == 0.03
    assert rows["ffcv", "raw", "first"]["first_batch_s"] == 0.5
    assert rows["plain", "png", "steady"]["ratios"] == {} == rows["plain", "raw", "steady"]["ratios"]


def test_a_turn_without_cpu_time_has_no_ratio_of_it(of_small, fake, tmp_path):
    fake({("plain", "arrays"): [results(100, 2.0, 0.1)] * 2, ("ffcv", "raw.beton"): [results(300, 0.0, 0.1)] * 2})
    cases = [case(of_small, "plain", "raw"), case(of_small, "ffcv", "raw")]
    entries = measure(cases, tmp_path, EFFORT, lambda share: None)
    (row,) = [row for row in rows_of(entries, {}) if (row["loader"], row["stage"]) == ("ffcv", "steady")]
    assert row["ratios"].keys() == {"images_per_s"}


def test_a_loader_that_is_wrong_or_fails_gets_no_speed(of_small, fake, tmp_path):
    twice = [results(100, 1.0, 0.1)] * 2
    faked = fake({("plain", "arrays"): twice, ("dali", "png.tar"): [Failed("killed")]}, {"ffcv": "WRONG: all"})
    cases = [case(of_small, *key) for key in (("plain", "raw"), ("ffcv", "raw"), ("dali", "png"))]
    rows = rows_of(measure(cases, tmp_path, EFFORT, lambda share: None), {})
    assert not [task for task in faked.order if task[1] == "ffcv"], "it was timed"
    for row in rows:
        good = row["loader"] == "plain"
        assert row["correct"] == good and (row["images_per_s"] is not None) == good
    assert {row["error"] for row in rows} == {None, "WRONG: all", "killed"}
    assert len(rows) == 9


def test_what_the_budget_does_not_see_twice_has_no_row(of_small, fake, tmp_path):
    once = [results(100, 1.0, 0.1)]
    fake({("plain", "arrays"): once * 2, ("plain", "png.tar"): [*once, OutOfTime()]})
    cases = [case(of_small, "plain", "raw"), case(of_small, "plain", "png")]
    entries = measure(cases, tmp_path, Effort(3, 0.1, float("inf")), lambda share: None)
    assert rows_of(entries, {}) == []
    entries[0].turns["steady"] *= 2
    assert [row["stage"] for row in rows_of(entries, {})] == ["steady"]


def test_a_process_that_ends_badly_or_late_says_so(of_small, tmp_path):
    form = case(of_small, "plain", "raw").form
    processes = loaders_run.Processes(tmp_path, Effort(2, 0.1, float("inf")))
    with pytest.raises(Failed, match=r"no file or folder .*nowhere"):
        processes.run("speed", replace(form, path=str(tmp_path / "nowhere")))
    late = loaders_run.Processes(tmp_path, Effort(2, 0.1, time.monotonic()))
    with pytest.raises(OutOfTime):
        late.run("check", form)


# ---- the command ----------------------------------------------------------------------------------


SMOKE = ["--device", "cpu", "--smoke", "--kinds", "small", "--stored", "raw", "--loaders", "plain", "resident"]


@pytest.fixture
def measured(fake):
    turns = [results(100, 1.0, 0.1)] * 4
    return fake({("plain", "arrays"): turns, ("resident", "arrays"): turns})


def test_the_command_writes_a_row_a_stage_and_prints_a_table(measured, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loaders_report.stdout, "_width", 250)
    path = tmp_path / "rows.jsonl"
    assert loaders.main([*SMOKE, "--rows", str(path)]) == 0
    rows = list(read_rows(path))
    assert [(row["loader"], row["stage"]) for row in rows] == [
        (loader, stage) for loader in ("resident", "plain") for stage in ("first", "steady", "training")
    ]
    for row in rows:
        assert row.keys() >= EVERY | LOADERS and row["benchmark"] == "loaders" and row["dataset"] == "random"
        assert str(tmp_path) not in json.dumps(row) and "/tmp" not in json.dumps(row)
    assert "random at 32x32, whole images; fed training: tiny" in capsys.readouterr().out


def test_resume_leaves_out_what_has_rows_of_this_commit(measured, tmp_path, capsys, monkeypatch):
    path = tmp_path / "rows.jsonl"
    monkeypatch.setenv("FASTARAT_COMMIT", "0123456789ab")
    arguments = [*SMOKE, "--rows", str(path), "--resume"]
    assert loaders.main(arguments) == 0
    before = list(read_rows(path))
    known = before[0]["commit"] is not None
    assert loaders.main([*arguments, "--json"]) == 0
    if known:
        assert list(read_rows(path)) == before and "has rows of this commit" in capsys.readouterr().err
    path.write_text("".join(json.dumps({**row, "correct": False}) + "\n" for row in before))
    measured.turns = {name: [results(100, 1.0, 0.1)] * 2 for name in measured.turns}
    assert loaders.main(arguments) == 0
    assert len(list(read_rows(path))) == 2 * len(before), "a wrong row is no speed"


def test_a_wrong_loader_is_exit_code_1(fake, capsys):
    fake({}, {"plain": "WRONG: pixels differ", "resident": "WRONG: pixels differ"})
    assert loaders.main(SMOKE) == 1
    assert "plain: WRONG: pixels differ" in capsys.readouterr().out


def test_photographs_that_are_not_given_are_said(capsys):
    assert loaders.main(["--device", "cpu", "--kinds", "photos"]) == 0
    found = capsys.readouterr()
    assert "give --photos PATH" in found.err and "Nothing was measured" in found.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--loaders", "ffvc"], "Did you mean 'ffcv'"),
        (["--workers", "0"], "give a number above 0"),
        (["--repeats", "1"], "one turn has no spread"),
        (["--seconds", "0"], "give a number above 0"),
        (["--budget", "nan"], "give a finite number"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "digits"], "not of square 8-bit RGB images"),
        (["--photos", "nowhere.tar"], "nowhere.tar"),
        (["--rows", "/dev/null/rows"], "cannot write --rows"),
        pytest.param(
            ["--device", "cuda"],
            "this machine has no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_flag_is_one_line_and_exit_code_2(flags, words, capsys):
    assert loaders.main(["--device", "cpu", "--smoke", *flags]) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and not out


# ---- tables ---------------------------------------------------------------------------------------


def shown(loader: str, stage: str, date: str = "2", **more) -> dict:
    given = {"loader": loader, "stage": stage, "date": date, "stored": "jpeg", "workers": 1, "decode": "cpu"}
    place = {
        "dataset": "photos",
        "size": 224,
        "crop": "resized",
        "gpu": None,
        "threads": 1,
        "torch": "2",
        "commit": "c",
    }
    facts = {"correct": True, "error": None, "differences": {"exact": None, "kept": 0.0, "resized": 1.25}}
    speeds = {"images_per_s": 1234.5, "cpu_s_per_1000": 0.5, "ratios": {}, "first_batch_s": None}
    return {**given, **place, **facts, **speeds, "waiting_share": None, **more}


def test_a_line_of_the_table_is_a_loader_with_all_its_stages():
    ratios = {"images_per_s": {"low": 0.9, "median": 1.0, "high": 1.1}}
    ratios["images_per_cpu_s"] = {"low": 1.6, "median": 1.7, "high": 1.8}
    training = {"waiting_share": 0.0123, "images_per_s": 9.5, "model": "resnet18", "batch": 16, "attack_steps": 3}
    rows = [
        shown("ffcv", "first", images_per_s=99.4, first_batch_s=1.26),
        shown("ffcv", "steady", ratios=ratios),
        shown("ffcv", "training", **training),
        shown("dali", "steady", decode="gpu", correct=False, error="WRONG: off by 9"),
    ]
    columns, cells = loaders_report.table(rows)
    assert [len(line) for line in cells] == [len(columns)] * 2
    assert cells[0][:4] == ["dali, GPU", "jpeg", "1", "no speed: WRONG"]
    first = ["ffcv", "jpeg", "1", "99", "1.3", "1,234", "0.500"]
    assert cells[1] == [*first, "1.70 (1.60-1.80)", "unresolved (0.90-1.10)", "1.23", "0.00, 1.25"]
    assert "resnet18, batch 16, 3 attack steps, 9.5 to 9.5 images/s" in loaders_report.caption(rows)


def test_the_headline_tells_the_shares_of_the_step_that_wait():
    rows = [shown("plain", "steady"), shown("resident", "training", waiting_share=0.0034)]
    rows += [shown("plain", "training", waiting_share=0.276), shown("ffcv", "training", correct=False)]
    assert loaders_report.headline(rows) == "waiting for data: resident 0.3 %, plain 27.6 %"
    assert loaders_report.headline(rows[:1]) == ""


def test_the_newest_rows_count_and_a_group_is_of_one_commit_and_machine():
    old, new = shown("ffcv", "steady", "1"), shown("ffcv", "steady", "2", images_per_s=5.0)
    other = shown("ffcv", "steady", "3", commit="d")
    assert loaders_report.groups([old, new, other]) == [[other], [new]]


def test_the_page_has_a_table_of_each_comparison_the_newest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.TABLES["loaders"]() == "Not measured yet.\n"
    rows = [shown("ffcv", "steady"), shown("dali", "steady", commit="old", date="1")]
    rows.append(shown("plain", "steady", crop="whole", size=32))
    (tmp_path / "loaders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = tables.TABLES["loaders"]()
    assert 0 < text.index("| ffcv |") < text.index("| dali |") and "| plain |" in text and "Waiting: " in text


@pytest.mark.slow
@needs_dali
@needs_ffcv
def test_the_smoke_run_times_every_loader_on_every_form_it_reads(tmp_path):
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "bench.loaders", "--device", "cpu", "--smoke", "--rows", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, cwd=Path(loaders.__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(read_rows(path))
    assert all(row["correct"] and row["images_per_s"] > 0 for row in rows)
    found = {(row["loader"], row["stored"]) for row in rows}
    assert found == {
        *(("resident", "raw"), ("plain", "raw"), ("plain", "png"), ("plain", "jpeg")),
        *(("ffcv", "raw"), ("ffcv", "jpeg"), ("ffcv-own", "raw"), ("ffcv-own", "jpeg")),
        *(("dali", "png"), ("dali", "jpeg")),
    }
    fed = {row["loader"] for row in rows if row["waiting_share"] is not None}
    assert fed == {"resident", "plain", "ffcv", "dali"}
