"""Files of every kind and in every bad shape: what comes out, or which sentence."""

import csv
import gzip
import io
import json
import pickle
import re
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from studio.core.errors import DatasetError
from studio.services.import_child import read_file

LIMITS = {"memory_bytes": 2**31, "cpu_s": 60, "file_bytes": 2**30, "decoded_bytes": 2**26}
PAIRS = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(1, 13)]
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}


@pytest.fixture
def read(tmp_path):
    """Import bytes or text under a file name, in this process; returns facts with examples."""

    def read(name, content, *, format="auto", mapping=None, decoded_bytes=LIMITS["decoded_bytes"]):
        source = tmp_path / "source"
        source.write_bytes(content.encode() if isinstance(content, str) else content)
        facts = read_file(
            {"source": str(source), "name": name, "folder": str(tmp_path), "format": format,
             "mapping": mapping, "limits": {**LIMITS, "decoded_bytes": decoded_bytes}}
        )  # fmt: skip
        lines = (tmp_path / "data.jsonl").read_text(encoding="utf-8").splitlines()
        facts["examples"] = [json.loads(line) for line in lines]
        return facts

    return read


def table(rows, delimiter=",", columns=("question", "answer")):
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def answers(facts):
    return [example["messages"][-1]["content"] for example in facts["examples"]]


PAIR_ANSWERS = [row["answer"] for row in PAIRS]

SHAPES = {
    "comma.csv": table(PAIRS),
    "semicolon.csv": table(PAIRS, ";"),
    "pipe.csv": table(PAIRS, "|"),
    "tab.tsv": table(PAIRS, "\t"),
    "tab.txt": table(PAIRS, "\t"),
    "no_extension": table(PAIRS),
    "excel.csv": "sep=;\n" + table(PAIRS, ";"),
    "crlf.csv": table(PAIRS).replace("\n", "\r\n"),
    "blank_lines.csv": table(PAIRS).replace("\n", "\n\n"),
    "lines.jsonl": jsonl(PAIRS),
    "lines.json": jsonl(PAIRS),
    "lines.txt": jsonl(PAIRS),
    "array.json": json.dumps(PAIRS),
    "pretty.json": json.dumps(PAIRS, indent=2),
    "array.jsonl": json.dumps(PAIRS, indent=1),
    "wrapped.json": json.dumps({"version": [1, 2], "data": PAIRS}),
    "splits.json": json.dumps({"test": [{"question": "x", "answer": "y"}], "train": PAIRS}),
    "columns.json": json.dumps({key: [row[key] for row in PAIRS] for key in PAIRS[0]}),
    "objects.json": "\n".join(json.dumps(row, indent=1) for row in PAIRS),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_gives_the_same_rows(read, name):
    facts = read(name, SHAPES[name])
    assert facts["format"] == "pairs"
    assert answers(facts) == PAIR_ANSWERS
    assert facts["counts"] == {"rows": 12, "used": 12, "left_out": 0}


@pytest.mark.parametrize("name", ["comma.csv", "lines.jsonl", "pretty.json"])
def test_gzip_is_unpacked(read, name):
    assert answers(read(name + ".gz", gzip.compress(SHAPES[name].encode()))) == PAIR_ANSWERS


def test_the_same_rows_have_the_same_fingerprint_only_with_the_same_lines(read):
    assert (
        read("a.jsonl", jsonl(PAIRS))["fingerprint"] == read("b.json", jsonl(PAIRS))["fingerprint"]
    )
    assert (
        read("a.jsonl", jsonl(PAIRS[1:]))["fingerprint"]
        != read("b.jsonl", jsonl(PAIRS))["fingerprint"]
    )


def test_parquet_gives_the_same_rows_and_nested_messages(read):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS), sink)
    facts = read("rows.parquet", sink.getvalue())
    assert answers(facts) == PAIR_ANSWERS
    assert [example["line"] for example in facts["examples"]] == [None] * 12
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([CHAT] * 3), sink)
    assert answers(read("chat", sink.getvalue())) == ["Yo"] * 3


def test_json_wrapper_says_which_list_it_took(read):
    facts = read("splits.json", SHAPES["splits.json"])
    assert facts["notes"] == ["the rows are those under 'train'; not used: test (1 rows)"]


