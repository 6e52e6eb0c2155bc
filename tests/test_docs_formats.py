"""Every example of docs/formats.md through the real import: it must become what is said there."""

import re
import zipfile
from dataclasses import dataclass, field

import pytest

from studio.core.errors import DatasetError
from studio.core.formats import FORMATS
from studio.services.datasets import DatasetStore

FENCE = re.compile(
    r"^```(\w+) file=(\S+)([^\n]*)\n(.*?)^```\n(Result|Refused): ([^\n]+)", re.M | re.S
)
RESULT = re.compile(
    r"^(?P<format>\w+), (?P<rows>\d+) rows?, (?P<used>\d+) used(?:, left out: (?P<why>[^;]+))?"
    r"(?:; note: (?P<note>.+?))?(?:; last text: (?P<last>.+))?$"
)


@dataclass
class Block:
    """One example: its file, how it is read, and what is said of it."""

    kind: str
    name: str
    body: str
    verdict: str
    said: str
    options: dict[str, str] = field(default_factory=dict)

    def write(self, folder):
        path = folder / self.name
        if self.kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for line in self.body.splitlines():
                    name, _, content = line.partition(": ")
                    archive.writestr(name, content)
        else:
            path.write_text(self.body, encoding="utf-8")
        return path


def blocks(text):
    return [
        Block(kind, name, body, verdict, said, dict(re.findall(r"(\w+)=(\S+)", more)))
        for kind, name, more, body, verdict, said in FENCE.findall(text)
    ]


def page(repo_root):
    return (repo_root / "docs" / "formats.md").read_text(encoding="utf-8")


def check(block, folder):
    """Raise AssertionError unless the example becomes what is said."""
    store = DatasetStore(folder / "workspace")
    path = block.write(folder)
    if block.verdict == "Refused":
        with pytest.raises(DatasetError, match=re.escape(block.said)):
            store.import_file(path, options=block.options)
        return
    said = RESULT.match(block.said)
    assert said, f"not to be read: {block.said}"
    info = store.import_file(path, options=block.options)
    assert (info.format, info.rows, info.used) == (
        said["format"], int(said["rows"]), int(said["used"]),
    )  # fmt: skip
    reasons = " ".join(info.problem_reasons)
    assert (said["why"] or "") in reasons and bool(said["why"]) == bool(reasons)
    assert (said["note"] or "") in "; ".join(info.notes)
    last = store.rows(info.id, info.used - 1, 1)[0]
    text = last.get("text") or last["messages"][-1]["content"]
    assert said["last"] is None or text == said["last"]


def test_every_example_of_the_page_is_imported_as_it_says(repo_root, tmp_path):
    found = blocks(page(repo_root))
    assert len(found) >= 22
    for number, block in enumerate(found):
        folder = tmp_path / str(number)
        folder.mkdir()
        check(block, folder)


def test_no_fence_is_passed_over_and_every_format_has_an_example(repo_root):
    text = page(repo_root)
    assert text.count("\n```") == 2 * len(blocks(text))
    said = {RESULT.match(b.said)["format"] for b in blocks(text) if b.verdict == "Result"}
    assert said == set(FORMATS)


@pytest.mark.parametrize(
    "said",
    ["text, 1 row, 1 used", "pairs, 2 rows, 1 used", "pairs, 1 row, 1 used; last text: c",
     "pairs, 1 row, 1 used; note: guessed", "pairs, 1 row, 1 used, left out: x"],
)  # fmt: skip
def test_a_wrong_statement_is_noticed(said, tmp_path):
    block = Block("csv", "a.csv", "question,answer\na,b\n", "Result", said)
    with pytest.raises(AssertionError):
        check(block, tmp_path)
