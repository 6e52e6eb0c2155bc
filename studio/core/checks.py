"""Every check of a data set, and the ones that a single row decides.

Owns the list of checks (id, title, level, remedy) that the page, the command line and the files of
a data set share, `check_row`, the hashes by which rows are compared, and the balance of labels.
Checks over the whole set are in services.set_checks, near-duplicates in services.near_duplicates,
those that need a tokenizer in the backend. Knows nothing of files.
"""

from __future__ import annotations

import json
import unicodedata
from array import array
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from studio.core.examples import ASSISTANT, USER, Example, RowProblem
from studio.core.text_checks import (
    broken_encoding,
    control_characters,
    emails_in,
    has_wide_control,
    quick_look,
    secrets_in,
)

ERROR, WARNING, INFO = "error", "warning", "info"


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        title: what its count counts, so that "12" + title reads well.
        level: error: these rows are not learned; warning: likely a mistake; info: worth knowing.
        remedy: what to do about it.
        fix: the verb of the one-click fix with {n} for the count; None where there is none.
        fix_step: the kind of step that the fix records: exclude or clean.
    """

    id: str
    title: str
    level: str
    remedy: str
    fix: str | None = None
    fix_step: str = "exclude"


CHECKS: dict[str, Check] = {
    check.id: check
    for check in (
        # Reasons why a row is left out; a RowProblem's code is one of these.
        Check("unreadable", "rows that cannot be read", ERROR, "Correct these lines of the file"),
        Check("wrong_type", "rows with a value of the wrong kind", ERROR,
              "Write these values as text or correct the mapping"),
        Check("empty", "rows with an empty or missing text", ERROR,
              "Fill them in, or leave them out"),
        Check("roles", "conversations whose roles are out of order", ERROR,
              "Let user and assistant speak in turns, the user first"),
        Check("no_answer", "conversations without an answer to learn", ERROR,
              "Add the answer, or leave them out"),
        Check("unwanted", "rows whose answer is labelled as bad", INFO,
              "They are not learned; relabel those that are good"),
        # Decided by a tokenizer.
        Check("no_trained_token", "rows without a single learned token", ERROR,
              "Choose what the loss is taken on, or leave them out", "Leave out {n} rows"),
        Check("answer_cut", "rows whose whole answer is cut off", ERROR,
              "Raise max_length, shorten the prompts, or leave them out", "Leave out {n} rows"),
        Check("cut", "rows that are cut at max_length", WARNING,
              "Raise max_length or shorten them", "Leave out {n} rows"),
        # Decided by the whole set.
        Check("duplicate", "rows that repeat an earlier one", WARNING,
              "Leave them out: repeats are learned by heart", "Leave out {n} duplicates"),
        Check("near_duplicate", "rows almost the same as an earlier one", WARNING,
              "Look at some; leave them out where they say nothing new",
              "Leave out {n} near-duplicates"),
        Check("conflicting_answers", "rows whose prompt has another answer elsewhere", WARNING,
              "Keep one answer for each prompt, unless several are wanted"),
        Check("held_out_overlap", "held-out rows that also train", WARNING,
              "Leave out the duplicates: the held-out loss looks better than it is",
              "Leave out {n} rows"),
        Check("unbalanced_labels", "rows of rare labels", WARNING,
              "Add rows of the rare labels or take fewer of the common ones"),
        # Decided by the row alone.
        Check("same_text", "rows whose answer repeats the question", WARNING,
              "Look whether a column is mapped twice, or leave them out", "Leave out {n} rows"),
        Check("looks_empty", "rows with a text that stands for nothing (nan, null, N/A)", WARNING,
              "Leave them out, unless the model should answer so", "Leave out {n} rows"),
        Check("broken_encoding", "rows with broken characters", WARNING,
              "Save the file again as UTF-8, or repair what can be repaired",
              "Repair {n} rows", "clean"),
        Check("control_characters", "rows with control or invisible characters", WARNING,
              "Remove the characters: the model would learn to write them",
              "Remove them from {n} rows", "clean"),
        Check("secret", "rows that likely hold a password or key", WARNING,
              "Remove it: the model can give it away", "Replace it in {n} rows", "clean"),
        Check("email", "rows with an e-mail address", WARNING,
              "Remove it unless the address is public", "Replace it in {n} rows", "clean"),
    )
}  # fmt: skip

ROW_CHECKS = (
    "same_text", "looks_empty", "broken_encoding", "control_characters", "secret", "email",
)  # fmt: skip
LEFT_OUT_CHECKS = ("unreadable", "wrong_type", "empty", "roles", "no_answer", "unwanted")
TOKEN_CHECKS = ("no_trained_token", "answer_cut", "cut")


# Which check a left-out row counts for, by what its reason says; the first that fits.
_REASONS = (
    ("no_answer", ("no assistant turn", "ends with the user")),
    ("roles", ("roles are out of order", "role", "system message", "two system prompts")),
    ("empty", ("is missing", "is empty", "empty list")),
    ("wrong_type", ("not text", "not a list", "not a pair", "not an object", "part of type")),
)


def left_out_check(problem: RowProblem) -> str:
    """The check that a row which cannot train counts for: its code, or what its reason says."""
    code = getattr(problem, "code", None)
    if code in LEFT_OUT_CHECKS:
        return str(code)
    for check, pieces in _REASONS:
        if any(piece in problem.reason for piece in pieces):
            return check
    return "unreadable"


class Hit(NamedTuple):
    """A check that a row does not pass; `detail` never holds the secret itself."""

    check: str
    detail: str


# What spreadsheets, pandas and databases write where nothing was; compared in lower case. A label
# may be called "none", so rows of a classification are not asked.
_NOTHING = frozenset({
    "nan", "null", "none", "n/a", "#n/a", "na", "<na>", "nil", "undefined", "#ref!", "#value!",
    "#name?", "[]", "{}", '""', "''", "-", "--", "---", ".", "..", "...", "?", "[deleted]",
    "[removed]",
})  # fmt: skip
NOTHING_MAX_CHARS = max(map(len, _NOTHING))
MAX_PADDING = 16  # blanks around one of two texts that are compared
# White space that str.strip() leaves: zero width characters, soft hyphen, Hangul filler, Braille
# blank.
UNSEEN = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u3164\u2800\u00a0 \t\r\n"
UNSEEN_MAX_CHARS = 64  # a longer text says something, whatever it is made of


def turns_of(example: Example) -> list[tuple[str, str]]:
    """(role, text) of each message; a plain text is one pair with an empty role."""
    if example.messages is None:
        return [("", example.text or "")]
    return [
        (message["role"], _spoken(message) if "tool_calls" in message else message["content"] or "")
        for message in example.messages
    ]


def _spoken(message: Any) -> str:
    """What a message that calls tools says: its calls as JSON too."""
    content = message.get("content") or ""
    calls = message.get("tool_calls")
    if calls:
        content += "\n" + json.dumps(calls, ensure_ascii=False, sort_keys=True)
    return content


def inspect_row(
    example: Example, *, harmless: bool = False
) -> tuple[list[Hit], tuple[int, int, int]]:
    """`check_row` and `row_hashes` of a row in one go: the texts are encoded once.

    Args:
        harmless: the caller knows that the texts are ASCII without control characters, "@" and
            whatever could be a secret (services.plain_rows).
    """
    turns = turns_of(example)
    datas = [text.encode("utf-8", "surrogatepass") for _, text in turns]
    hits = _emptiness(example, turns) if harmless else _hits(example, turns, datas)
    return hits, _hashes(example, turns, datas)


def check_row(example: Example) -> list[Hit]:
    """What is wrong with a row that can train. At most one hit a check."""
    return inspect_row(example)[0]


def row_hashes(example: Example) -> tuple[int, int, int]:
    """64-bit hashes of the whole row, of its prompt and of its last answer.

    The prompt is all before the last answer, with roles, system prompt and tools. A plain text has
    no prompt: its prompt is 0. Stable between runs, versions and machines (BLAKE2b, 8 bytes); two
    different rows of a million share a hash with a probability of 3e-8.
    """
    turns = turns_of(example)
    return _hashes(example, turns, [text.encode("utf-8", "surrogatepass") for _, text in turns])


def _hits(example: Example, turns: list[tuple[str, str]], datas: list[bytes]) -> list[Hit]:
    hits = _emptiness(example, turns)
    data = b"\n".join(datas)
    control, may_hold_secret = quick_look(data)
    if not data.isascii():
        joined = "\n".join([text for _, text in turns])
        control = control or has_wide_control(joined)
        if broken_encoding(joined):
            hits.append(_located("broken_encoding", turns, broken_encoding))
    if control:
        hits.append(_located("control_characters", turns, _control_detail))
    if may_hold_secret and any(_secret_detail(text) for _, text in turns):
        hits.append(_located("secret", turns, _secret_detail))
    if b"@" in data and any(_email_detail(text) for _, text in turns):
        hits.append(_located("email", turns, _email_detail))
    return hits


def _located(check: str, turns: list[tuple[str, str]], detail_of: Any) -> Hit:
    """The hit with the turn it is in; what spans two turns names none."""
    for number, (role, text) in enumerate(turns, 1):
        detail = detail_of(text)
        if detail:
            return Hit(check, f"{role} turn {number}: {detail}" if role else detail)
    return Hit(check, "across two turns")


def _control_detail(text: str) -> str | None:
    found = control_characters(text)
    if not found:
        return None
    kinds = ", ".join(list(dict.fromkeys(found))[:4])
    return f"{len(found)} of {kinds}"


def _secret_detail(text: str) -> str | None:
    found = next(secrets_in(text), None)
    return found and f"{found[0]}, {found[2] - found[1]} characters"


def _email_detail(text: str) -> str | None:
    found = next(emails_in(text), None)
    return found and f"an address at {found[0]}"


def _emptiness(example: Example, turns: list[tuple[str, str]]) -> list[Hit]:
    hits = []
    for number, (role, text) in enumerate(turns, 1):
        if len(text) <= UNSEEN_MAX_CHARS and example.label is None and _stands_for_nothing(text):
            shown = text.strip(UNSEEN)
            what = repr(shown) if shown else "only invisible characters"
            hits.append(Hit("looks_empty", f"{role} turn {number}: {what}" if role else what))
            break
    if len(turns) > 1 and turns[-1][0] == ASSISTANT and turns[-2][0] == USER:
        question, answer = turns[-2][1], turns[-1][1]
        near = abs(len(question) - len(answer)) <= MAX_PADDING
        if near and question.strip().casefold() == answer.strip().casefold():
            hits.append(Hit("same_text", f"turns {len(turns) - 1} and {len(turns)}"))
    return hits


def _stands_for_nothing(text: str) -> bool:
    shown = text.strip(UNSEEN)
    return not shown or (len(shown) <= NOTHING_MAX_CHARS and shown.lower() in _NOTHING)


# ASCII white space, which `plain` takes out of a text.
PLAIN_DELETED = bytes(byte for byte in range(128) if chr(byte).isspace())
HASH_MIX = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: multiplying by it is one to one
_MASK = 2**64 - 1


def plain(text: str, data: bytes | None = None) -> bytes:
    """The text as it is compared: composed (NFC), without white space. Case counts.

    Taking all white space out costs a third of making it one blank, and rows that differ in
    nothing else are repeats either way.

    Args:
        data: the text in UTF-8, where the caller has it.
    """
    if data is None:
        data = text.encode("utf-8", "surrogatepass")
    data = data.translate(None, PLAIN_DELETED)
    if text.isascii():
        return data
    text = "".join(data.decode("utf-8", "surrogatepass").split())  # white space beyond ASCII
    return unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")


def _hashes(
    example: Example, turns: list[tuple[str, str]], datas: list[bytes]
) -> tuple[int, int, int]:
    if example.messages is None:
        whole = _hash(plain(turns[0][1], datas[0]))
        return whole, 0, whole
    parts = [
        role.encode() + b"\x1f" + plain(text, data)
        for (role, text), data in zip(turns, datas, strict=True)
    ]
    last = parts.pop()
    tools = getattr(example, "tools", None)
    if tools:
        parts.insert(0, json.dumps(list(tools), ensure_ascii=True, sort_keys=True).encode())
    prompt, answer = _hash(b"\x1e".join(parts)), _hash(last)
    return (prompt * HASH_MIX + answer) & _MASK, prompt, answer


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


class LabelBalance:
    """Counts labels and remembers each row's, to name the rows of rare ones.

    A label is rare when the commonest is more than RARE_FACTOR times as frequent. One label alone
    is worse than rare: there is nothing to tell apart.
    """

    RARE_FACTOR = 10
    MAX_LABELS = 1000  # more are no classes but free text

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._rows = array("l")

    def add(self, label: str | None) -> None:
        """One row's label; to be called for every row, in order."""
        if label is None or len(self._codes) > self.MAX_LABELS:
            self._rows.append(-1)
            return
        self._rows.append(self._codes.setdefault(label, len(self._codes)))

    def add_none(self, count: int) -> None:
        """So many rows without a label."""
        self._rows.frombytes(b"\xff" * (self._rows.itemsize * count))

    def names(self) -> list[str]:
        """The labels by their code."""
        return list(self._codes)

    def rows(self) -> array[int]:
        """The code of each row's label, -1 for none."""
        return self._rows

    def append(self, names: list[str], rows: list[int]) -> None:
        """Rows that were counted elsewhere, behind the own ones."""
        if not names:
            self.add_none(len(rows))
            return
        for code in rows:
            self.add(names[code] if code >= 0 else None)

    def hits(self) -> dict[int, str]:
        """Row position (from 0) to detail for the rows of rare labels."""
        counts = Counter(code for code in self._rows if code >= 0)
        if not counts or len(self._codes) > self.MAX_LABELS:
            return {}
        most = max(counts.values())
        names = {code: label for label, code in self._codes.items()}
        if len(counts) == 1 and most > 1:
            only = f"every row has the label {names[0][:60]!r}"
            return {at: only for at, code in enumerate(self._rows) if code >= 0}
        rare = {
            code: f"label {names[code][:60]!r}: {count:,} rows, the commonest has {most:,}"
            for code, count in counts.items()
            if count * self.RARE_FACTOR < most
        }
        return {at: rare[code] for at, code in enumerate(self._rows) if code in rare}