def test_one_chat_object_is_one_row(read):
    assert answers(read("one.json", json.dumps(CHAT, indent=2))) == ["Yo"]


def test_lists_of_turns_without_an_object_around_them_are_chats(read):
    facts = read("chats.jsonl", jsonl([CHAT["messages"]] * 3))
    assert (facts["format"], answers(facts)) == ("messages", ["Yo"] * 3)


def test_lines_are_where_the_rows_begin(read):
    rows = 'question,answer\na,"two\nlines"\nb,c\n'
    facts = read("lines.csv", rows)
    assert [(e["i"], e["line"]) for e in facts["examples"]] == [(1, 2), (2, 4)]
    facts = read("pretty.json", json.dumps(PAIRS, indent=2))
    assert [e["line"] for e in facts["examples"]][:3] == [2, 6, 10]


def test_headerless_table_is_named_and_recognised_by_content(read):
    rows = "".join(f"a film number {n}, nice\t{n % 2}\n" for n in range(12))
    facts = read("sst.tsv", rows)
    assert facts["format"] == "classification"
    assert facts["mapping"] == {"text": "column_1", "label": "column_2"}
    assert facts["counts"]["used"] == 12
    assert "no header" in facts["notes"][0]


def test_text_is_parted_by_blank_lines_else_by_lines(read):
    facts = read("a.txt", "\n\nOne\nstill one\n\n \nTwo\n")
    assert [(e["line"], e["text"]) for e in facts["examples"]] == [
        (3, "One\nstill one"),
        (7, "Two"),
    ]
    facts = read("b.txt", "One.\nTwo.\nThree.")
    assert [e["text"] for e in facts["examples"]] == ["One.", "Two.", "Three."]
    assert facts["notes"] == ["no blank lines: each line is a row"]


def test_unquoted_tsv_keeps_quotes_as_characters(read):
    rows = 'question\tanswer\n"Open\tyes\nb\t"no\n'
    assert answers(read("q.tsv", rows)) == ["yes", '"no']


# ------------------------------------------------------------------ ragged and broken rows


@pytest.mark.parametrize("cells", ["x", "x,y,z", "x,y,"])
def test_ragged_row_is_left_out_and_never_shifts(read, cells):
    facts = read("r.csv", f"question,answer\na,b\n{cells}\nc,d\n")
    assert answers(facts) == ["b", "d"]
    assert [(p["line"], p["row"]) for p in facts["problems"]] == [(3, 2)]
    assert "cells, the header has 2" in facts["problems"][0]["reason"]


def test_unquoted_comma_in_one_row_does_not_move_its_columns(read):
    rows = [f"id {n},question {n},answer {n}" for n in range(30)]
    rows[7] = "id 7,well, question 7,answer 7"
    facts = read("r.csv", "id,question,answer\n" + "\n".join(rows))
    assert facts["counts"] == {"rows": 30, "used": 29, "left_out": 1}
    assert facts["problems"][0]["line"] == 9


def test_bad_json_lines_are_left_out_by_line(read):
    rows = ['{"question": "a", "answer": "b"}', '{"question": "a", ', "7", "", "[]",
            '{"question": "c", "answer": ""}', '{"question": "c", "answer": "d"}']  # fmt: skip
    facts = read("bad.jsonl", "\n".join(rows))
    assert answers(facts) == ["b", "d"]
    assert [p["line"] for p in facts["problems"]] == [2, 3, 5, 6]
    assert [p["reason"].split(":")[0] for p in facts["problems"]] == [
        "not valid JSON", "the row is a number, not an object", "the row is a list, not an object",
        "'answer' (column 'answer') is empty",
    ]  # fmt: skip
    assert all(p["remedy"] for p in facts["problems"])


def test_first_line_broken_in_json_lines_does_not_lose_the_file(read):
    facts = read("bad.jsonl", "oops\n" + jsonl(PAIRS))
    assert facts["counts"] == {"rows": 13, "used": 12, "left_out": 1}


def test_problems_are_capped_but_counted(read):
    rows = [{"question": "a", "answer": ""}] * 450 + PAIRS
    facts = read("many.jsonl", jsonl(PAIRS[:1] + rows))
    assert facts["counts"] == {"rows": 463, "used": 13, "left_out": 450}
    assert len(facts["problems"]) == 200
    assert facts["problems"][0]["count"] == 450
    assert sum(facts["problem_reasons"].values()) == 450


