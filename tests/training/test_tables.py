"""Tables of clips: what programs and spreadsheets write, and what is wrong by its line."""

import json

import pytest

from mlx_cogvideo import InvalidInputError
from mlx_cogvideo.training.tables import read_table


def rows(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(row.file, row.caption, row.start, row.end) for row in read_table(path)[0]]


LINES = '{"file_name": "a.mp4", "text": "first"}\n\n{"video": "b.mp4", "caption": "second"}\n'
ENTRIES = [{"file_path": "a.mp4", "text": "first"}, {"media_path": "b.mp4", "caption": "second"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", "file_name,text\na.mp4,first\nb.mp4,second\n"),
        ("m.csv", "\ufeffFile Name; Text;\r\na.mp4;first;\r\n;;\r\nb.mp4;second;\r\n"),
        ("m.csv", "sep=;\r\nvideo;prompt\r\na.mp4;first\r\nb.mp4;second\r\n"),
        ("m.csv", '"path"\t"caption"\n"a.mp4"\t"first"\n"b.mp4"\t"second"\n'),
        ("m.tsv", "video_path\tprompt\na.mp4\tfirst\nb.mp4\tsecond\n"),
        ("m.jsonl", LINES),
        ("m.json", LINES),
        ("m.json", json.dumps(ENTRIES)),
        ("m.json", json.dumps(ENTRIES, indent=2)),
        ("m.jsonl", json.dumps(ENTRIES)),
    ],
    ids=[
        *("comma", "semicolon", "sep", "tab", "tsv", "jsonl"),
        *("lines in json", "json", "indented", "list in jsonl"),
    ],
)
def test_tables_are_read_as_tools_write_them(tmp_path, name, content):
    assert rows(tmp_path, name, content) == [
        ("a.mp4", "first", 0, None),
        ("b.mp4", "second", 0, None),
    ]


def test_a_caption_keeps_commas_and_loses_line_breaks(tmp_path):
    content = 'file_name;text\na.mp4;one, two\nb.mp4; "a; b\n ""c"""\n'
    assert [row[1] for row in rows(tmp_path, "m.csv", content)] == ["one, two", 'a; b "c"']


@pytest.mark.parametrize("missing", ["NaN", "null", '""', '"nan"', '"None"'])
def test_a_value_that_is_missing_is_no_caption(tmp_path, missing):
    content = f'{{"file": "a.mp4", "text": {missing}, "prompt": {missing}}}'
    assert rows(tmp_path, "m.jsonl", content) == [("a.mp4", "", 0, None)]
    assert rows(tmp_path, "m.jsonl", content.replace('"prompt": ', '"prompt": "x", "b": ')) == [
        ("a.mp4", "x", 0, None)
    ]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2", "4.5", (2, 4.5)),
        ("1,5", "0:01:03", (1.5, 63)),
        ("", "1:02", (0, 62)),
        ("9", "", (9, None)),
    ],
)
def test_start_and_end_are_seconds_or_times(tmp_path, start, end, expected):
    content = f"file_name;text;start;end_time\na.mp4;x;{start};{end}\n"
    assert rows(tmp_path, "m.csv", content) == [("a.mp4", "x", *expected)]


def test_numbers_of_json_are_seconds(tmp_path):
    content = '{"file": "a.mp4", "text": "x", "start": 0, "end": 2.5}'
    assert rows(tmp_path, "m.jsonl", content) == [("a.mp4", "x", 0, 2.5)]


def test_columns_without_a_meaning_are_told(tmp_path):
    path = tmp_path / "m.json"
    path.write_text('[{"file_path": "a.mp4", "text": "x", "type": "video", "start_frame": 3}]')
    assert read_table(path)[1] == ["type", "start_frame"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "file_name,text\n", "m.csv has no rows"),
        ("m.csv", "", "has no rows"),
        ("m.csv", "file_name,text,Text\na.mp4,b,c\n", "line 1 of .* names the column text twice"),
        ("m.csv", "a.mp4,one\nb.mp4,two\n", "line 2 of .* names no file .* it has a.mp4, one"),
        ("m.csv", "file_name,label\na.mp4,b\n", "has no captions .* it has file_name, label"),
        ("m.csv", "file_name;text\na.mp4;b;c\n", "line 2 of .* text with semicolons in double"),
        ("m.csv", "file_name,text\na.mp4,x\n".encode("utf-16"), "isn't UTF-8 .* save it as UTF-8"),
        (
            "m.csv",
            "file,text,start,end\na.mp4,x,3,2\n",
            "line 2 of .*: the end, 2 s, must be after",
        ),
        ("m.csv", "file,text,start\na.mp4,x,-1\n", "line 2 of .*: start and end .* got '-1'"),
        ("m.csv", "file,text,start\na.mp4,x,inf\n", "line 2 of .*: start and end .* got 'inf'"),
        ("m.csv", "file,text,end\na.mp4,x,soon\n", "line 2 of .*: start and end .* got 'soon'"),
        ("m.jsonl", '["a.mp4", "x"]\n["b.mp4", "y"]\n', "line 1 of .* isn't an object"),
        ("m.json", '{"a.mp4": "x"}', "isn't a list of objects"),
        ("m.json", '[{"file": "a.mp4", "text": "x"}, 3]', "entry 2 of .* isn't an object"),
        ("m.json", "[" * 100000, "isn't JSON: maximum recursion"),
        ("m.json", f"[{'9' * 5000}]", "isn't JSON: Exceeds"),
        ("m.jsonl", '{"file": "a.mp4", "text": "\\ud83d"}', "line 1 of .* Unicode"),
        ("m.jsonl", '{"file": "a\\u0000.mp4", "text": "x"}', "line 1 of .* Unicode"),
        (
            "m.jsonl",
            '{"file": "a.mp4", "text": "x", "start": [1, 2]}',
            "line 1 of .* start and end",
        ),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path, name, content, message):
    with pytest.raises(InvalidInputError, match=message):
        rows(tmp_path, name, content)
