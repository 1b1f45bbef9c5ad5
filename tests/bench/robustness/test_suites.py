"""The robustness benchmark trains, measures, writes complete rows, and skips what is done."""

import json
import shutil
import signal
import time
from dataclasses import asdict, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from bench import tables
from bench.common.rows import RESULTS, read_rows, write_row
from bench.robustness import __main__ as robustness
from bench.robustness import report as robustness_report
from bench.robustness import row as robustness_row
from bench.robustness import suites
from fastarat.config.evaluation import EvaluationDtype
from fastarat.config.recipes import recipe
from fastarat.data.images.dataset import shuffled
from fastarat.data.open import open_dataset
from fastarat.runs.run import Run

# design: every row has these, and rows of this benchmark the second line's too.
EVERY = {"benchmark", "dataset", "device", "gpu", "driver", "torch", "triton", "commit", "date", "config", "correct"}
ROBUSTNESS = {
    *("suite", "method", "fidelity", "model", "seed", "epochs", "checkpoint", "num_images"),
    *("clean", "pgd20", "autoattack", "minutes"),
}


def cut(name, fidelity="paper"):
    """A digits recipe, cut to one epoch of few images."""
    config = recipe(name, fidelity)
    attack = replace(config.attack, steps=min(config.attack.steps, 1))
    evaluation = replace(config.evaluation, num_images=20, steps=1)
    return replace(config, epochs=1, num_train_images=128, attack=attack, evaluation=evaluation)


@pytest.fixture
def tiny(monkeypatch):
    """The digits recipes, cut to one epoch of few images."""
    monkeypatch.setattr(suites, "recipe", cut)


def flags(tmp_path, *more):
    return [
        "--seeds",
        "1",
        "--num-images",
        "30",
        "--runs",
        str(tmp_path / "runs"),
        "--rows",
        str(rows_at(tmp_path)),
        *more,
    ]


def rows_at(tmp_path):
    return tmp_path / "rows.jsonl"


def test_a_suite_writes_a_row_a_training_and_does_not_train_again(tmp_path, tiny, capsys, monkeypatch):
    args = flags(tmp_path, "--suite", "digits", "--methods", "at", "arat", "--num-autoattack", "3")
    assert robustness.main(args) == 0
    rows = list(read_rows(rows_at(tmp_path)))
    assert [row["method"] for row in rows] == ["at", "arat"]
    for row in rows:
        assert row.keys() >= EVERY | ROBUSTNESS
        assert row["correct"] and row["num_images"] == 30 and row["num_autoattack"] == 3
        assert 0 <= row["pgd20"] <= row["clean"] <= 100
        after = list(row["autoattack_after"].values())
        assert after == sorted(after, reverse=True) and row["autoattack"] == after[-1]
    table = capsys.readouterr().out
    assert "AR-AT" in table and "AutoAttack, %" in table
    for name in ("digits", "digits-curves"):
        assert (tmp_path / "runs" / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(robustness, "measure", lambda *_, **__: pytest.fail("a finished training was measured again"))
    assert robustness.main(args) == 0
    assert list(read_rows(rows_at(tmp_path))) == rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a training of AT, and its row without AutoAttack."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(suites, "recipe", cut)
        patched.setattr(robustness_report, "picture", lambda path, rows: None)
        assert robustness.main(flags(folder, "--methods", "at", "--num-autoattack", "0")) == 0
    return folder


@pytest.fixture
def trained_before(tmp_path, trained, tiny, monkeypatch):
    """The same in `tmp_path`; pictures are those of another test."""
    monkeypatch.setattr(robustness_report, "picture", lambda path, rows: None)
    monkeypatch.setattr(robustness, "learning_curves", lambda path, lines, title: None)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)


def test_a_training_that_is_there_is_measured_and_not_repeated(tmp_path, trained_before, monkeypatch):
    monkeypatch.setattr(robustness_row, "train", lambda *_, **__: pytest.fail("a finished training was repeated"))
    assert robustness.main(flags(tmp_path, "--methods", "at", "--num-autoattack", "2")) == 0
    without, attacked = read_rows(rows_at(tmp_path))
    assert (without["autoattack"], attacked["num_autoattack"]) == (None, 2)
    assert {**without, "date": 0, "minutes_pgd20": 0, "minutes_total": 0}.items() >= {
        name: attacked[name] for name in ("clean", "pgd20", "seed", "config", "minutes", "trained_by")
    }.items()
    assert robustness_report.rows_of("digits", [without, attacked]) == [attacked]


