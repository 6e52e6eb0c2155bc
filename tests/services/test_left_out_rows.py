"""Rows that do not train come back: as they were, edited, or read again from the source."""

import csv
import json
from dataclasses import replace

import pytest

from studio.core.errors import DatasetError
from studio.core.turn_edits import TurnEdit
from studio.services.check_lists import list_check
from studio.services.findings import LEFT_OUT
from studio.services.left_out_rows import (
    excluded_numbers,
    excluded_row,
    list_excluded,
    read_unused,
)
from studio.services.row_correction import corrected

ROWS = [{"question": f"Where is town {n}?", "answer": f"At mile {n}."} for n in range(1, 9)]


def jsonl(tmp_path, rows):
    path = tmp_path / "towns.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def turns_of(*said):
    return [{"role": r, "content": t} for r, t in zip(said[::2], said[1::2], strict=True)]


def numbers(store, info):
    return [row["i"] for row in store.rows(info.id, 0, 1000)]


def said(store, info, i):
    [row] = [row for row in store.rows(info.id, 0, 1000) if row["i"] == i]
    return [message["content"] for message in row["messages"]]


def adds_up(info):
    assert info.used + info.left_out == info.rows
    assert sum(info.problem_reasons.values()) == info.left_out


def put_back(edits, info, found, texts):
    source = corrected(info, found, texts)
    return edits.apply(info.id, {"step": "restore", "row": found.i, "source": source})


def test_a_row_that_a_change_left_out_comes_back_to_its_place(store, edits, tmp_path):
    base = store.import_file(jsonl(tmp_path, ROWS))
    left = edits.apply(base.id, {"step": "exclude", "rows": [3, 5, 6], "why": "dull"})
    assert excluded_numbers(store, left).tolist() == [3, 5, 6]
    [hit] = list_excluded(store, left, 1, 1)
    assert (hit["i"], hit["line"], hit["detail"]) == (5, 5, "Left out 3 rows: dull")
    assert hit["preview"] == "Where is town 5?\nAt mile 5."
    back = edits.apply(left.id, {"step": "restore", "row": 5})
    assert numbers(store, back) == [1, 2, 4, 5, 7, 8] and back.left_out == 2
    adds_up(back)
    turns = [{**m} for m in excluded_row(store, back, 3).messages]
    turns[-1]["content"] = "At mile three."
    edited = edits.apply(back.id, {"step": "restore", "row": 3, "messages": turns})
    assert said(store, edited, 3)[-1] == "At mile three." and numbers(store, edited)[2] == 3
    assert [step["text"] for step in edits.history(edited.id).done] == [
        "Left out 3 rows: dull", "Put row 5 back", "Put row 3 back, edited",
    ]  # fmt: skip
    undone = edits.undo(edited.id)
    assert undone.id == back.id and edits.redo(undone.id).id == edited.id
    with pytest.raises(DatasetError, match="This row is not left out"):
        edits.apply(edited.id, {"step": "restore", "row": 3})


def test_a_row_outside_of_a_sample_and_in_a_shuffled_set_comes_back(store, edits, tmp_path):
    info = store.import_file(jsonl(tmp_path, ROWS))
    for step in ({"step": "shuffle", "seed": 1}, {"step": "sample", "n": 3, "seed": 1}):
        info = edits.apply(info.id, step)
    gone = excluded_numbers(store, info).tolist()
    [hit, *_] = list_excluded(store, info)
    assert len(gone) == 5 and hit["detail"] == "Kept 3 rows, drawn with seed 1"
    back = edits.apply(info.id, {"step": "restore", "row": gone[0]})
    assert sorted(numbers(store, back)) == sorted([*numbers(store, info), gone[0]])
    adds_up(back)


