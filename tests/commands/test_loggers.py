"""`--log`: an epoch's numbers go where they were asked for, into the real thing, without a network."""

import base64
import csv
import json
import signal
import struct
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastarat.common.errors import WorkError
from fastarat.runs.run import Run
from fastarat.training.loggers.csv import CSV
from fastarat.training.loggers.logger import LOGGERS
from fastarat.training.loop import Loop
from tests.helpers.command_line import ONE_EPOCH, TINY, metrics

RUN = (*TINY, "--evaluation.every-epochs", "1", "--out", "run")


def needs(package):
    """A mark: without the package the test skips."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


def expected(run: Path) -> dict[tuple[int, str], float]:
    """What `metrics.jsonl` says, by step and tag."""
    found = {}
    for line in metrics(run):
        groups = {"train/": line["train"], "evaluation/": line["evaluation"]}
        groups[""] = {name: line[name] for name in ("learning_rate", "images_per_s")}
        for prefix, numbers in groups.items():
            for name, value in numbers.items():
                if isinstance(value, float):
                    found[line["step"], prefix + name] = pytest.approx(value)
    assert len(found) >= 10
    return found


def test_csv_has_a_row_an_epoch_and_a_resumed_run_goes_on_with_it(fastarat):
    assert fastarat("train", "digits-arat", *RUN, "--log", "csv").code == 0
    assert fastarat("train", "--resume", "run", "--epochs", "3").code == 0
    rows = list(csv.DictReader(Path("run/metrics.csv").read_text().splitlines()))
    found = {(int(row["step"]), tag): float(value) for row in rows for tag, value in row.items() if tag != "step"}
    assert found == expected(Path("run")) and [row["step"] for row in rows] == ["4", "8", "12"]


def test_a_resumed_run_has_its_loggers_until_others_are_given(fastarat, monkeypatch):
    assert fastarat("train", "digits-arat", *ONE_EPOCH, "--out", "run", "--log", "csv").code == 0
    assert fastarat("train", "--resume", "run", "--epochs", "2").code == 0
    assert fastarat("train", "--resume", "run", "--epochs", "3", "--log", "auto").code == 0
    assert fastarat("train", "--resume", "run", "--epochs", "4").code == 0
    assert [session["loggers"] for session in Run(Path("run")).sessions()] == [["csv"], ["csv"], ["auto"], ["auto"]]
    assert Path("run/metrics.csv").read_text().count("\n") == 1 + 2


def test_a_place_that_a_resumed_run_had_and_this_machine_has_not_is_told_with_the_way_round(fastarat, monkeypatch):
    assert fastarat("train", "digits-arat", *ONE_EPOCH, "--out", "run").code == 0
    run = Run(Path("run"))
    run.write_record({**(run.last_session() or {}), "loggers": ["wandb"]})
    monkeypatch.setattr("fastarat.training.loggers.logger.find_spec", lambda package: None)
    error = fastarat("train", "--resume", "run", "--epochs", "2").error
    assert error.endswith("wandb is not installed: pip install 'fastarat[wandb]', or another --log, such as auto")
    assert fastarat("train", "--resume", "run", "--epochs", "2", "--log", "auto").code == 0


@needs("tensorboard")
def test_tensorboard_reads_them_and_is_what_auto_takes(fastarat):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert fastarat("train", "digits-arat", *RUN).code == 0
    events = EventAccumulator("run")
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {(e.step, tag): e.value for tag in tags for e in events.Scalars(tag)} == expected(Path("run"))
    assert not list(Path("run").glob("*.csv"))


@pytest.mark.slow
@needs("mlflow")
def test_mlflow_has_settings_and_numbers_in_a_store_of_the_run(fastarat, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert fastarat("train", "digits-arat", *RUN, "--log", "mlflow").code == 0
    client = MlflowClient(f"sqlite:///{Path('run/mlflow.db').absolute()}")
    (run,) = client.search_runs([client.get_experiment_by_name("fastarat").experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED" and run.data.params["attack.steps"] == "1"
    history = [client.get_metric_history(run.info.run_id, tag) for tag in run.data.metrics]
    found = {(metric.step, metric.key): metric.value for of_tag in history for metric in of_tag}
    assert found == expected(Path("run"))
    stop_after_an_epoch(monkeypatch)
    assert fastarat("train", "--resume", "run", "--epochs", "4").code == 128 + signal.SIGTERM
    fail_after_an_epoch(monkeypatch)
    assert fastarat("train", "--resume", "run").code == 1
    runs = client.search_runs([run.info.experiment_id], order_by=["attributes.start_time"])
    assert [run.info.status for run in runs] == ["FINISHED", "KILLED", "FAILED"]


def stop_after_an_epoch(monkeypatch):
    """A signal comes while an epoch is being closed."""

    def stop(loop):
        loop.requests.stop_signal = signal.SIGTERM

    monkeypatch.setattr(Loop, "_keep_snapshot", stop)


def fail_after_an_epoch(monkeypatch):
    """The disk is full while an epoch is being closed."""

    def fail(loop):
        raise WorkError("the disk is full")

    monkeypatch.setattr(Loop, "_keep_snapshot", fail)


def records(log: bytes):
    """What wandb's file holds: LevelDB's log format after 7 bytes of its own, in blocks of 32 KiB."""
    place, parts = 7, b""
    while place + 7 <= len(log):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", log, place + 4)
        parts += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def written(path: Path) -> tuple[dict[tuple[int, str], float], int]:
    """What a file of wandb's says, by step and tag; and the exit code in it."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its own process may write the end of a file after `finish`
    found, code = {}, -1
    for data in records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            found |= {(items["_step"], tag): value for tag, value in items.items() if not tag.startswith("_")}
        if record.HasField("exit"):
            code = record.exit.exit_code
    return found, code