def test_a_row_names_the_threads_and_all_commits_of_its_training(tmp_path, trained_before):
    (file,) = tmp_path.rglob("record.json")
    (session,) = json.loads(file.read_text())["sessions"]
    sessions = [session | {"commit": "before", "threads": 7}, session | {"commit": "after", "threads": 5}]
    file.write_text(json.dumps({"sessions": sessions}))
    assert robustness.main(flags(tmp_path, "--methods", "at", "--num-autoattack", "2")) == 0
    _, row = read_rows(rows_at(tmp_path))
    assert (row["threads"], row["trained_by"]) == (5, "before, after")


def test_the_ablation_adds_one_switch_at_a_time_and_ends_at_ar_at(tmp_path):
    suite = suites.SUITES["ablation"]
    methods = {
        entry.method: entry.config.method
        for entry in suites.entries(suite, suite.methods, None, num_seeds=1, runs=tmp_path)
        if entry.config.method.name == "arat"
    }
    stages = [asdict(settings) for settings in methods.values()]
    assert list(methods) == [*(f"arat/{name}" for name in suites.ABLATIONS), "arat"]
    changed = [[name for name in one if one[name] != next_[name]] for one, next_ in pairwise(stages)]
    assert changed == [["stop_gradient"], ["predictor"], ["batch_norm"], ["auto_balance"]]
    assert methods["arat"] == recipe("digits-arat").method


def test_methods_of_a_suite_differ_in_method_attack_and_optimiser_alone(tmp_path):
    for suite in suites.SUITES.values():
        found = list(suites.entries(suite, suite.methods, None, num_seeds=2, runs=tmp_path))
        assert len({entry.out for entry in found}) == len(found)
        alike = {
            (config.data, config.model, config.epochs, config.schedule, config.augment, config.batch, config.eps_255)
            for config in (entry.config for entry in found if not entry.method.endswith("/longer"))
        }
        assert len(alike) == 1


def test_at_is_trained_once_more_for_as_many_epochs_as_the_passes_of_ar_at_allow(tmp_path):
    suite = suites.SUITES["cifar10-resnet18-w32"]
    found = list(suites.entries(suite, suite.methods, None, num_seeds=1, runs=tmp_path))
    configs = {entry.method: entry.config for entry in found}
    assert [entry.name for entry in found if entry.method == "at/longer"] == ["cifar10-resnet18-w32-at-longer-seed0"]
    assert replace(configs["at/longer"], epochs=configs["at"].epochs) == configs["at"]
    assert robustness_report.TITLES["at/longer"] == "AT, as long as AR-AT"

    def passes(method, halves):
        return 2 * configs[method].attack.steps + 3 * halves

    allowed = configs["arat"].epochs * passes("arat", 2) / passes("at", 1)
    assert configs["at/longer"].epochs == int(allowed)


def test_trainings_that_compare_number_formats_differ_in_them_alone(tmp_path):
    suite = suites.SUITES["cifar10-tiny-formats"]
    single, half = suites.entries(suite, ("arat",), None, num_seeds=1, runs=tmp_path)
    assert (single.method, half.method) == ("arat/fp32", "arat/bf16") and single.out != half.out
    assert replace(single.config, dtype="bf16") == half.config and half.config.num_train_images == 10_000


def test_arrest_starts_from_the_standard_net_of_its_seed_which_is_trained_before_it(tmp_path):
    suite = suites.SUITES["digits"]
    outs = []
    for entry in suites.entries(suite, suite.methods, None, num_seeds=3, runs=tmp_path):
        outs.append(str(entry.out))
        if entry.method == "arrest":
            assert entry.config.method.teacher == str(tmp_path / f"digits-standard-seed{entry.config.seed}")
            assert entry.config.method.teacher in outs


