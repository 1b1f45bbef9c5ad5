"""What a ladder's rows are shown as."""

from bench.common.rows import RESULTS, read_rows
from bench.ladder import report as throughput_report


def test_the_headline_tells_the_fastest_default_of_one_ladder_and_of_several_how_many_have_a_speed():
    def row(variant, batch, speed, ratios, method="arat"):
        keys = {"model": "resnet18", "method": method, "variant": variant}
        return {**keys, "batch": batch, "images_per_s": speed, "ratios": ratios}

    published = {"low": 6.7, "median": 6.894, "high": 7.0}
    strong = {"low": 0.9, "median": 1.05, "high": 1.2}
    rows = [row("published", 128, 1900.0, {}), row("strong", 128, 14000.0, {}), row("default", 256, 9.0, {})]
    rows += [row("default", 512, None, {}), row("default", 128, 13100.0, {"published": published, "strong": strong})]
    text = "default 13,100 images/s at batch 128, 6.89x published, not resolved from strong"
    assert throughput_report.headline(rows) == text
    assert throughput_report.headline(rows[:2]) == ""
    assert throughput_report.headline([*rows, row("default", 8, 1.0, {}, "at")]) == "5 of 6 variants have a speed"


def test_ladders_are_in_their_order_and_the_newest_first():
    def row(variant, date, commit="a", speed=1.0):
        keys = {"model": "tiny", "method": "at", "batch": 8, "dataset": "random", "gpu": None, "commit": commit}
        return {
            **keys,
            "variant": variant,
            "date": date,
            "images_per_s": speed,
            "config": {"benchmark": {"attack_steps": 2}},
        }

    rows = [row("default", "1"), row("resident", "2"), row("default", "3", speed=2.0), row("default", "4", "b")]
    new, old = throughput_report.ladders(rows).values()
    assert [r["commit"] for r in new] == ["b"]
    assert [(r["variant"], r["images_per_s"]) for r in old] == [("resident", 1.0), ("default", 2.0)]


def test_the_picture_shows_every_variant_that_has_a_speed(tmp_path):
    rows = next(iter(throughput_report.ladders(read_rows(RESULTS / "throughput.jsonl")).values()))
    throughput_report.picture(tmp_path / "ladder.png", rows)
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
    text = throughput_report.as_markdown(rows)
    assert text.count("\n| ") == 2 + len(rows) and "8 PIL workers" in text
