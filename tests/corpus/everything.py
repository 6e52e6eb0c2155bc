"""All cases of the corpus in one list."""

from __future__ import annotations

from tests.corpus import binary_files, conversations, json_files, odd_paths, tables, text_files
from tests.corpus.case import Case

CASES: list[Case] = [
    *text_files.CASES, *tables.CASES, *json_files.CASES, *conversations.CASES,
    *binary_files.CASES, *odd_paths.CASES,
]  # fmt: skip
