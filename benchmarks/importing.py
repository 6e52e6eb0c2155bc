"""Import with every check but near-duplicates, against `datasets.load_dataset` on the same file.

    python benchmarks/importing.py [--rows 1000000] [--pairs 3] [--workers 2] [--json]
    python benchmarks/importing.py --profile 100000     # where one process spends its time

Makes an Alpaca-shaped JSONL file (seeded, about 700 bytes a row, with repeats, empty answers,
accents and e-mail addresses; no broken line, which load_dataset refuses with the whole file) in a
temporary folder and deletes it. Each pair
runs both in turn, in fresh processes, the order swapped each time; the median of the ratios is the
result. Wall and processor seconds count children too; so does the peak of resident memory, sampled
every 50 ms (shared pages are counted once for each process: an upper bound). Ours is called from a
thread beside an asyncio loop as the page calls it, and the longest time that loop was late is told.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SAMPLE_S, FAMILY_S = 0.05, 0.5
TICK_S = 0.01
_TEXT = """
    the order changes when a small red house by the river is old and nobody knows where pancakes
    come from so people ask for another recipe with butter sugar flour which takes about twenty
    minutes in a warm kitchen then it rests before serving while children play outside between
    tall trees or read about history science music law and medicine in their own language
"""
_WORDS = _TEXT.split()
_ODD = (
    "caf\u00e9", "na\u00efve", "\u201cquoted\u201d", "\u4f60\u597d", "\U0001f600", "Stra\u00dfe",
)  # fmt: skip


def write_rows(target: Path, count: int) -> None:
    """Alpaca-shaped rows, the same for the same count."""
    draw = random.Random(0)
    blocks = [" ".join(draw.choices(_WORDS, k=12)) for _ in range(20_000)]
    with target.open("w", encoding="utf-8", newline="\n") as file:
        previous = ""
        for number in range(count):
            chance = draw.random()
            if chance < 0.01 and previous:
                file.write(previous)
                continue
            previous = json.dumps(_row(draw, blocks, number, chance), ensure_ascii=False) + "\n"
            file.write(previous)


def _row(draw: random.Random, blocks: list[str], number: int, chance: float) -> dict[str, Any]:
    asked = f"{draw.choice(blocks).capitalize()} in case {number}?"
    given = draw.choice(blocks) if draw.random() < 0.4 else ""
    said = ".\n".join(draw.choices(blocks, k=draw.randint(1, 14)))
    if chance > 0.95:
        said += " " + draw.choice(_ODD)
    if 0.02 < chance < 0.022:
        said += f" Write to someone{number}@mail-{number % 7}.net."
    if 0.03 < chance < 0.031:
        said = ""
    return {"instruction": asked, "input": given, "output": said}


def ours(source: Path, folder: Path) -> dict[str, Any]:
    """Import as the page does; how late its event loop was."""
    from studio.services.datasets import DatasetStore

    store = DatasetStore(folder)

    async def watched() -> tuple[Any, float]:
        work = asyncio.create_task(asyncio.to_thread(store.import_file, source))
        late = 0.0
        while not work.done():
            began = time.perf_counter()
            await asyncio.sleep(TICK_S)
            late = max(late, time.perf_counter() - began - TICK_S)
        return await work, late

    info, late = asyncio.run(watched())
    counts = {entry["id"]: entry["count"] for entry in info.checks}
    return {"rows": info.rows, "used": info.used, "checks": counts, "late_ms": 1000 * late,
            "fingerprint": info.fingerprint}  # fmt: skip


def theirs(source: Path, folder: Path) -> dict[str, Any]:
    """The file through `datasets.load_dataset`, its cache in the folder."""
    import datasets

    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(
        "json", data_files=str(source), split="train", cache_dir=str(folder)
    )
    return {"rows": len(loaded)}


def child(name: str, source: Path, folder: Path) -> None:
    """One measured run in this process; prints its result as JSON."""
    peak, done = [0], threading.Event()
    watch = threading.Thread(target=_watch_memory, args=(peak, done), daemon=True)
    watch.start()
    began = time.perf_counter()
    found = {"ours": ours, "theirs": theirs}[name](source, folder)
    wall = time.perf_counter() - began
    done.set()
    watch.join()
    times = os.times()
    cpu = times.user + times.system + times.children_user + times.children_system
    print(json.dumps({**found, "wall_s": wall, "cpu_s": cpu, "peak_mb": peak[0] / 1e6}))


def _watch_memory(peak: list[int], done: threading.Event) -> None:
    me = psutil.Process()
    family, looked = [me], 0.0
    while not done.wait(SAMPLE_S):
        if time.monotonic() - looked > FAMILY_S:  # asking costs some milliseconds
            family, looked = [me, *me.children(recursive=True)], time.monotonic()
        total = 0
        for process in family:
            try:
                total += process.memory_info().rss
            except psutil.Error:  # it has ended
                continue
        peak[0] = max(peak[0], total)


def measure(name: str, source: Path, tmp: Path) -> dict[str, Any]:
    """Run one side in a fresh process and folder."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=tmp))
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--child", name, str(source), str(folder)],
            env=environment, capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def profile(source: Path, tmp: Path) -> None:
    """cProfile of the import child, alone in this process."""
    from dataclasses import asdict

    from studio.services import import_child, job_child
    from studio.services.import_process import Limits

    shutil.copyfile(source, tmp / "source")
    limits = asdict(Limits.for_file(source.stat().st_size))
    request = {"source": str(tmp / "source"), "name": "rows.jsonl", "folder": str(tmp),
               "format": "auto", "mapping": {}, "limits": limits, "workers": 1}  # fmt: skip
    watcher = cProfile.Profile()
    result = watcher.runcall(job_child.run, request, import_child.read_file)
    if "error" in result:
        raise SystemExit(str(result["error"]))
    pstats.Stats(watcher).sort_stats("tottime").print_stats(32)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", choices=("ours", "theirs"))
    parser.add_argument("--profile", type=int, metavar="ROWS")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tmp = Path(tempfile.mkdtemp(prefix="importing-"))
    try:
        source = tmp / "rows.jsonl"
        write_rows(source, options.profile or options.rows)
        if options.profile:
            profile(source, tmp)
            return
        report(source, tmp, options)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def report(source: Path, tmp: Path, options: argparse.Namespace) -> None:
    """Run the pairs and print what came out."""
    names = (options.only,) if options.only else ("ours", "theirs")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    print(f"{options.rows:,} rows, {source.stat().st_size / 1e6:.0f} MB, load "
          f"{os.getloadavg()[0]:.1f}", file=sys.stderr)  # fmt: skip
    for pair in range(options.pairs):
        for name in names if pair % 2 == 0 else names[::-1]:
            found = measure(name, source, tmp)
            runs[name].append(found)
            late = f", loop late {found['late_ms']:.0f} ms" if "late_ms" in found else ""
            print(f"{name:6}  {found['wall_s']:7.1f} s wall  {found['cpu_s']:7.1f} s cpu  "
                  f"{found['peak_mb']:6.0f} MB{late}", file=sys.stderr, flush=True)  # fmt: skip
    result: dict[str, Any] = {"rows": options.rows, "bytes": source.stat().st_size, "runs": runs}
    for key in ("wall_s", "cpu_s") if len(names) == 2 else ():
        pairs = zip(runs["ours"], runs["theirs"], strict=True)
        result[f"ratio_{key}"] = statistics.median(one[key] / other[key] for one, other in pairs)
        print(f"ours / load_dataset, {key}: {result[f'ratio_{key}']:.2f}", file=sys.stderr)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
