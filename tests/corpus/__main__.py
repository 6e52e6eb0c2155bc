"""Writes the corpus into a folder, to look at or to import by hand.

    python -m tests.corpus FOLDER

The same files on every machine; each beside EXPECTED.json, which says what must become of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.corpus.everything import CASES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    expected = {}
    for case in CASES:
        if case.make is not None:
            continue  # no file, or one that lives only while it is imported
        case.write(folder)
        expected[case.name] = (
            {"refused": case.refused, "line": case.line} if case.refused
            else {"rows": case.rows, "used": case.used, "left_out": dict(case.left_out)}
        )  # fmt: skip
    (folder / "EXPECTED.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(f"{len(expected)} files in {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
