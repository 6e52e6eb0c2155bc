"""Rows a second from examples to labelled tokens: TRL's own path, ours, and the tokenizer alone.

    python benchmarks/tokenizing.py [--rows 4000] [--pairs 5] [--data FILE] [--json]
    python benchmarks/tokenizing.py --second-start 50000    # what the second start of a run spends
    python benchmarks/tokenizing.py --million               # memory of 1,000,000 rows

TRL: `SFTTrainer._prepare_dataset` on a `datasets.Dataset` of the same rows, assistant_only_loss,
one process: dataset.map row by row, then labels, then cutting. Ours: `encode_batches` as the
trainer calls it. Both start from rows in memory. The order of a pair is swapped each time, its
ratio is taken, and the median of the ratios is the result; ids and labels must be equal. Processor
time (all threads and the process that renders templates) is told too: on a busy machine our
threads do not get the second core, and only that ratio remains. The tokenizer is that of
presets/starter (byte-level BPE of 4,096); rows are repeated until there are enough.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
MAX_LENGTH = 512
_WORDS = [
    "the", "order", "changes", "when", "a", "small", "red", "house", "by", "river", "is", "old",
    "nobody", "knows", "where", "pancakes", "come", "from", "so", "people", "ask", "for", "recipe",
]  # fmt: skip


def generated_rows(count: int) -> list[dict[str, Any]]:
    """Alpaca-shaped rows of about the same lengths, made here."""
    draw = random.Random(0)

    def words(low: int, high: int) -> str:
        return " ".join(draw.choice(_WORDS) + str(draw.randint(0, 99)) * (draw.random() < 0.1)
                        for _ in range(draw.randint(low, high)))  # fmt: skip

    return [as_row(i, words(6, 40), words(20, 220)) for i in range(count)]


def alpaca_rows(file: Path, count: int) -> list[dict[str, Any]]:
    """The rows of an Alpaca file, repeated."""
    source = json.loads(file.read_text(encoding="utf-8"))
    pairs = [("\n\n".join(filter(None, (r["instruction"], r["input"]))), r["output"])
             for r in source if r["output"].strip()]  # fmt: skip
    return [as_row(i, *pairs[i % len(pairs)]) for i in range(count)]


def as_row(i: int, question: str, answer: str) -> dict[str, Any]:
    """One record of data.jsonl."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"i": i + 1, "line": i + 1, "messages": turns}


def load() -> Any:
    """The starter's tokenizer."""
    from studio.backend.rendering import load_tokenizer

    return load_tokenizer(ROOT / "presets" / "starter")


def trl_path(tokenizer: Any, rows: list[dict[str, Any]]) -> Callable[[], Any]:
    """TRL's preparation of a data set, without the rest of its trainer."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    datasets.disable_caching()
    args = SFTConfig(output_dir=tempfile.gettempdir(), max_length=MAX_LENGTH, use_cpu=True,
                     bf16=False, assistant_only_loss=True, report_to=[])  # fmt: skip
    trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=False)
    source = datasets.Dataset.from_list([{"messages": row["messages"]} for row in rows])
    return lambda: SFTTrainer._prepare_dataset(
        trainer, source, tokenizer, args, False, None, "train"
    )


def ours(tokenizer: Any, rows: list[dict[str, Any]]) -> Callable[[], Any]:
    """Our path, as `data.token_table` drives it."""
    from studio.backend.token_cache import table_in_memory
    from studio.backend.tokenize import encode_batches

    return lambda: table_in_memory(encode_batches(tokenizer, rows))


def bare(tokenizer: Any, rows: list[dict[str, Any]]) -> Callable[[], Any]:
    """The tokenizer alone on the rendered texts, in one batch and one thread."""
    from studio.backend.chat_text import Renderer

    texts = [text for text, _ in Renderer(tokenizer).render(rows, "assistant", None)]
    return lambda: tokenizer(texts, add_special_tokens=False, return_attention_mask=False)


def same(theirs: Any, table: Any) -> bool:
    """Whether both made the same rows."""
    first = table.fact("first")
    kept = [row for row in range(len(table)) if 0 < first[row] < MAX_LENGTH]
    return len(kept) == len(theirs) and all(
        (theirs[place]["input_ids"], theirs[place]["labels"])
        == (table.row(row, MAX_LENGTH).input_ids, table.row(row, MAX_LENGTH).labels)
        for place, row in enumerate(kept)
    )


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, processor seconds and result."""
    began, used = time.perf_counter(), cpu_s()
    result = work()
    return time.perf_counter() - began, cpu_s() - used, result


