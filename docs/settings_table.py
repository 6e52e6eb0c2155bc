"""The table of settings in README.md, made from the fields of `studio/core/config.py`.

    python docs/settings_table.py           prints the table
    python docs/settings_table.py --write   puts it between the marks in README.md

A test holds README.md to it.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from studio.core.config import RunConfig  # noqa: E402  (run as a script, from anywhere)
from studio.core.config_io import allowed_text  # noqa: E402

BEGIN = "<!-- settings: made by docs/settings_table.py -->"
END = "<!-- end of settings -->"


def shown(value: object) -> str:
    """A default as YAML writes it."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return "empty" if value in ("", {}) else str(value)


def build_table() -> str:
    """One row a field: key, default, what is allowed, what it does."""
    rows = ["| setting | default | allowed | what it does |", "|---|---|---|---|"]
    for section, field in RunConfig.model_fields.items():
        for key, knob in field.annotation.model_fields.items():
            allowed = allowed_text(section, key).removeprefix("choose ")
            text = (knob.description or "").replace("|", "\\|").replace("<", "&lt;")
            allowed = allowed.replace("|", "\\|")
            allowed = (
                f"`{allowed.removeprefix('text like ')}`" if "text like" in allowed else allowed
            )
            rows.append(f"| `{section}.{key}` | {shown(knob.default)} | {allowed} | {text} |")
    return "\n".join(rows)


def replaced(text: str) -> str:
    """README's text with the table between the marks."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit("README.md has no marks for the table")
    return f"{before}{BEGIN}\n{build_table()}\n{END}{after}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        readme = ROOT / "README.md"
        readme.write_text(replaced(readme.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(build_table())