def test_deep_nesting_is_a_problem_of_its_line(read):
    deep = '{"question": ' + "[" * 100_000 + "]" * 100_000 + "}"
    facts = read("deep.jsonl", jsonl(PAIRS) + deep + "\n")
    assert facts["problems"][0]["line"] == 13
    assert "nested" in facts["problems"][0]["reason"]


# ------------------------------------------------------------------ encodings

UMLAUTS = "question,answer\nWo ist der Bäcker?,Über die Straße.\n"


@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("utf-8", None), ("utf-8-sig", None), ("utf-16", None), ("utf-32", None),
        ("utf-16-le", "UTF-16 LE .a guess"), ("utf-16-be", "UTF-16 BE .a guess"),
        ("cp1252", "Windows-1252 .a guess"),
    ],
)  # fmt: skip
def test_encoding_is_found_and_named_when_guessed(read, encoding, note):
    facts = read("umlaut.csv", UMLAUTS.encode(encoding))
    assert answers(facts) == ["Über die Straße."]
    assert facts["columns"] == ["question", "answer"]
    assert len(facts["notes"]) == (note is not None)
    assert note is None or re.search(note, facts["notes"][0])


def test_bom_does_not_become_part_of_json(read):
    assert answers(read("bom.jsonl", jsonl(PAIRS).encode("utf-8-sig"))) == PAIR_ANSWERS
    assert answers(read("bom.json", json.dumps(PAIRS).encode("utf-16"))) == PAIR_ANSWERS


def test_one_broken_character_costs_its_row_only(read):
    rows = UMLAUTS.encode() + b"bad \xff here,no\n" + "ä,ö\n".encode() * 3
    facts = read("mixed.csv", rows)
    assert facts["counts"] == {"rows": 5, "used": 4, "left_out": 1}
    assert facts["problems"][0]["line"] == 3
    assert "broken characters" in facts["problems"][0]["reason"]
    assert "not valid UTF-8" in facts["notes"][0]


def test_lone_surrogate_in_json_is_left_out(read):
    rows = jsonl(PAIRS) + '{"question": "a", "answer": "\\ud800"}\n'
    assert read("s.jsonl", rows)["counts"]["left_out"] == 1


# ------------------------------------------------------------------ files that cannot be used


def xlsx():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
        archive.writestr("xl/workbook.xml", "<x/>")
    return out.getvalue()


def plain_zip():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("rows.csv", "a,b\n")
    return out.getvalue()