def cpu_s() -> float:
    """Processor time of this process and its living children."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


def compare(rows: list[dict[str, Any]], pairs: int) -> dict[str, Any]:
    """Interleaved pairs."""
    tokenizer = load()
    works = {"trl": trl_path(tokenizer, rows), "ours": ours(tokenizer, rows),
             "tokenizer alone": bare(tokenizer, rows)}  # fmt: skip
    equal = same(works["trl"](), works["ours"]())  # also the warm-up of both
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(pairs):
        names = ["trl", "ours"][:: 1 if number % 2 == 0 else -1]
        for name in (*names, "tokenizer alone"):
            seen[name].append(timed(works[name])[:2])
    pair = list(zip(seen["trl"], seen["ours"], strict=True))
    ratios, cpu = ([t[which] / o[which] for t, o in pair] for which in (0, 1))
    return {
        "rows": len(rows), "same_ids_and_labels": equal, "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "rows_per_s": {
            name: round(len(rows) / statistics.median(t for t, _ in found))
            for name, found in seen.items()
        },
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in sorted(ratios)],
        "cpu_ratio": round(statistics.median(cpu), 2),
    }  # fmt: skip


def second_start(count: int, source: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run spends on data the first and the second time."""
    from studio.backend import data
    from studio.backend.token_cache import TokenCache
    from studio.core.config_io import build_config

    tokenizer, config = load(), build_config({"train": {"max_length": MAX_LENGTH}})
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as folder:
        file = Path(folder) / "data.jsonl"
        with file.open("w", encoding="utf-8") as out:
            for i in range(count):
                out.write(json.dumps({**source[i % len(source)], "i": i + 1}) + "\n")
        cache = TokenCache(Path(folder) / "tokens")

        def start() -> Any:
            rows = data.load_rows(Path(folder))
            dataset = data.to_dataset(data.prepare(tokenizer, rows, config, cache=cache).train)
            return data.row_lengths(dataset)

        seconds = [timed(start)[0] for _ in range(4)]
        size = sum(f.stat().st_size for f in (Path(folder) / "tokens").rglob("*") if f.is_file())
        return {
            "rows": count, "data_bytes": file.stat().st_size, "cache_bytes": size,
            "first_s": round(seconds[0], 2), "second_s": round(statistics.median(seconds[1:]), 3),
            "first_rows_per_s": round(count / seconds[0]),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }  # fmt: skip


def main() -> int:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/alpaca_en_1k.json")
    parser.add_argument("--second-start", type=int, default=0, metavar="ROWS")
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    count = 1_000_000 if options.million else options.second_start
    if count:
        print(json.dumps(second_start(count, generated_rows(4000))))
        return 0
    results = {"generated": compare(generated_rows(options.rows), options.pairs)}
    if options.data.is_file():
        rows = alpaca_rows(options.data, options.rows)
        results[options.data.name] = compare(rows, options.pairs)
    if options.json:
        print(json.dumps(results))
        return 0
    for name, result in results.items():
        rates = ", ".join(f"{k} {v:,}" for k, v in result["rows_per_s"].items())
        print(
            f"{name}: {rates} rows/s; ours / TRL {result['ratio']} ({result['ratios']}), "
            f"processor time TRL / ours {result['cpu_ratio']}, load {result['load']} on "
            f"{result['cores']} cores, same ids and labels: {result['same_ids_and_labels']}"
        )
    return 0 if all(r["same_ids_and_labels"] for r in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
