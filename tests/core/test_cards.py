"""The table of cards: found by any spelling, extended by the user, clear about what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.core.cards import FILE, card_of_gib, find_card, load_cards
from studio.core.errors import ConfigError, DeviceError


def test_every_card_makes_sense() -> None:
    cards = load_cards()
    assert len(cards) >= 40
    for card in cards.values():
        assert 4 * 2**30 <= card.vram_bytes <= 200 * 2**30
        assert card.bandwidth_bytes_s and 1e11 < card.bandwidth_bytes_s < 1e13
        assert find_card(card.name, cards) == card
        assert 0 < card.budget_bytes < card.vram_bytes


@pytest.mark.parametrize("name", ["RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090"])
def test_spellings(name: str) -> None:
    assert find_card(name, load_cards()).name == "RTX 4090"


def test_an_unknown_card_names_near_ones() -> None:
    with pytest.raises(DeviceError, match=r"RTX 4090.*--vram-gib"):
        find_card("RTX 4090X", load_cards())
    with pytest.raises(DeviceError, match="not in the table"):
        find_card("", load_cards())


def test_the_users_file_adds_and_wins(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_text("cards:\n- {name: My Card, vram_mib: 20000}\n"
                    "- {name: RTX 4090, vram_mib: 49140, bandwidth_gb_s: 1008}\n")  # fmt: skip
    cards = load_cards(file)
    assert find_card("my card", cards).bandwidth_bytes_s is None
    assert find_card("RTX 4090", cards).vram_bytes == 49140 * 2**20
    assert load_cards(tmp_path / "none.yaml") == load_cards()


@pytest.mark.parametrize(
    "text",
    ["[]", "cards: 3", "cards: [{name: x}]", "cards: [{name: x, vram_mib: -5}]",
     "cards: [{name: x, vram_mib: .nan}]", "cards: [{name: x, vram_mib: 8192, speed: 3}]",
     "cards: [{name: x, vram_mib: true}]", "more: 1\ncards: []"],
)  # fmt: skip
def test_a_wrong_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / FILE
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_cards(file)


@pytest.mark.parametrize("gib", [0, -1, float("nan"), float("inf"), 1e9])
def test_sizes_that_make_no_sense(gib: float) -> None:
    with pytest.raises(DeviceError, match="0.5 to 4096"):
        card_of_gib(gib)
    assert card_of_gib(24).vram_bytes == 24 * 2**30
