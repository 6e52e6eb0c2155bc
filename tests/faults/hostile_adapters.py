"""Mutated adapters in run zips: refused with a reason or accepted and harmless, and never run.

    python -m tests.faults.hostile_adapters --trials 200

Each trial sends a run zip through the product's own way: `RunStore.open_zip`, then `load_run`, as
the chat does, on a tiny base. A quarter of the mutations is harmless and has to be accepted, so
that refusing everything falls short. Counted against it: a file that an adapter's code would have
written, a module imported from the adapter, another error than the studio's own, a verdict after
more than 3 s, and an accepted adapter whose weights are not the honest ones.
"""

from __future__ import annotations

import json
import os
import random
import stat
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studio.backend.chat_model import load_run
from studio.backend.loading import quiet_libraries
from studio.core.errors import StudioError
from studio.core.runs import read_json
from studio.services.store import RunStore
from tests.faults.adapter_mutations import CONFIG, HARMLESS, HOSTILE, WEIGHTS, Parcel
from tests.faults.result import Result, run_from_command_line
from tests.tiny_models import make_model_folder, make_run

VERDICT_S = 3.0
REFUSED, ACCEPTED = "refused", "accepted"


@dataclass
class House:
    """A tiny base and an honest run on it, from which parcels are made."""

    base: Path
    run: Path
    record: dict[str, Any]
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def build_house(folder: Path) -> House:
    """Takes some seconds; used for all trials."""
    from safetensors.torch import load_file

    quiet_libraries()
    base = make_model_folder(folder / "base")
    run = make_run(folder / "honest", base)
    record = json.loads((run / "run.json").read_text())
    return House(
        base, run, record, json.loads((run / "adapter" / CONFIG).read_text()),
        load_file(run / "adapter" / WEIGHTS),
    )  # fmt: skip


def pack(house: House, parcel: Parcel, target: Path) -> Path:
    """The zip as a stranger would send it."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("r/run.json", json.dumps(house.record))
        bundle.writestr("r/exit.json", json.dumps({"state": "done", "attempt": 1, "steps": 1}))
        for name, content in parcel.entries().items():
            bundle.writestr(name if name.startswith("/") else f"r/adapter/{name}", content)
        for name in parcel.links:
            link = zipfile.ZipInfo(f"r/adapter/{name}")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            bundle.writestr(link, "/etc/passwd")
    return target


def judge(house: House, store: RunStore, parcel: Path) -> tuple[str, str]:
    """What the studio makes of it: refused or accepted, and its words."""
    run_id = None
    try:
        run_id = store.open_zip(parcel)
        model = load_run(store.paths(run_id).root, house.base)
        model.close()
    except StudioError as error:
        return REFUSED, str(error)
    finally:
        if run_id is not None and read_json(store.paths(run_id).run_json) is None:
            raise RuntimeError("an accepted run has no record")
    return ACCEPTED, ""


def choose(number: int, seed: int) -> tuple[str, str]:
    """(kind, name) of a trial: each fourth is harmless; every mutation comes before any again."""
    table, place = (HARMLESS, number // 4) if number % 4 == 3 else (HOSTILE, number - number // 4)
    names = sorted(table)
    random.Random(seed).shuffle(names)
    return ACCEPTED if table is HARMLESS else REFUSED, names[place % len(names)]


def run(trials: int, *, seed: int = 0, folder: Path | None = None) -> Result:
    """Send `trials` parcels."""
    result = Result("hostile adapters", f"0 code run, a verdict within {VERDICT_S:g} s, a reason "
                    "for each refused, the harmless quarter accepted")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder) as root:
        house = build_house(Path(root) / "house")
        judge(house, RunStore(Path(root) / "first"), _parcel_file(house, Path(root), "as it is"))
        for number in range(trials):
            wanted, name = choose(number, seed)
            _try(result, house, Path(root), wanted, name, random.Random(f"{seed}-{number}"))
    return result


def _parcel_file(house: House, root: Path, name: str) -> Path:
    """For the first call, which imports libraries: its time is nobody's verdict."""
    parcel = Parcel(dict(house.config), dict(house.tensors), root / "canary")
    HARMLESS[name](parcel, random.Random(0))
    return pack(house, parcel, root / "first.zip")


def _try(
    result: Result, house: House, root: Path, wanted: str, name: str, draw: random.Random
) -> None:
    tensors = {key: tensor.clone() for key, tensor in house.tensors.items()}
    parcel = Parcel(dict(house.config), tensors, root / "canary")
    (HARMLESS if wanted == ACCEPTED else HOSTILE)[name](parcel, draw)
    with tempfile.TemporaryDirectory(dir=root) as place:
        sent = pack(house, parcel, Path(place) / "parcel.zip")
        store = RunStore(Path(place) / "workspace")
        before, outside = set(sys.modules), set(os.listdir(place))
        began_s = time.monotonic()
        try:
            verdict, words = judge(house, store, sent)
        except Exception as error:  # noqa: BLE001 - any other error is a finding
            verdict, words = "broke", f"{type(error).__name__}: {error}"
        took_s = time.monotonic() - began_s
        told = f"{name!r}: {verdict}, {words[:200]!r}, {took_s:.1f} s"
        result.trials += 1
        result.count(verdict)
        result.check(verdict == wanted, f"not {wanted}: {told}")
        result.check(took_s <= VERDICT_S, f"too late: {told}")
        result.check(verdict != REFUSED or len(words) > 30, f"no reason: {told}")
        result.check(not parcel.canary.exists(), f"code ran: {told}")
        odd = {m for m in set(sys.modules) - before
               if str(getattr(sys.modules[m], "__file__", "")).startswith(str(root))}  # fmt: skip
        result.check(not odd, f"imported {odd}: {told}")
        result.check(set(os.listdir(place)) <= outside | {"workspace"}, f"files outside: {told}")


def main() -> int:
    return run_from_command_line(run, __doc__, trials=200)


if __name__ == "__main__":
    raise SystemExit(main())