REFUSED = [
    ("a.csv", b"  \n\n", "a.csv: the file is empty. Choose a file with rows"),
    ("a.json", b"\xef\xbb\xbf\n", "a.json: the file is empty"),
    ("a.csv", b"question,answer\n", "a.csv: the file has no rows"),
    ("a.json", b"[]", "a.json: the file has no rows"),
    ("a.xlsx", xlsx(), "this is an Excel file, not a data file. Save the sheet as CSV"),
    ("a.csv", xlsx(), "this is an Excel file"),
    ("a.xls", b"\xd0\xcf\x11\xe0" + b"\0" * 64, "old Excel or Office file.*Save the sheet as CSV"),
    ("a.zip", plain_zip(), "a.zip: the file has no rows. Choose a file with rows"),
    ("a.pkl", pickle.dumps({"a": [1]}), "Python pickle, which can run code.*never is"),
    ("a.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "this is a PNG picture"),
    ("a.jpg", b"\xff\xd8\xff\xe0" + b"\0" * 64, "this is a JPEG picture"),
    ("a.pdf", b"%PDF-1.7\n", "this is a PDF document"),
    ("a.csv", b"<!DOCTYPE html><html>", "web page.*Download the raw file"),
    ("a.bin", bytes(range(256)) * 20, "binary file"),
    ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ("a.npy", b"\x93NUMPY\x01\x00", "NumPy array"),
    ("a.db", b"SQLite format 3\0", "SQLite database"),
    ("a.gz", b"\x1f\x8b\x08\x00garbage-that-is-not-gzip", "gzip data is damaged"),
    ("a.csv.gz", gzip.compress(b"question,answer\n" * 900, mtime=0)[:40], "gzip data is damaged"),
    ("a.parquet", b"PAR1 this is not parquet PAR1", "Parquet data cannot be read"),
    ("a.json", b"hello there", "called JSON but does not begin like JSON"),
    ("a.json", b'[{"question": "a"}, {"question": ', "line 1: not valid JSON"),
    ("a.json", b'[{"question": "a",\n "answer": "b"},\n {"question" 7}]', "line 3: not valid JSON"),
    ("a.json", b'[{"question": "a"}\n\n{"question": "b"}]', "line 3: expected ',' or ']'"),
    ("a.json", b'[{"question": "a", "answer": "b"}]\n[1]', "line 2: there is more text"),
    ("a.json", b'{"cats": [{"a": 1}], "dogs": [{"a": 1}]}', "several lists .* .got 'cats, dogs'"),
    ("a.jsonl", b"[1]\n[2]\n", "no usable rows; the first problem: the row is a list"),
    ("a.csv", b'question,answer\na,b\n"c,d\n', "line 3: a quote is opened here and never closed"),
    ("a.csv", b'question,answer\na,b\n"c"d,e\n', "line 3: a quote ends in the middle"),
    ("a.csv", b"text,text\na,b\n", "line 1: two columns have the same name .got 'text'"),
    ("a.csv", b"alpha,beta,gamma\n1,2,3\n", "a.csv: None of the known formats.*alpha, beta, gamma"),
    ("a.jsonl", jsonl([{"question": "a", "answer": ""}] * 3).encode(),
     "line 1: no usable rows, none of 3; the first problem: 'answer' .* is empty"),
    ("a.jsonl", jsonl([{"messages": [{"role": "user", "content": "x"}]}]).encode(),
     "no usable rows, none of 1.*no assistant turn"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_unusable_file_gets_one_sentence(read, name, content, message):
    with pytest.raises(DatasetError, match=message) as caught:
        read(name, content)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


def test_gzip_bomb_stops_at_the_budget(read):
    bomb = gzip.compress(b"question,answer\n" + b"a,b\n" * 2_000_000)
    assert len(bomb) < 50_000
    with pytest.raises(DatasetError, match="unpacks to more than 4 MiB"):
        read("bomb.csv.gz", bomb, decoded_bytes=2**22)


def test_parquet_bomb_stops_at_the_budget(read):
    long = pyarrow.array(["x" * 100_000]).dictionary_encode()
    column = pyarrow.DictionaryArray.from_arrays([0] * 20_000, long.dictionary)
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), sink)
    assert len(sink.getvalue()) < 200_000  # and two gigabytes once unpacked
    with pytest.raises(DatasetError, match="unpacks to more than 64 MiB"):
        read("bomb.parquet", sink.getvalue(), decoded_bytes=2**26)


def test_format_and_mapping_by_hand(read):
    rows = table(PAIRS, columns=("question", "answer"))
    facts = read(
        "p.csv", rows, format="pairs", mapping={"question": "answer", "answer": "question"}
    )
    assert answers(facts)[0] == "What is 1?"
    assert facts["reasons"] == ["chosen by hand"]
    facts = read("p.csv", rows, format="text", mapping={"text": "answer"})
    assert facts["examples"][0]["text"] == "It is 1."
    with pytest.raises(DatasetError, match="p.csv: .*does not have .got 'nope'"):
        read("p.csv", rows, format="text", mapping={"text": "nope"})
    with pytest.raises(DatasetError, match="needs a column for 'messages'"):
        read("p.csv", rows, format="messages")


SCRAPS = ['"', ",", "\n", "\r", "\0", "{", "]", "\\u", "NaN", "\t", '""', "9" * 5000, "\ufeff"]


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(sorted(SHAPES)),
    at=st.floats(0, 1),
    cut=st.integers(0, 40),
    scrap=st.sampled_from(SCRAPS),
)
def test_damaged_file_gives_rows_or_a_sentence(read, name, at, cut, scrap):
    whole = SHAPES[name]
    place = int(at * len(whole))
    try:
        facts = read(name, whole[:place] + scrap + whole[place + cut :])
    except DatasetError as error:
        assert str(error).startswith(name)
        return
    counts = facts["counts"]
    assert counts["used"] == len(facts["examples"])
    assert counts["used"] + counts["left_out"] == counts["rows"]
    assert sum(facts["problem_reasons"].values()) == counts["left_out"]
