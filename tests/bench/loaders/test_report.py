"""What the loaders' rows are shown as."""

import json

from bench import tables
from bench.loaders import (
    report as loaders_report,
)


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
    assert tables.table("loaders") == "Not measured yet.\n"
    rows = [shown("ffcv", "steady"), shown("dali", "steady", commit="old", date="1")]
    rows.append(shown("plain", "steady", crop="whole", size=32))
    (tmp_path / "loaders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = tables.table("loaders")
    assert 0 < text.index("| ffcv |") < text.index("| dali |") and "| plain |" in text and "Waiting: " in text