@pytest.mark.parametrize("of", [1, 2, 5])
def test_processes_share_a_suite_so_that_each_finds_the_nets_that_its_trainings_start_from(tmp_path, of):
    suite = suites.SUITES["digits"]
    every = list(suites.entries(suite, suite.methods, None, num_seeds=3, runs=tmp_path))
    shares = [suites.shared(every, number, of) for number in range(1, of + 1)]
    assert sorted(each.out for share in shares for each in share) == sorted(each.out for each in every)
    assert max(map(len, shares)) - min(map(len, shares)) <= 3  # an ARREST of each seed beside its standard training
    for share in shares:
        outs = [str(each.out) for each in share]
        assert all(each.config.method.teacher in outs for each in share if each.method == "arrest")


def test_a_share_that_is_none_is_refused_in_one_line(tmp_path, capsys):
    assert robustness.main(flags(tmp_path, "--share", "5/4")) == 2
    assert "5/4 is none: give K/N" in capsys.readouterr().err


def be_over():
    """Let the budget's alarm come now, and wait for it."""
    left, again = signal.getitimer(signal.ITIMER_REAL)
    assert 0 < left <= 60
    signal.setitimer(signal.ITIMER_REAL, 0.01, again)
    signal.pause()


def test_the_budget_stops_a_training_which_then_goes_on(tmp_path, monkeypatch, capsys):
    measured = without_training(monkeypatch)
    args = flags(tmp_path, "--methods", "at", "--num-autoattack", "0")
    begun = []

    def slow(*given, **more):
        begun.append(given)
        be_over()

    with monkeypatch.context() as patched:
        patched.setattr(robustness, "measure", slow)
        assert robustness.main([*args, "--budget", "60"]) == 1
    assert begun and "stopped with 0 of 1 rows; the same command goes on from there" in capsys.readouterr().err
    assert robustness.main([*args, "--budget", "600"]) == 0
    assert len(list(read_rows(rows_at(tmp_path)))) == len(measured) == 1


@pytest.mark.parametrize("ignored", [False, True], ids=["in front", "in the background"])
def test_the_budget_ends_what_took_its_first_signal_for_itself(ignored, tmp_path, monkeypatch, capsys):
    """As a training does that is past its last step; a shell's background has Ctrl-C ignored."""
    taken = []

    def deaf(*given, **more):
        earlier = signal.signal(signal.SIGINT, lambda number, frame: taken.append(number))
        be_over()
        signal.signal(signal.SIGINT, earlier)
        time.sleep(5)
        pytest.fail("the budget did not end it")

    monkeypatch.setattr(robustness, "measure", deaf)
    monkeypatch.setattr(robustness, "AGAIN_S", 0.3)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        assert robustness.main(flags(tmp_path, "--methods", "at", "--budget", "60")) == 1
        assert signal.getsignal(signal.SIGINT) == (signal.SIG_IGN if ignored else signal.default_int_handler)
    finally:
        signal.signal(signal.SIGINT, before)
    assert taken == [signal.SIGINT] and capsys.readouterr().err.count("the budget of 60 s is over") == 1


def without_training(monkeypatch):
    """Rows without a training: the entries that were measured, in order."""
    measured = []

    def measure(suite, entry, num_images, num_autoattack, analysed, search):
        assert search == suites.SUITES[suite].search
        measured.append((entry.method, num_images, num_autoattack))
        row = {"suite": suite, "method": entry.method, "fidelity": "paper", "seed": entry.config.seed, "minutes": 1.0}
        row |= {"correct": True, "dataset": "digits"}
        row |= {"config": asdict(entry.config.resolved()), "clean": 90.0, "pgd20": 50.0, "num_images": num_images}
        attacked = {"autoattack": 45.0, "num_autoattack": num_autoattack, "search": search}
        return row | (attacked if num_autoattack else {"autoattack": None})

    monkeypatch.setattr(robustness, "measure", measure)
    monkeypatch.setattr(robustness_report, "picture", lambda path, rows: None)
    return measured