def test_rows_that_could_not_be_used_are_corrected_and_counted(store, edits, tmp_path):
    rows = [*ROWS[:3], {"question": "Who?", "answer": ""}, '{"question": "What?", "answer": "Th',
            *ROWS[3:], {"question": "How many?", "answer": 7}]  # fmt: skip
    base = store.import_file(jsonl(tmp_path, rows))
    original = (tmp_path / "towns.jsonl").read_bytes()
    assert (base.rows, base.used, base.left_out) == (11, 8, 3)
    empty = read_unused(base, 4, tmp_path / "tmp")
    assert [(c.title, c.text) for c in empty.cells(base)] == [("question", "Who?"), ("answer", "")]
    with pytest.raises(DatasetError, match="Row 4 cannot be saved so: 'answer' .* is empty"):
        corrected(base, empty, ["Who?", " "])
    one = put_back(edits, base, empty, ["Who?", "Ada."])
    assert said(store, one, 4) == ["Who?", "Ada."] and numbers(store, one)[3] == 4
    assert (one.used, one.left_out) == (9, 2) and not list_check(one, "empty")
    assert {e["id"] for e in one.checks if e["left_out"]} == {"unreadable", "wrong_type"}
    assert 4 not in {problem["row"] for problem in one.problems}
    adds_up(one)
    broken = read_unused(one, 5, tmp_path / "tmp")
    [cell] = broken.cells(one)
    assert cell.text == rows[4] and broken.reason.startswith("not valid JSON")
    with pytest.raises(
        DatasetError, match="Row 5 cannot be saved so: not valid JSON: Unterminated string"
    ):
        corrected(one, broken, [rows[4]])
    two = put_back(edits, one, broken, [rows[4] + 'is."}'])
    number = read_unused(two, 11, tmp_path / "tmp")
    with pytest.raises(DatasetError, match="No change has left this row out"):
        edits.apply(two.id, {"step": "restore", "row": 11})
    three = put_back(edits, two, number, ["How many?", "7"])
    assert said(store, three, 11) == ["How many?", "7"]
    assert (three.used, three.left_out, three.problem_reasons) == (11, 0, {})
    assert not any(entry["left_out"] for entry in three.checks)
    assert edits.undo(edits.undo(edits.undo(three.id).id).id).id == base.id
    assert (base.folder / "source.jsonl").read_bytes() == original
    gone = edits.apply(three.id, {"step": "exclude", "rows": [4], "why": "by hand"})
    adds_up(gone)
    assert excluded_numbers(store, gone).tolist() == [4]
    again = edits.apply(gone.id, {"step": "restore", "row": 4})
    assert said(store, again, 4) == ["Who?", "Ada."] and again.left_out == 0


@pytest.fixture
def two(store, edits, tmp_path):
    """Nine rows of which the last cannot be used, measured on six others, two of them the same."""
    base = store.import_file(jsonl(tmp_path, [*ROWS, {"question": "Who?", "answer": ""}]))
    more = [{"question": f"What is {n}?", "answer": f"A {n}."} for n in range(4)]
    other = store.import_file(jsonl(tmp_path, [*ROWS[:2], *more]))
    return base, edits.apply(base.id, {"step": "held_out_file", "dataset": other.id})


def test_a_row_comes_back_while_the_rows_of_another_data_set_are_held_out(
    store, edits, two, tmp_path
):
    base, both = two
    assert numbers(store, both) == [*range(1, 9), *range(10, 16)]
    found = read_unused(both, 9, tmp_path / "tmp")
    back = put_back(edits, both, found, ["Who?", "Ada."])
    assert said(store, back, 9) == ["Who?", "Ada."] and said(store, back, 12)[0] == "What is 0?"
    assert numbers(store, back) == list(range(1, 16)) and back.left_out == 0
    assert back.held_out["rows"] == list(range(9, 15))
    adds_up(back)
    assert edits.undo(back.id).id == both.id


def test_held_out_rows_of_another_data_set_are_left_out_changed_and_put_back(store, edits, two):
    base, both = two
    left = edits.apply(both.id, {"step": "exclude", "check": "held_out_overlap"})
    assert numbers(store, left) == [*range(1, 9), *range(12, 16)]
    assert (left.rows, left.used, left.left_out, left.num_held_out(0.5)) == (15, 12, 3, 4)
    adds_up(left)
    assert excluded_numbers(store, left).tolist() == [10, 11]
    assert [hit["i"] for hit in list_excluded(store, left)] == [10, 11]
    assert excluded_row(store, left, 11).messages[0]["content"] == "Where is town 2?"
    turns = turns_of("user", "Where is town 2?", "assistant", "Gone.")
    changed = edits.apply(left.id, {"step": "restore", "row": 11, "messages": turns})
    assert said(store, changed, 11)[1] == "Gone." and changed.left_out == 2
    changed = edits.apply(changed.id, {"step": "edit", "row": 12, "messages": turns})
    assert said(store, changed, 12)[1] == "Gone." and said(store, changed, 2)[1] == "At mile 2."
    adds_up(changed)
    with pytest.raises(DatasetError, match="No row of the held-out data set would be left"):
        edits.apply(changed.id, {"step": "exclude", "rows": list(range(10, 16))})


