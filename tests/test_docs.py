"""What the documents claim: the settings table, links, commands, make targets, the container."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_readme_lists_every_setting_as_it_is() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "settings_table.py"), run_name="settings_table")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == script["replaced"](text), "run: make readme"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    dead = [
        link
        for link in links
        if not link.startswith(("http://", "https://")) and not (page.parent / link).exists()
    ]
    assert not dead, f"{relative(page)}: {dead}"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_pages_are_plain_text(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    unclosed = sum(line.startswith("```") for line in lines) % 2
    assert not unclosed, "a code block is not closed"


def commands_in_docs() -> set[str]:
    found: set[str] = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found |= {" ".join(match) for match in re.findall(r"studio (data|runs|models) (\w+)", text)}
        found |= set(re.findall(r"-m studio (\w+)", text)) - {"data", "runs", "models"}
    return found


def test_commands_in_the_documents_exist() -> None:
    from typer.main import get_command

    from studio.cli import app

    root = get_command(app)
    for command in sorted(commands_in_docs()):
        node = root
        for word in command.split():
            assert word in node.commands, f"python -m studio {command} does not exist"
            node = node.commands[word]


def test_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for line in "\n".join(blocks).splitlines():
            if match := re.match(r"make ([a-z-]+)", line):
                assert match.group(1) in targets, f"{relative(page)}: make {match.group(1)}"


def test_the_container_is_not_root_and_reports_its_health() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    steps = re.findall(r"^([A-Z]+) ", text, re.MULTILINE)
    assert len(text.splitlines()) < 40
    assert steps.index("USER") < steps.index("CMD")
    assert re.search(r"^USER (?!root)\w+$", text, re.MULTILINE)
    assert "VOLUME /workspace" in text
    assert "ARG TORCH=cpu" in text
    assert "/healthz" in text[text.index("HEALTHCHECK") :]
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "workspace"} <= set(ignored)