def test_a_row_of_fewer_images_than_are_wanted_now_is_not_done_and_one_of_more_is(tmp_path, monkeypatch, capsys):
    measured = without_training(monkeypatch)
    numbers = [("20", "0"), ("20", "3"), ("20", "3"), ("9999", "3"), ("9999", "200"), ("360", "200"), ("50", "0")]
    for images, attacked in numbers:
        args = flags(tmp_path, "--methods", "at", "--num-images", images, "--num-autoattack", attacked)
        assert robustness.main(args) == 0
    assert measured == [("at", 20, 0), ("at", 20, 3), ("at", 360, 3), ("at", 360, 200)]
    assert f"1 of 1 rows are in {rows_at(tmp_path)} already" in capsys.readouterr().err


def test_a_row_by_another_search_than_float32s_is_done_only_where_the_suite_searches_so(tmp_path, monkeypatch):
    measured = without_training(monkeypatch)
    searches: list[EvaluationDtype] = ["bf16", "bf16", "fp32", "fp32", "bf16"]
    for search in searches:
        monkeypatch.setitem(suites.SUITES, "digits", replace(suites.SUITES["digits"], search=search))
        assert robustness.main(flags(tmp_path, "--methods", "at", "--num-autoattack", "3")) == 0
    assert measured == [("at", 30, 3)] * 2  # the second and third: a search in float32 serves both


def test_rows_of_other_benchmarks_are_passed_over(tmp_path, monkeypatch, capsys):
    measured = without_training(monkeypatch)
    write_row(rows_at(tmp_path), {"benchmark": "throughput", "method": "at"})
    assert robustness.main(flags(tmp_path, "--methods", "at", "--num-autoattack", "0")) == 0
    assert measured == [("at", 30, 0)] and "AT" in capsys.readouterr().out
    assert (tmp_path / "runs").is_dir()  # where the picture goes, though nothing was trained