def test_what_was_done_to_one_held_out_file_is_not_done_to_the_next(store, edits, two, tmp_path):
    base, both = two
    left = edits.apply(both.id, {"step": "exclude", "rows": [12, 13]})
    third = store.import_file(jsonl(tmp_path, [*ROWS[4:], {"question": "Q", "answer": "A"}]))
    info = edits.apply(left.id, {"step": "held_out_file", "dataset": third.id})
    assert numbers(store, info) == [*range(1, 9), *range(10, 15)]
    assert excluded_numbers(store, info).tolist() == []
    adds_up(info)


def test_a_data_set_whose_rows_are_held_out_is_not_cleared_away(store, edits, two, tmp_path):
    base, both = two
    other = both.held_out["dataset"]
    derived = edits.apply(other, {"step": "shuffle"})
    info = edits.apply(base.id, {"step": "held_out_file", "dataset": derived.id})
    for seed in (1, 2):
        derived = edits.apply(derived.id, {"step": "shuffle", "seed": seed})
    edits.collect_garbage(other, older_than_s=0)
    assert edits.apply(info.id, {"step": "shuffle"}).num_held_out(0.1) == 6


def test_a_record_from_before_rows_were_numbered_behind_the_source_is_read(
    store, edits, two, tmp_path
):
    base, both = two
    old = {"step": "held_out_file", "dataset": both.held_out["dataset"], "fingerprint": "f"}
    info = edits._move(base, base.id, [old], [], None, None)
    assert numbers(store, info) == list(range(1, 15))
    left = edits.apply(info.id, {"step": "exclude", "rows": [9]})
    assert excluded_numbers(store, left).tolist() == [9]
    with pytest.raises(DatasetError, match="Hold out the rows of .* once more"):
        edits.apply(info.id, {"step": "restore", "row": 99, "source": {}})


def test_a_row_of_a_table_with_too_many_cells_is_written_anew(store, edits, tmp_path):
    path = tmp_path / "towns.csv"
    path.write_text('question;answer\nWhat?;A table\nMore?;one;two\nAnd?;"two\nlines"\n')
    base = store.import_file(path)
    found = read_unused(base, 2, tmp_path / "tmp")
    assert found.row is None and found.raw == "More?;one;two"
    assert [cell.text for cell in found.cells(base)] == ["", ""]
    info = put_back(edits, base, found, ["More?", "one;two"])
    assert said(store, info, 2) == ["More?", "one;two"] and info.left_out == 0


def test_broken_characters_are_shown_as_they_may_have_been_and_never_become_others(
    store, edits, tmp_path
):
    path = tmp_path / "towns.csv"
    lines = ["question,answer", *(f"Wie heißt Stadt {n}?,Müllheim {n}" for n in range(9))]
    mixed = [*lines[:5], "Grüße?,schön", *lines[5:], "was?,\udc81 da"]
    old = [text.encode("latin-1" if "Gr" in text else "utf-8", "surrogateescape") for text in mixed]
    path.write_bytes(b"\n".join(old) + b"\n")
    base = store.import_file(path)
    assert base.left_out == 2
    found = read_unused(base, 5, tmp_path / "tmp")
    assert found.guessed and [c.text for c in found.cells(base)] == ["Grüße?", "schön"]
    info = put_back(edits, base, found, ["Grüße?", "schön"])
    assert said(store, info, 5) == ["Grüße?", "schön"]
    lost = read_unused(info, 11, tmp_path / "tmp")
    texts = [cell.text for cell in lost.cells(info)]
    assert texts == ["was?", "\ufffd da"]
    with pytest.raises(DatasetError, match="it still holds a lost character"):
        corrected(info, lost, texts)
    assert not read_unused(base, 11, tmp_path / "tmp").row["answer"].isascii()


