"""`fastarat watch RUN` follows a training of another process, and ends when that does."""

import json

import pytest

from fastarat.commands.watch import followed, standing
from fastarat.runs.run import Run
from tests.helpers.command_line import TINY, finish, start, wait_for


def test_a_finished_run_is_told_at_once(fastarat, run):
    result = fastarat("watch", run)
    lines = result.out.splitlines()
    assert result.code == 0 and [line.split(" · ")[0] for line in lines[:2]] == ["epoch 1/2", "epoch 2/2"]
    assert "test: clean" in lines[1] and "%, PGD-1 " in lines[1] and lines[-1].startswith("finished: 'fastarat report")
    now = fastarat("watch", run, "--json").json
    assert now["is_finished"] and not now["is_training"] and now["seconds_left"] == 0 and now["last"]["epoch"] == 2


def test_once_tells_the_newest_epochs(fastarat, run):
    (line, _) = Run(run).metrics()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line | {"epoch": i}) + "\n" for i in range(1, 53)))
    told = fastarat("watch", run, "--once").out.splitlines()
    assert [line.partition("/")[0] for line in told[:-1]] == [f"epoch {i}" for i in range(48, 53)]


def test_a_damaged_file_is_told_once_however_often_it_is_looked_at(run, capsys):
    (run / "metrics.jsonl").write_text("no line\n")
    writer = Run(run)
    writer.lock()
    looks = iter([lambda: None, writer.unlock])
    list(followed(Run(run), once=False, sleep=lambda seconds: next(looks)()))
    assert capsys.readouterr().err.count("is damaged") == 1


def test_a_damaged_run_that_has_deployed_is_not_sent_to_go_on(fastarat, run):
    (run / "metrics.jsonl").write_text("no line\n")
    last = fastarat("watch", run).out.splitlines()[-1]
    assert last.startswith("how far it came cannot be told: 'fastarat report") and "--resume" not in last
    now = fastarat("watch", run, "--json").json
    assert (now["is_finished"], now["epoch"], now["seconds_left"]) == (None, None, None)
    (run / "model.safetensors").unlink()
    assert "--resume" in fastarat("watch", run).out.splitlines()[-1]


def test_lines_are_told_as_they_come_until_the_training_lets_go(run):
    watched, writer = Run(run), Run(run)
    lines = watched.metrics()
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"epochs": 4}))
    (run / "metrics.jsonl").write_text("")
    writer.lock()
    later = iter([lambda: writer.log(lines[0]), lambda: writer.log(lines[1]), writer.unlock])
    told = list(followed(watched, once=False, sleep=lambda seconds: next(later)()))
    assert [line.split(" · ")[0] for line in told if line.startswith("epoch")] == ["epoch 1/4", "epoch 2/4"]
    shares = [line.split(" ")[1] for line in told if "█" in line or "░" in line]
    assert shares == ["25", "50"] and told[-1].startswith("nobody trains in it: ")


def test_the_time_left_is_that_of_the_last_epochs(run):
    lines = [{"epoch": i, "step": i, "train": {"loss": 1.0}, "seconds": 10.0 * i} for i in range(1, 4)]
    lines[0] |= {"compile_seconds": 7.0}
    lines[2] |= {"evaluation_seconds": 30.0, "seconds": 30.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"epochs": 13}))
    assert standing(Run(run), lines)["seconds_left"] == 10.0 * 10  # the median of 3, 10 and 40


def test_epochs_of_an_unknown_time_tell_nothing_of_the_time_left(fastarat, run):
    (line, _) = Run(run).metrics()
    del line["seconds"]
    whole = {"seconds": 30.0}
    for lines, left in (([{}, {}], None), ([{}, whole, whole | {"seconds": 32.0, "evaluation_seconds": 1.0}], 3.0)):
        numbered = [line | {"evaluation_seconds": 0.0} | more | {"epoch": i} for i, more in enumerate(lines, start=1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in numbered))
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"epochs": len(lines) + 1}))
        assert standing(Run(run), Run(run).metrics())["seconds_left"] == left
        assert fastarat("watch", run).code == 0


@pytest.mark.slow  # two processes that import torch
def test_a_training_in_another_process_is_seen_and_not_disturbed(fastarat, tmp_path):
    process = start("train", "digits-arat", *TINY, "--epochs", "5", "--out", tmp_path / "run")
    wait_for(tmp_path / "run/.lock", process)
    watcher = start("watch", tmp_path / "run")
    assert finish(process).code == 0
    result = finish(watcher)
    assert result.code == 0 and "epoch 5/5" in result.out and "finished" in result.out


def test_what_is_no_run_is_refused(fastarat):
    assert fastarat("watch", "nowhere").error == "nowhere is no run directory: it has no config.json"


def test_on_a_disk_without_locks_a_run_that_has_not_finished_may_go_on(fastarat, run, monkeypatch):
    monkeypatch.setattr("fastarat.commands.watch.is_locked", lambda path: None)
    assert fastarat("watch", run).out.splitlines()[-1].startswith("finished: ")
    (run / "model.safetensors").unlink()
    assert "cannot be told" in fastarat("watch", run, "--once").out.splitlines()[-1]
    assert fastarat("watch", run, "--json").json["is_training"] is None
