"""The guide: every sentence has its source, every number is the estimator's or the arithmetic's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from studio.core.config import RunConfig
from studio.core.config_io import build_config
from studio.core.errors import StudioError
from studio.core.memory_methods import Method, base_weights, family, rank_in_numbers
from studio.core.memory_terms import full_finetuning
from studio.services.memory import MemoryService
from studio.services.models import ModelStore
from studio.ui.guide_numbers import NOT_COUNTED, held_against, own_numbers
from studio.ui.guide_text import FILE, Here, guide_html, read_guide
from studio.ui.text import count, gib
from tests.conftest import ROOT
from tests.services.fake_counter import FakeCounter, FakeMachine

MODEL = "Qwen/Qwen3-8B"
GIB = 2**30
ARXIV = re.compile(r"https://arxiv\.org/abs/\d{4}\.\d{5}$")
OTHERS = {
    "https://thinkingmachines.ai/blog/lora/",
    "https://github.com/hiyouga/LLaMA-Factory/wiki/Performance-comparison",
}


def points() -> list[str]:
    return [point for section in read_guide() for point in section.points]


def sentences(point: str) -> list[str]:
    """A full stop ends one where a space and a capital follow, outside of brackets."""
    return [s for s in re.split(r"(?<=[a-z0-9)])\. (?=[A-Z])", point) if s.strip(" .")]


def service(workspace: Path, counter: FakeCounter | None = None, free_bytes=24 << 30):
    return MemoryService(
        workspace, ModelStore(workspace, ROOT / "presets"), FakeMachine(free_bytes),
        child=counter or FakeCounter(),
    )  # fmt: skip


def test_all_knobs_of_the_brief_have_a_section() -> None:
    titles = [section.title for section in read_guide()]
    assert titles == ["Rank (r)", "Alpha", "Target modules", "LoRA or QLoRA", "Learning rate",
                      "Epochs", "Batch size", "Max length", "DoRA"]  # fmt: skip
    assert all(section.here and len(section.points) >= 2 for section in read_guide())


@pytest.mark.parametrize("point", points())
def test_every_sentence_has_a_source(point: str) -> None:
    for sentence in sentences(point):
        links = re.findall(r"\[[^\]]+\]\(([^)]+)\)", sentence)
        assert links, sentence
        for link in links:
            inside = not link.startswith("http")
            assert inside or ARXIV.match(link) or link in OTHERS, link


def test_a_sentence_without_a_source_would_be_found() -> None:
    assert len(sentences("One ([a](b)). Two.")) == 2
    assert sentences("A bare claim.") == ["A bare claim."]


def test_every_paper_is_cited_under_one_name_and_with_its_place() -> None:
    names: dict[str, set[str]] = {}
    for words, link in re.findall(r"\[([^\]]+)\]\((https://arxiv[^)]+)\)", " ".join(points())):
        name, _, place = words.partition(", ")
        names.setdefault(link, set()).add(name)
        assert re.match(r"(abstract|sections? \d|appendix)", place), words
    assert all(len(found) == 1 for found in names.values())
    assert {"https://arxiv.org/abs/2106.09685", "https://arxiv.org/abs/2305.14314"} <= set(names)


def test_the_arithmetic_of_the_text() -> None:
    text = " ".join(points())
    packed, plain = base_weights(family()["65 B"], Method("x", "x", packing="4bit_double"))
    profile = family()["65 B"]
    quantized = sum(m.count * m.weights for m in profile.matrices if m.quantized)
    for figure in (
        f"{quantized / 1e9:.1f} B weights x 4.127 bits are {packed / GIB:.1f} GiB",
        f"{(profile.total_params - quantized) / 1e9:.1f} B unquantized ones x 2 bytes are "
        f"{plain / GIB:.1f} GiB",
        f"the weights alone take {(packed + plain) / GIB:.1f} GiB",
        f"{full_finetuning(7 * 10**9) / 1e9:.0f} GB for 7 B",
    ):
        assert figure in text, figure
    frozen, trained = rank_in_numbers(4096, 4096, 8)
    assert f"{frozen:,} frozen numbers and, at r = 8, {trained:,} trained ones" in text
    assert packed * 8 / quantized == pytest.approx(4.127, abs=0.001)
    single, _ = base_weights(family()["65 B"], Method("x", "x", packing="4bit"))
    assert single * 8 / quantized == pytest.approx(4.5, abs=0.001)
    per_token = (32e9 - 6e9) / (32768 - 1024)
    assert round(per_token / 1e6, 1) == 0.8


def test_what_is_said_to_be_measured_is_written_there() -> None:
    log = (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8")
    assert "4.401 at step 0 to 1.021 at step 30" in log
    memory = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    for figure in ("| 1 x 1024 | 6.0 |", "| 1 x 32768 | 32.0 |", "32.1 GiB", "112 GB"):
        assert figure in memory


def test_links_lead_out_plainly_and_nothing_is_loaded() -> None:
    html = guide_html(read_guide())
    anchors = re.findall(r"<a ([^>]+)>", html)
    assert len(anchors) >= 20
    for anchor in anchors:
        assert "href='https://" in anchor and "rel='noopener noreferrer'" in anchor
    assert not re.search(r"<(img|script|iframe|link|style|object|svg)\b|\bsrc=|url\(", html)
    assert "../" not in html and "docs/memory.md" in html


def test_the_file_on_its_own_shows_no_marks() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert re.sub(r"<!--.*?-->", "", text).count("{") == 0


def test_numbers_are_the_estimators(workspace: Path) -> None:
    memory = service(workspace)
    config = build_config({"lora": {"r": 24}})

    def ask(wanted: RunConfig):
        return memory.estimate(MODEL, wanted)

    here = own_numbers(ask, config, (120, 360), "Rows are long")
    at = {row[0]: row for row in here["rank"].rows}
    assert list(at) == ["r = 8", "r = 16", "r = 24 (yours)", "r = 32", "r = 64", "r = 128"]
    for r in (8, 128):
        found = memory.estimate(MODEL, build_config({"lora": {"r": r}})).estimate
        items = {item.name: item.bytes for item in found.items}
        assert at[f"r = {r}"][1:] == (
            count(items["adapter"] / 4),
            gib(items["adapter"] + items["gradients"] + items["optimizer"]), gib(found.expected),
        )  # fmt: skip
    weights = {row[0]: row[1] for row in here["method"].rows}
    assert weights["LoRA, bfloat16"] == gib(sum(base_weights(FakeCounter().profile,
                                                             Method("x", "x"))))  # fmt: skip
    lengths = {row[0]: row[1] for row in here["max_length"].rows}
    longer = memory.estimate(MODEL, build_config({"lora": {"r": 24}, "train": {
        "max_length": 4096}}))  # fmt: skip
    assert here["max_length"].sentence == "Rows are long."
    assert lengths["4,096 tokens"] == gib(longer.estimate.expected)
    assert "120 steps an epoch, 360 in all" in here["epochs"].sentence
    assert "alpha / r = 1.3333" in here["alpha"].sentence
    said = held_against(ask(config), MODEL)
    assert said.startswith(f"{MODEL} on RTX 4090, 24.0 GiB free. Fits with ")


def test_opening_the_guide_counts_nothing_and_says_so(workspace: Path) -> None:
    counter = FakeCounter()
    memory = service(workspace, counter)
    memory.estimate(MODEL, RunConfig())
    asked = list(counter.asked)

    def ask(wanted: RunConfig):
        return memory.estimate(MODEL, wanted, measure=False)

    here = own_numbers(ask, RunConfig(), None, "Rows are long")
    assert counter.asked == asked
    cells = [row[-1] for row in here["batch"].rows]
    assert NOT_COUNTED in cells and not all(cell == NOT_COUNTED for cell in cells)
    assert "Choose training data" in here["epochs"].sentence


def test_what_a_model_cannot_is_said_in_its_place(workspace: Path) -> None:
    memory = service(workspace)

    def ask(wanted: RunConfig):
        if wanted.lora.target_modules == "attention":
            raise StudioError("This model has no attention layers of a known name")
        return memory.estimate(MODEL, wanted)

    rows = own_numbers(ask, RunConfig(), None, "")["targets"].rows
    assert rows[1][:2] == ("Attention only", "This model has no attention layers of a known name")


def test_names_of_cards_and_models_are_text() -> None:
    evil = "<img src=x onerror=alert(1)>"
    html = guide_html(read_guide(), {"rank": Here(evil, (evil,), ((evil, evil),))})
    assert "<img" not in html and html.count("&lt;img src=x") == 4