def test_what_the_import_refuses_is_refused_again(store, edits, tmp_path):
    """Nothing of a row is passed over because it was saved without a change."""
    rows = [*ROWS, '{"question": "a", "question": "b", "answer": "c"}',
            '{"question": ' + "7" * 5000,
            {"question": ["a", "b"], "answer": "c"}, {"question": {"a": 1}, "answer": "c"},
            '{"question": "a", "answer": NaN}']  # fmt: skip
    base = store.import_file(jsonl(tmp_path, rows))
    for i in range(9, 14):
        found = read_unused(base, i, tmp_path / "tmp")
        assert all(cell.turns is None for cell in found.cells(base))
        with pytest.raises(DatasetError, match=f"Row {i} cannot be saved so: ") as refused:
            corrected(base, found, [cell.text for cell in found.cells(base)])
        assert found.reason in str(refused.value)
    found = read_unused(base, 11, tmp_path / "tmp")
    info = put_back(edits, base, found, ["a and b", "c"])
    assert said(store, info, 11) == ["a and b", "c"]


def test_an_answer_that_was_labelled_as_bad_is_learned_once_it_is_relabelled(
    store, edits, tmp_path
):
    rows = [{"prompt": f"q{n}", "completion": f"a{n}", "label": n != 2} for n in range(4)]
    base = store.import_file(jsonl(tmp_path, rows))
    found = read_unused(base, 3, tmp_path / "tmp")
    texts = [cell.text for cell in found.cells(base)]
    assert base.format == "kto" and "false" in texts
    with pytest.raises(DatasetError, match="cannot be saved so"):
        corrected(base, found, texts)
    info = put_back(edits, base, found, ["true" if t == "false" else t for t in texts])
    assert said(store, info, 3) == ["q2", "a2"]


def as_shown(cell):
    """What the page sends where nobody has changed anything."""
    return [TurnEdit(n, turn.role, turn.text, turn.extras) for n, turn in enumerate(cell.turns)]


def test_a_broken_conversation_is_corrected_turn_by_turn(store, edits, tmp_path):
    good = {"messages": turns_of("user", "Hi", "assistant", "Hello.")}
    rows = [
        good,
        {"messages": turns_of("user", "Hi")},
        {"messages": turns_of("user", "Who?", "moderator", "Ada.")},
        {"messages": turns_of("user", "", "assistant", "Ask!")},
        {"messages": [{"role": "user", "content": 7}, {"content": "Seven."}]},
        {"messages": turns_of("user", "a", "user", "b", "assistant", "c")},
        {"messages": []},
    ]
    base = store.import_file(jsonl(tmp_path, rows))
    assert (base.used, base.left_out) == (1, 6)

    def opened(i):
        found = read_unused(base, i, tmp_path / "tmp")
        [cell] = found.cells(base)
        return found, cell, as_shown(cell)

    found, cell, sent = opened(2)
    assert [turn.problem for turn in cell.turns] == [""]
    with pytest.raises(DatasetError, match="Row 2 cannot be saved so: there is no assistant turn"):
        corrected(base, found, [sent])
    with pytest.raises(DatasetError, match="sent no edit of this row"):
        corrected(base, found, ["[]"])
    info = put_back(edits, base, found, [[*sent, TurnEdit(None, "assistant", "Hello!")]])
    assert said(store, info, 2) == ["Hi", "Hello!"]
    found, cell, sent = opened(3)
    assert cell.turns[1].problem == "turn 2 has an unknown role 'moderator'"
    info = put_back(edits, info, found, [[sent[0], replace(sent[1], role="assistant")]])
    assert said(store, info, 3) == ["Who?", "Ada."]
    found, cell, sent = opened(4)
    assert cell.turns[0].problem == "the user text of turn 1 is empty"
    info = put_back(edits, info, found, [[replace(sent[0], text="What?"), sent[1]]])
    found, cell, sent = opened(5)
    assert [turn.text for turn in cell.turns] == ["7", "Seven."]
    info = put_back(edits, info, found, [[sent[0], replace(sent[1], role="assistant")]])
    assert said(store, info, 5) == ["7", "Seven."]
    found, cell, sent = opened(6)
    info = put_back(edits, info, found, [sent[1:]])
    assert said(store, info, 6) == ["b", "c"]
    found, cell, sent = opened(7)
    assert cell.turns == ()
    new = [TurnEdit(None, "user", "And?"), TurnEdit(None, "assistant", "So.")]
    info = put_back(edits, info, found, [new])
    assert said(store, info, 7) == ["And?", "So."] and info.left_out == 0
    adds_up(info)


