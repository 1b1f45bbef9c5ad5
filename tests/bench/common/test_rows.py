"""Files of rows: a kill in the middle of a line loses that line alone, and anything else that is wrong is said."""

import fcntl
import json
from dataclasses import asdict, replace

import pytest

from bench.common import rows
from bench.common.rows import (
    RESULTS,
    base_row,
    commits,
    has_row,
    place,
    read_rows,
    rows_from_here,
    trained_by,
    write_row,
    write_rows,
)
from fastarat.common.environment import environment
from fastarat.common.errors import UserError
from fastarat.config.recipes import recipe


def test_rows_are_read_in_the_order_in_which_they_were_written(tmp_path):
    for name, number in (("a", 1), ("a", 2), ("b", 3)):
        write_row(tmp_path / "folder" / f"{name}.jsonl", {"number": number})
    paths = [tmp_path / "folder" / f"{name}.jsonl" for name in ("b", "none", "a")]
    assert [row["number"] for row in read_rows(*paths)] == [3, 1, 2]


def test_rows_take_the_place_of_those_that_were_written_last(tmp_path):
    path = tmp_path / "rows.jsonl"
    first, second = [{"number": 1}, {"number": 2}], [{"number": 1, "launches": 3}, {"number": 2, "launches": None}]
    write_row(path, {"number": 0})
    write_rows(path, first)
    write_rows(path, second, instead_of=first)
    assert list(read_rows(path)) == [{"number": 0}, *second]
    write_rows(path, first, instead_of=[{"number": 0}])  # which are the last no more
    assert list(read_rows(path)) == [{"number": 0}, *second, *first]
    write_rows(None, second, instead_of=first)


def test_commits_are_named_once_of_all_sessions_and_of_all_rows():
    first, second = (trained_by([{"commit": commit} for commit in of_run]) for of_run in ("bab", "cb"))
    assert (first, second) == ("b, a", "c, b")
    assert commits([{"trained_by": first}, {"trained_by": second}, {"trained_by": "b"}]) == "a, b, c"


@pytest.mark.parametrize("rest", [b'{"number": 2, "na', b'{"name": "\xc3', b"\0\0"])
def test_a_last_line_that_was_cut_off_is_no_row_and_does_not_spoil_the_next(tmp_path, rest):
    path = tmp_path / "rows.jsonl"
    write_row(path, {"number": 1})
    path.write_bytes(path.read_bytes() + rest)
    assert list(read_rows(path)) == [{"number": 1}]
    write_row(path, {"number": 3})
    assert path.read_text() == '{"number": 1}\n{"number": 3}\n'


def test_a_whole_row_whose_line_has_no_end_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"number": 1}')
    assert list(read_rows(path)) == [{"number": 1}]
    write_row(path, {"number": 2})
    assert list(read_rows(path)) == [{"number": 1}, {"number": 2}]


@pytest.mark.parametrize("line", [b"", b"{", b"12", b'["a"]', b"null", b'{"name": "\xff"}'])
def test_any_other_line_that_is_no_row_is_named_with_what_to_do(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"number": 1}\n' + line + b'\n{"number": 3}\n')
    with pytest.raises(UserError) as found:
        list(read_rows(path))
    assert str(found.value) == f"{path}, line 2 is no JSON object: mend the line, or move the file away"


def test_a_folder_with_the_name_of_a_file_of_rows_is_said(tmp_path):
    with pytest.raises(UserError, match="Is a directory: move it away"):
        list(read_rows(tmp_path))


def test_what_has_a_row_is_told_by_its_fields_its_numbers_and_its_training(tmp_path):
    config = recipe("digits-at")
    row = {"suite": "digits", "num_images": 60, "config": json.loads(json.dumps(asdict(config.resolved())))}
    asked = {"at_least": {"num_images": 60, "num_autoattack": 0}, "config": config}
    assert has_row([{}, row], {"suite": "digits", "search": None}, **asked)
    assert not has_row([row], {"suite": "ablation"}, **asked)
    assert not has_row([row], {}, at_least={"num_images": 61}) and not has_row(
        [row], {}, at_least={"num_autoattack": 1}
    )
    assert not has_row([row], {}, config=replace(config, batch=32))


def test_rows_from_here_are_of_this_commit_gpu_and_device(tmp_path):
    here = {"commit": "a", "gpu": None, "device": "cpu"}
    path = tmp_path / "rows.jsonl"
    for row in (here, *({**here, name: "other"} for name in here), {**here, "commit": None}):
        write_row(path, row)
    assert rows_from_here("none", path, {**here, "threads": 2}) == [here]
    assert rows_from_here("none", path, {**here, "commit": None}) == []
    committed = next(read_rows(RESULTS / "throughput.jsonl"))
    assert committed in rows_from_here("throughput", None, committed)


def test_a_caption_names_the_processor_where_all_rows_have_one():
    assert base_row("any", {}, None, device="cpu")["processor"] == environment()["processor"]
    old = {"gpu": None, "threads": 1, "torch": "2", "commit": "a"}
    new = {**old, "processor": "A CPU", "commit": "b"}
    assert place(old) == "CPU, 1 thread, torch 2, commit a" and place(new) == "CPU (A CPU), 1 thread, torch 2, commit b"
    assert place(old, {**new, "threads": 2}) == "CPU, 1 or 2 threads, torch 2, commit a, b"
    assert place(new, {**new, "processor": "B CPU"}, commit="c") == "CPU (A CPU, B CPU), 1 thread, torch 2, commit c"
    assert place({**new, "gpu": "a GPU"}) == "a GPU, torch 2, commit b"


def test_processes_that_share_a_file_write_one_after_the_other(tmp_path, monkeypatch):
    held, end = [], rows._end_last_line

    def watched(path):
        with path.open("a") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(path)
        end(path)

    monkeypatch.setattr(rows, "_end_last_line", watched)
    write_row(tmp_path / "rows.jsonl", {"a": 1})
    assert held and list(read_rows(tmp_path / "rows.jsonl")) == [{"a": 1}]