@pytest.mark.slow
@needs("wandb")
def test_wandb_keeps_them_offline(fastarat, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert fastarat("train", "digits-arat", *RUN, "--log", "wandb").code == 0
    (path,) = Path("run/wandb").glob("offline-run-*/*.wandb")
    found, code = written(path)
    assert found == expected(Path("run")) and code == 0
    stop_after_an_epoch(monkeypatch)
    assert fastarat("train", "--resume", "run", "--epochs", "4").code == 128 + signal.SIGTERM
    (path,) = set(Path("run/wandb").glob("offline-run-*/*.wandb")) - {path}
    assert written(path)[1] == 128 + signal.SIGTERM


@pytest.mark.slow
@needs("nbclient")
@needs("ipykernel")
def test_a_notebook_shows_one_figure_that_follows_the_run(tmp_path, monkeypatch):
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    short = "num_train_images=64, epochs=3, attack=fastarat.AttackConfig(steps=1)"
    cells = [
        "from dataclasses import replace",
        "from pathlib import Path",
        "import fastarat",
        f"config = replace(fastarat.recipe('digits-arat'), {short}, dtype='fp32', compile='eager')",
        "run = fastarat.train(config, Path('run'))",
    ]
    notebook = new_notebook(cells=[new_code_cell("\n".join(cells)), new_code_cell("print(run.path)")])
    resources = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources)
    updates = []
    handled = client.process_message
    monkeypatch.setattr(
        client, "process_message", lambda message, *rest: (updates.append(message), handled(message, *rest))[1]
    )
    client.execute()
    (shown,) = [output for output in notebook.cells[0].outputs if "image/png" in output.get("data", {})]
    drawn = base64.b64decode(shown.data["image/png"])
    assert drawn == (tmp_path / "run/learning_curves.png").read_bytes()
    kinds = [message["msg_type"] for message in updates if "image/png" in message["content"].get("data", {})]
    assert kinds == ["display_data", "update_display_data", "update_display_data"]
    assert "learning curves of run; after step" in json.dumps(shown.metadata)


def test_outside_a_notebook_its_figure_is_refused(fastarat):
    error = fastarat("train", "digits-arat", *RUN, "--log", "notebook").error
    assert "--log notebook: this is none" in error and not Path("run").exists()


def test_a_name_that_is_none_is_answered_with_those_there_are(fastarat):
    error = fastarat("train", "digits-arat", *RUN, "--log", "tensorbord").error
    assert "give auto, csv, mlflow, notebook, tensorboard, wandb; did you mean 'tensorboard'?" in error


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_what_is_not_installed_is_named_with_its_extra_before_the_run_begins(fastarat, monkeypatch, name):
    monkeypatch.setattr("fastarat.training.loggers.logger.find_spec", lambda package: None)
    error = fastarat("train", "digits-arat", *RUN, "--log", "csv", name).error
    assert f"--log {name}: {name} is not installed: pip install 'fastarat[{name}]'" in error
    assert not Path("run").exists()


def test_a_broken_package_that_auto_alone_has_found_is_left_out_with_a_line(fastarat, monkeypatch):
    monkeypatch.setattr("fastarat.training.loggers.logger.found_here", lambda: ["tensorboard"])
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)  # importing it fails
    result = fastarat("train", *ONE_EPOCH, "--out", "run")
    (line,) = (line for line in result.err.splitlines() if "--log" in line)
    assert result.code == 0 and "--log auto: no tensorboard (" in line and len(metrics(Path("run"))) == 1
    asked_for = fastarat("train", *ONE_EPOCH, "--out", "other", "--log", "auto", "tensorboard")
    assert (
        asked_for.code == 2
        and "--log tensorboard: " in asked_for.error
        and "give --resume another --log" in asked_for.error
    )


def test_help_names_every_place(fastarat):
    said = fastarat("train", "--help").out
    assert all(name in said for name in LOGGERS)


@needs("wandb")
def test_a_missing_login_is_told_before_images_are_opened(fastarat, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("fastarat.training.agreement.open_for_training", lambda *_: pytest.fail("too late"))
    error = fastarat("train", "digits-arat", *RUN, "--log", "wandb").error
    assert "--log wandb: " in error and "log in with 'wandb login', or set WANDB_MODE=offline" in error


def test_a_place_is_told_how_the_training_ended(fastarat, monkeypatch):
    codes = []
    monkeypatch.setattr(CSV, "close", lambda logger, code: codes.append(code))
    assert fastarat("train", "digits-arat", *ONE_EPOCH, "--out", "run", "--log", "csv").code == 0
    stop_after_an_epoch(monkeypatch)
    assert fastarat("train", "--resume", "run", "--epochs", "4").code == 128 + signal.SIGTERM
    fail_after_an_epoch(monkeypatch)
    assert fastarat("train", "--resume", "run").code == 1
    assert codes == [0, 128 + signal.SIGTERM, 1]


class Failing:
    """A place that takes one epoch."""

    def __init__(self, run, first_step):
        self.left = 1

    def write(self, step, numbers):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the service is gone")

    def close(self, code):
        raise ConnectionError("still gone")


def test_a_place_that_fails_is_left_out_with_a_line_and_the_training_goes_on(fastarat, monkeypatch):
    for name in ("__init__", "write", "close"):
        monkeypatch.setattr(CSV, name, getattr(Failing, name))
    result = fastarat("train", "digits-arat", *RUN, "--log", "csv")
    (line,) = (line for line in result.err.splitlines() if "--log csv" in line)
    assert result.code == 0 and "the service is gone; left out from here on" in line and len(metrics(Path("run"))) == 2
