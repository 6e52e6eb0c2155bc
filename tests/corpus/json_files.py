"""JSON in every broken shape: cut, nested, repeated, of the wrong kind."""

from __future__ import annotations

import json

from tests.corpus.case import Case, keep, lines, pairs, refuse

GOOD = lines(*pairs(2))
ROW = '{"question": "a", "answer": "b"}'
LONG = "9" * 5000


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth


BROKEN = [
    refuse("cut-array.json", json.dumps(pairs(3))[:-20], "not valid JSON", line=1),
    refuse("cut-in-key.json", '[{"question": "a", "ans', "not valid JSON", line=1),
    refuse("cut-after-comma.json", f"[{ROW},", "the file ends in the middle", line=1),
    refuse("cut-in-escape.json", '[{"question": "a\\u00', "not valid JSON", line=1),
    keep("cut-last-line.jsonl", GOOD + ROW[:-9], 3, {"not valid JSON": 1}),
    refuse("trailing-comma-array.json", f"[{ROW},\n{ROW},\n]", "not valid JSON", line=3),
    refuse("trailing-comma-object.json", '[{"question": "a",\n}]', "not valid JSON", line=2),
    refuse("missing-comma.json", f"[{ROW}\n{ROW}]", "expected ',' or ']'", line=2),
    keep("no-brackets.json", f"{ROW},\n{ROW},\n{ROW}", 3, {"Extra data": 2}),
    refuse("commas-after-lines.jsonl", f"{ROW},\n{ROW},\n", "not valid JSON", line=1),
    refuse("text-after-array.json", f"[{ROW}]\nthe end", "more text after the end", line=2),
    refuse("two-arrays.json", f"[{ROW}]\n[{ROW}]", "more text after the end", line=2),
    refuse("single-quotes.json", "[{'question': 'a', 'answer': 'b'}]", "in double quotes", line=1),
    refuse("single-quotes.jsonl", "{'question': 'a', 'answer': 'b'}\n", "begin like JSON", line=1),
    refuse("comment-first.json", f"// rows\n[{ROW}]", "does not begin like JSON", line=1),
    refuse("comment-inside.json", f"[{ROW},\n/* row */\n{ROW}]", "not valid JSON", line=2),
    keep("comment-lines.jsonl", f"# rows\n{GOOD}", 3, {"not valid JSON": 1}),
    refuse("unquoted-keys.json", '[{question: "a"}]', "in double quotes", line=1),
    refuse("python-words.json", '[{"question": None, "answer": True}]', "not valid JSON", line=1),
    refuse("raw-line-break.json", '[{"question": "a\nb", "answer": "c"}]', "not valid JSON"),
    keep("raw-tab.jsonl", GOOD + '{"question": "a\tb", "answer": "c"}\n', 3, {"control char": 1}),
    keep("bad-escape.jsonl", GOOD + '{"question": "a\\x41", "answer": "c"}\n', 3, {"escape": 1}),
    keep("one-line-broken.jsonl", GOOD + "{oops\n" + GOOD, 5, {"not valid JSON": 1}),
    keep("first-line-broken.jsonl", "oops\n" + GOOD, 3, {"not valid JSON": 1}),
    refuse("all-lines-broken.jsonl", "{oops}\n{oops}\n", "begin like JSON", line=1),
    keep("two-objects-in-a-line.jsonl", GOOD + ROW + ROW + "\n", 3, {"Extra data": 1}),
    keep("objects-in-a-row.json", ROW * 5, 5, last="b"),
    keep("objects-over-lines.json", json.dumps(pairs(1)[0], indent=1) * 3, 3),
    keep("array-in-lines.jsonl", json.dumps(pairs(3)), 3),
    keep("pretty-array-in-lines.jsonl", json.dumps(pairs(3), indent=2), 3),
    keep("lines-called-array.json", GOOD, 2),
    refuse("html.json", "<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    refuse("xml.json", '<?xml version="1.0"?><rows/>', "does not begin like JSON", line=1),
    refuse("yaml.json", "- question: a\n  answer: b\n", "does not begin like JSON", line=1),
    refuse(
        "lfs-pointer.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"
    ),
]

TOP_LEVEL = [
    refuse("number.json", "5", "does not begin like JSON", line=1),
    refuse("string.json", '"hello"', "does not begin like JSON", line=1),
    refuse("null.json", "null", "does not begin like JSON", line=1),
    keep("one-object.json", ROW, 1, last="b"),
    refuse("empty-object.json", "{}", "no columns"),
    refuse("empty-array.json", "[]", "the file has no rows"),
    refuse("empty-objects.json", "[{}, {}]", "no columns"),
    refuse("array-of-empty-arrays.json", "[[], []]", "the row is a list", line=1),
    refuse("array-of-numbers.json", "[1,\n2, 3]", "the row is a number", line=1),
    refuse("array-of-nulls.json", "[null, null]", "the row is null", line=1),
    keep("array-of-texts.json", '["One.", "Two."]', 2, last="Two."),
    keep("array-of-mixed-rows.json", f"[{ROW}, 1, null, [], {ROW}]", 5,
         {"is a number": 1, "is null": 1, "is a list": 1}),
    keep("splits.json", json.dumps({"test": pairs(1), "train": pairs(3)}), 3,
         note="not used: test (1 rows)"),
    keep("split-test-alone.json", json.dumps({"train": [], "test": pairs(2)}), 2, note="'test'"),
    keep("wrapper.json", json.dumps({"version": 1, "data": pairs(2)}), 2, note="'data'"),
    refuse("two-wrappers.json", json.dumps({"cats": pairs(1), "dogs": pairs(1)}), "several lists"),
    refuse("wrapper-twice.json", f'{{"data": [{ROW}], "data": [{ROW}]}}', "'data' stands twice",
           line=1),
    keep("columns.json", json.dumps({"question": ["a", "c"], "answer": ["b", "d"]}), 2, last="d"),
    refuse("columns-unequal.json", json.dumps({"question": ["a", "c"], "answer": ["b"]}),
           "is a list, not text", line=1),
]  # fmt: skip

VALUES = [
    keep("answer-nan.jsonl", GOOD + '{"question": "a", "answer": NaN}\n', 3, {"is a number": 1}),
    keep("nan-elsewhere.jsonl", '{"question": "a", "answer": "b", "score": NaN}\n' * 2, 2),
    keep("infinity.jsonl", GOOD + '{"question": -Infinity, "answer": "b"}\n', 3,
         {"is a number": 1}),
    keep("float-too-big.jsonl", GOOD + '{"question": 1e999, "answer": "b"}\n', 3,
         {"is a number": 1}),
    keep("number-of-5000-digits.jsonl", GOOD + f'{{"question": "a", "n": {LONG}}}\n', 3,
         {"a number is too long": 1}),
    refuse("number-of-5000-digits.json", f'[{ROW},\n{{"question": {LONG}}}]', "too long", line=2),
    keep("answer-null.jsonl", GOOD + '{"question": "a", "answer": null}\n', 3, {"is missing": 1}),
    keep("answer-missing.jsonl", GOOD + '{"question": "a"}\n', 3, {"is missing": 1}),
    keep("answer-number.jsonl", GOOD + '{"question": "a", "answer": 4}\n', 3, {"is a number": 1}),
    keep("answer-true.jsonl", GOOD + '{"question": "a", "answer": true}\n', 3, {"true/false": 1}),
    keep("answer-list.jsonl", GOOD + '{"question": "a", "answer": ["b"]}\n', 3, {"is a list": 1}),
    keep("answer-object.jsonl", GOOD + '{"question": "a", "answer": {"b": 1}}\n', 3,
         {"is a nested object": 1}),
    keep("answer-blank.jsonl", GOOD + '{"question": "a", "answer": " \\n"}\n', 3, {"is empty": 1}),
    keep("key-twice.jsonl", GOOD + '{"question": "a", "question": "x", "answer": "b"}\n', 3,
         {"'question' stands twice": 1}),
    keep("key-twice-in-array.json", f'[{ROW}, {{"answer": "a", "answer": "x"}}, {ROW}]', 3,
         {"'answer' stands twice": 1}),
    keep("key-twice-in-a-turn.jsonl",
         lines({"messages": [{"role": "user", "content": "a"}, {"role": "assistant",
                                                                "content": "b"}]})
         + '{"messages": [{"role": "user", "role": "assistant", "content": "b"}]}\n', 2,
         {"'role' stands twice": 1}),
    keep("nested-100000.jsonl", f'{GOOD}{{"question": {_nested(100_000)}}}\n', 3,
         {"too deeply": 1}),
    refuse("nested-100000.json", f'[{ROW},\n{{"question": {_nested(100_000)}}}]', "too deeply",
           line=2),
    refuse("nested-objects.json", '{"a":' * 100_000 + "1" + "}" * 100_000, "too deeply", line=1),
    keep("nested-900-unused.jsonl", f'{ROW[:-1]}, "x": {_nested(900)}}}\n' * 2, 2),
    keep("nested-980-unused.jsonl", f'{ROW[:-1]}, "x": {_nested(980)}}}\n' * 2, 2),
    keep("nested-980-unused.json", f'[{ROW[:-1]}, "x": {_nested(900)}}}, {ROW}]', 2),
    refuse("columns-3000.jsonl", lines({f"name{n}": "x" for n in range(3000)}), "3,000 columns"),
    refuse("columns-by-rows.jsonl", lines(*({f"name{n}-{k}": 1 for k in range(30)}
                                            for n in range(150))), "4,500 columns"),
    refuse("key-of-1000-letters.jsonl", lines({"k" * 1000: "a"}), "a very long name"),
    refuse("keys-with-controls.jsonl", lines({"a\nb": 1, "\u202ec": 2, "d\x1b[31m": 3}),
           "None of the known formats"),
    keep("line-of-17-mib.jsonl", lambda: GOOD.encode() + b'{"question": "' + b"x" * (17 * 2**20)
         + b'", "answer": "b"}\n' + ROW.encode(), 4, {"longer than 16 MiB": 1}, last="b"),
    refuse("value-of-40-mib.json", lambda: b'[{"question": "' + b"x" * (40 * 2**20) + b'"}]',
           "longer than 16 MiB", line=1),
    refuse("a-million-tiny-values.json", lambda: b"[" + b"1," * 1_000_000 + b"1]", "is a number"),
    refuse("nested-lists-wide.json", lambda: b"[" + b"[]," * 2_000_000 + b"[]]", "is a list"),
    refuse("unclosed-string-wide.json", lambda: b'["' + b"x" * (20 * 2**20), "16 MiB", line=1),
]  # fmt: skip

CASES: list[Case] = [*BROKEN, *TOP_LEVEL, *VALUES]
