"""JSON that others wrote is read with care: what it may be, and how far it is believed."""

import pytest

from fastarat.common.errors import UserError
from fastarat.common.json_files import checksum_of, parse_json, read_json


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        b"\xff\xfe",
        "[" * 100_000,
        "[" * 40 + "]" * 40,
        '{"a":' * 500 + "1" + "}" * 500,
        "[NaN]",
        "[-Infinity]",
        "[1e999]",
        "1" + "0" * 400,
        "1" + "0" * 5000,
        str(2**64),
    ],
    ids=lambda text: repr(text)[:12],
)
def test_json_that_nobody_needs_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(ValueError, match=r"^[^\n]{1,200}$"):
        parse_json(text)
    path = tmp_path / "x.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=r"^[^\n]*x\.json cannot be read \([^\n]{1,200}\)$"):
        read_json(path)


def test_other_json_is_what_it_says(tmp_path):
    text = '{"a": [1, -2.5e3, true, null, {"b": "ü"}], "c": 18446744073709551615}'
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    value = {"a": [1, -2500.0, True, None, {"b": "ü"}], "c": 2**64 - 1}
    assert parse_json(text) == value == read_json(tmp_path / "x.json")


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "x.json").write_text("[" + "1," * 100 + "1]")
    with pytest.raises(UserError, match="203 bytes are more than 100"):
        read_json(tmp_path / "x.json", most_bytes=100)


def test_a_checksum_covers_all_but_itself():
    values = {"a": 1, "b": ["x"]}
    assert checksum_of({**values, "checksum": "old"}) == checksum_of(dict(reversed(values.items())))
    assert checksum_of(values) != checksum_of({**values, "b": ["y"]})