def test_turns_of_other_spellings_and_in_a_cell_of_a_table_are_read_as_turns(
    store, edits, tmp_path
):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    rows = [{"conversations": turns}, {"conversations": [turns[0], {**turns[1], "value": ""}]}]
    base = store.import_file(jsonl(tmp_path, rows))
    found = read_unused(base, 2, tmp_path / "tmp")
    [cell] = found.cells(base)
    sent = as_shown(cell)
    assert [(t.role, t.text) for t in cell.turns] == [("human", "Hi"), ("gpt", "")]
    info = put_back(edits, base, found, [[sent[0], replace(sent[1], text="Hey.")]])
    assert said(store, info, 2) == ["Hi", "Hey."]
    path = tmp_path / "chats.csv"
    with path.open("w", newline="") as file:
        lines = [turns_of("user", "a", "assistant", "b"), turns_of("user", "a"), "no list"]
        csv.writer(file).writerows(
            [["messages"], *([t if isinstance(t, str) else json.dumps(t)] for t in lines)]
        )
    base = store.import_file(path, format="messages", mapping={"messages": "messages"})
    found = read_unused(base, 2, tmp_path / "tmp")
    [cell] = found.cells(base)
    answer = TurnEdit(None, "assistant", "c")
    info = put_back(edits, base, found, [[*as_shown(cell), answer]])
    assert said(store, info, 2) == ["a", "c"]
    [cell] = read_unused(info, 3, tmp_path / "tmp").cells(info)
    assert cell.turns is None and cell.text == "no list"


def test_what_is_no_list_of_turns_is_corrected_as_json(store, edits, tmp_path):
    turns = turns_of("user", "Hi", "assistant", "Hello.")
    rows = [{"messages": turns}, {"messages": {"first": turns[0]}}, {"messages": [[1], 2]}]
    file, mapping = jsonl(tmp_path, rows), {"messages": "messages"}
    base = store.import_file(file, format="messages", mapping=mapping)
    found = read_unused(base, 2, tmp_path / "tmp")
    [cell] = found.cells(base)
    assert cell.turns is None and json.loads(cell.text) == {"first": turns[0]}
    with pytest.raises(DatasetError, match="is not valid JSON"):
        corrected(base, found, [cell.text[:-3]])
    info = put_back(edits, base, found, [json.dumps(turns)])
    assert said(store, info, 2) == ["Hi", "Hello."]
    [cell] = read_unused(base, 3, tmp_path / "tmp").cells(base)
    assert cell.turns is None


def test_a_row_behind_the_end_of_the_list_is_opened_by_its_number(store, edits, tmp_path):
    rows = [*ROWS[:3], {"question": "Who?", "answer": ""}, '{"question": "What?', ROWS[5]]
    base = store.import_file(jsonl(tmp_path, rows))
    (base.folder / LEFT_OUT).write_text("")  # as for the row after the 100,000th
    empty, broken = (read_unused(base, i, tmp_path / "tmp") for i in (4, 5))
    assert (empty.check, empty.line) == ("empty", 4) and empty.row == rows[3]
    assert empty.reason == "'answer' (column 'answer') is empty"
    assert (broken.check, broken.line, broken.raw) == ("unreadable", 5, rows[4])
    info = base
    for found, parts in ((empty, ["Who?", "Ada."]), (broken, [rows[4] + '", "answer": "It."}'])):
        step = {"step": "restore", "row": found.i, "source": corrected(info, found, parts),
                "check": found.check, "reason": found.reason}  # fmt: skip
        info = edits.apply(info.id, step)
        adds_up(info)
    assert said(store, info, 5) == ["What?", "It."] and info.left_out == 0
    gone = edits.apply(info.id, {"step": "exclude", "rows": [2]})
    for number in (2, 3, 0, 7):
        with pytest.raises(DatasetError, match="no such row among those that are left out"):
            read_unused(gone, number, tmp_path / "tmp")


def test_rows_that_do_not_exist_or_are_too_long_are_refused(store, edits, tmp_path):
    rows = [*ROWS, {"question": "x" * 1_100_000, "answer": ""}]
    base = store.import_file(jsonl(tmp_path, rows))
    with pytest.raises(DatasetError, match="too long to be edited here"):
        read_unused(base, 9, tmp_path / "tmp")
    with pytest.raises(DatasetError, match="no such row among those that are left out"):
        read_unused(base, 3, tmp_path / "tmp")
    with pytest.raises(DatasetError, match="No change has left this row out"):
        edits.apply(base.id, {"step": "restore", "row": 99})
    assert not list((tmp_path / "tmp").iterdir())