def test_a_teacher_that_is_no_more_than_its_row_is_trained_where_arrest_needs_it(tmp_path, monkeypatch):
    measured = without_training(monkeypatch)
    args = flags(tmp_path, "--methods", "standard", "arrest", "--num-autoattack", "0")
    write = robustness.write_row
    monkeypatch.setattr(robustness, "write_row", lambda path, row: row["method"] == "arrest" or write(path, row))
    assert robustness.main(args) == 0  # leaves the row of standard alone
    monkeypatch.setattr(robustness, "write_row", write)
    begun = tmp_path / "runs" / "digits-arrest-seed0" / "checkpoints"
    begun.mkdir(parents=True)
    for checkpoints in (begun / "step-000000001.pt", begun / "none"):  # of a run that has begun, and keeps its teacher
        checkpoints.touch()
        assert robustness.main(args) == 0 and robustness.main(args) == 0
        checkpoints.unlink()
        rows_at(tmp_path).write_text(rows_at(tmp_path).read_text().splitlines(keepends=True)[0])
    assert [method for method, *_ in measured] == ["standard", "arrest", "arrest", "standard", "arrest"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--methods", "att"], "unknown method of suite digits 'att'"),
        (["--methods", "arrest"], "name that among --methods too"),
        (["--num-autoattack", "-1"], "give 0 or more"),
        (["--budget", "nan"], "--budget is nan"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--num-images", "0"], "--num-images is 0"),
        (["--data", "digitz"], "unknown data set 'digitz'"),
        (["--runs", "/dev/null/runs"], "cannot write to --runs /dev/null/runs"),
        (["--suite", "digit"], "invalid choice: 'digit'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(given, words, tmp_path, capsys):
    assert robustness.main(flags(tmp_path, *given)) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_run_with_other_settings_is_left_alone(tmp_path, trained_before, capsys):
    config = tmp_path / "runs" / "digits-at-seed0" / "config.json"
    config.write_text(config.read_text().replace('"batch": 64', '"batch": 32'))
    rows_at(tmp_path).unlink()
    assert robustness.main(flags(tmp_path, "--methods", "at", "--num-autoattack", "0")) == 2
    assert "is a run with other settings: move it away" in capsys.readouterr().err


def test_the_picture_and_table_tell_the_spread_over_seeds(tmp_path):
    base = {"suite": "digits", "fidelity": "paper", "model": "digits", "dataset": "digits", "num_images": 360}
    base["config"] = asdict(recipe("digits-at").resolved())
    rows = [
        {
            **base,
            "method": method,
            "seed": seed,
            "clean": 90 + seed,
            "pgd20": 50 + at,
            "autoattack": 45.0,
            "minutes": 1.0,
            "correct": True,
        }
        for at, method in enumerate(["trades", "at", "arat/naive"])
        for seed in (0, 1)
    ]
    found = robustness_report.rows_of("digits", rows)
    columns, cells = robustness_report.table(found)
    assert [line[0] for line in cells] == ["AT", "TRADES", "naive invariance"]
    assert cells[0][columns.index("clean, %")] == "90.5 ± 0.7"
    robustness_report.picture(tmp_path / "x.png", found)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("other", ["data", "settings"])
def test_rows_that_cannot_stand_beside_the_last_one_are_in_no_table_with_it(other):
    row = {"suite": "digits", "method": "at", "fidelity": "paper", "dataset": "digits"}
    configs = [asdict(replace(recipe("digits-at"), seed=seed).resolved()) for seed in range(3)]
    rows = [{**row, "seed": seed, "config": config} for seed, config in enumerate(configs)]
    rows[1] |= {"dataset": "cifar10"} if other == "data" else {"config": {**configs[1], "epochs": 1}}
    assert [row["seed"] for row in robustness_report.rows_of("digits", rows)] == [0, 2]


def test_a_row_that_is_not_right_is_left_out_and_said_with_what_autoattack_warned_of():
    """Images that gave an attack no direction count as robust, without evidence."""
    base = {"suite": "digits", "method": "at", "fidelity": "paper", "model": "digits", "dataset": "digits", "epochs": 1}
    base |= {"num_images": 360, "num_autoattack": 200, "clean": 90.0, "pgd20": 50.0, "autoattack": 45.0, "minutes": 1.0}
    base |= {"gpu": None, "threads": 2, "torch": "2.13.0", "trained_by": "0123", "correct": True}
    base["config"] = asdict(recipe("digits-at").resolved())
    rows = [{**base, "seed": 0}, {**base, "seed": 1, "num_autoattack": 20, "warnings": ["It hides its gradient."]}]
    rows.append({**base, "seed": 2, "pgd20": 90.0, "pgd20_not_attackable": 300, "correct": False})
    text = robustness_report.as_markdown("digits", rows)
    assert (
        "| AT | 2 | 90.0 ± 0.0 | 50.0 ± 0.0 |" in text and "360 test images, 20 to 200 of them for AutoAttack" in text
    )
    assert "Left out: AT, seed 2 (300 images gave PGD-20 no direction to follow)." in text
    assert "AutoAttack's warning of AT, seed 1: It hides its gradient." in text


def test_the_tables_of_the_pages_are_those_of_the_committed_rows():
    texts = [page.read_text() for page in tables.PAGES]
    assert sum(text.count("<!-- table: ") for text in texts) == len(tables.TABLES)
    assert [tables.render(text) for text in texts] == texts


def test_committed_rows_have_the_fields_of_every_row():
    rows = list(read_rows(*RESULTS.glob("*.jsonl")))
    assert rows
    for row in rows:
        assert row.keys() >= EVERY
        assert row["commit"] and (row["correct"] or row["error"])


@pytest.mark.parametrize(("search", "folder"), [("fp32", "autoattack-3"), ("bf16", "autoattack-3-bf16")])
def test_an_attack_searches_in_its_format_from_a_state_of_its_own(search, folder, tmp_path, monkeypatch):
    asked = []

    def evaluate(model, x, y, settings, *, state, advance):
        asked.append((settings.dtype, state.name, len(x)))
        return SimpleNamespace(robust=1.0, after={}, warnings=(), options=(), seconds={})

    monkeypatch.setattr(robustness_row, "evaluate", evaluate)
    dataset = open_dataset("digits")
    description: Any = SimpleNamespace(norm="linf", eps_255=8.0)
    images = shuffled(dataset.decoded_test, 5, seed=0)
    attacked = robustness_row._Attacked(Run(tmp_path), "digits-at", dataset, images, nn.Identity(), description)
    row = attacked.autoattack(3, search)
    assert (row["num_autoattack"], row["search"]) == (3, search) and asked == [(search, folder, 3)]
