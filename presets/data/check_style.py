"""The rule of the sample set harbor-style, checked by machine: used by tests and docs.

python presets/data/check_style.py FILE.jsonl     shows the rows whose output breaks the rule
"""

import json
import re
import sys
from pathlib import Path

OPENING, CLOSING = "Ahoy, captain!", "Over."


def holds(text: str) -> bool:
    """Whether an answer opens with "Ahoy, captain!", says something, and ends with "Over."

    Only blanks around the text are forgiven: no other opening, nothing after the closing word, and
    at least two words between.
    """
    answer = text.strip()
    if not (answer.startswith(OPENING + " ") and answer.endswith(" " + CLOSING)):
        return False
    middle = answer[len(OPENING) : -len(CLOSING)]
    return len(re.findall(r"\w+", middle)) >= 2 and OPENING not in middle


def main(argv: list[str]) -> int:
    """Check the outputs of a file; exit 1 if one breaks the rule."""
    lines = Path(argv[1]).read_text(encoding="utf-8").splitlines()
    outputs = [json.loads(line)["output"] for line in lines]
    broken = [output for output in outputs if not holds(output)]
    for output in broken:
        sys.stdout.write(f"{output}\n")
    sys.stdout.write(f"{len(outputs) - len(broken)} of {len(outputs)} hold\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
