"""Graphics cards by name: memory and bandwidth.

Owns the table `cards.yaml` beside it and its extension by the user's `cards.yaml` in the workspace,
which has the same form and wins. Pure apart from reading. Knows nothing of the card in this
machine: that is NVML's to tell.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.core.config_io import read_yaml
from studio.core.errors import ConfigError, DeviceError

FILE = "cards.yaml"
MIB = 2**20
MAX_VRAM_MIB = 4 << 20
# What the driver and a desktop keep on a card that also drives the screen: 0.3 to 1 GB are common.
DISPLAY_BYTES = 400 * MIB


@dataclass(frozen=True)
class Card:
    """One model of card.

    Attributes:
        vram_bytes: as the driver reports it, a little below the number on the box.
        bandwidth_bytes_s: of the memory; decides how fast a small batch can be at best.
    """

    name: str
    vram_bytes: int
    bandwidth_bytes_s: int | None = None

    @property
    def budget_bytes(self) -> int:
        """What a training can have if a desktop uses the card, too."""
        return max(0, self.vram_bytes - DISPLAY_BYTES)


def load_cards(extra: Path | None = None) -> dict[str, Card]:
    """Cards by name, those of `extra` (a file that need not exist) last and instead of ours.

    Raises:
        ConfigError: a file is not as it must be.
    """
    cards = _read(Path(__file__).with_name(FILE))
    if extra is not None and extra.is_file():
        cards |= _read(extra)
    return cards


def find_card(name: str, cards: dict[str, Card]) -> Card:
    """By name, whatever its case, spaces, or "NVIDIA GeForce" before it. Raises DeviceError."""
    wanted = _squeezed(name)
    for card in cards.values():
        if wanted and _squeezed(card.name) == wanted:
            return card
    near = difflib.get_close_matches(wanted, {_squeezed(c): c for c in cards}, n=3, cutoff=0.5)
    names = [c for c in cards if _squeezed(c) in near]
    raise DeviceError(
        "This card is not in the table", value=name,
        allowed=", ".join(names or sorted(cards)),
        remedy="Give its memory instead (--vram-gib 24), or add it to cards.yaml in the workspace",
    )  # fmt: skip


def card_of_gib(vram_gib: float) -> Card:
    """A card of so many GiB. Raises DeviceError for a number that makes no sense."""
    if not 0.5 <= vram_gib <= 4096:
        raise DeviceError(
            "This is no size of a card's memory", value=vram_gib, allowed="0.5 to 4096 GiB",
            remedy="Give the card's memory in GiB, for example --vram-gib 24",
        )  # fmt: skip
    return Card(f"a card of {vram_gib:g} GiB", round(vram_gib * 2**30))


def _squeezed(name: str) -> str:
    text = re.sub(r"nvidia|geforce|tesla|quadro|[^a-z0-9]", "", name.lower())
    return text.removesuffix("gb") if re.search(r"\d{2}gb$", text) else text


def _read(path: Path) -> dict[str, Card]:
    values = read_yaml(path)
    entries = values.get("cards")
    if not isinstance(entries, list) or set(values) != {"cards"}:
        raise ConfigError(f"{FILE} must hold one list called cards", value=str(path))
    cards = [_card(entry, path) for entry in entries]
    return {card.name: card for card in cards}


def _card(entry: Any, path: Path) -> Card:
    fields = entry if isinstance(entry, dict) else {}
    name, vram, speed = (fields.get(key) for key in ("name", "vram_mib", "bandwidth_gb_s"))
    sound = (
        isinstance(name, str) and 0 < len(name) <= 80
        and _is_number(vram) and 256 <= vram <= MAX_VRAM_MIB
        and (speed is None or (_is_number(speed) and 0 < speed <= 100_000))
        and set(fields) <= {"name", "vram_mib", "bandwidth_gb_s"}
    )  # fmt: skip
    if not sound:
        raise ConfigError(
            f"An entry of {path.name} is wrong", value=str(entry)[:120],
            allowed="name, vram_mib (256 or more) and bandwidth_gb_s",
            remedy=f"Mend it in {path}",
        )  # fmt: skip
    return Card(name, round(vram * MIB), None if speed is None else round(speed * 1e9))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
