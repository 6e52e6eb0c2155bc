"""Run folders in the shape that the trainer writes, for page tests: created, on the way, at an end.

Pure files: no trainer, no server.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from studio.core.config import RunConfig
from studio.core.config_io import dump_config
from studio.core.runs import RunPaths, new_run_id

ANSWERS = {
    "base": "I am not sure <b>about</b> that & more.",
    "adapter": "Berth 4, and the tide turns at nine if `a < b && c`.",
}
PROMPTS = ("How do I reset the lamp?", "When does the ferry leave?", "Which berth is free?")


def make_run(root: Path, config: RunConfig, name: str) -> RunPaths:
    """A run folder that was just created."""
    paths = RunPaths(root / new_run_id())
    while paths.root.exists():
        paths = RunPaths(root / new_run_id())
    paths.root.mkdir(parents=True)
    now = datetime.now(UTC).isoformat()
    record = {
        "schema": 1,
        "id": paths.id,
        "created": now,
        "config": dump_config(config),
        "total_steps": 60,
        "resolved": dump_config(config),
        "dataset": {"id": "x", "name": "harbor-style"},
        "model": {"id": config.model.id, "kind": "starter"},
    }
    paths.run_json.write_text(json.dumps(record))
    paths.meta_json.write_text(json.dumps({"name": name, "notes": ""}))
    paths.process_json.write_text(json.dumps({"attempt": 1, "pid": 1}))
    return paths


def write_step(paths: RunPaths, step: int, total: int) -> None:
    """What the trainer writes at a step."""
    records: list[dict[str, Any]] = []
    base = {"attempt": 1, "time": "", "t_s": step * 0.5, "step": step}
    loss = 0.6 + 2.1 * math.exp(-step / (total / 4)) + 0.12 * math.sin(step * 1.7)
    if step == 0:
        records.append(
            {**base, "kind": "phase", "name": "loading", "status": "end", "duration_s": 7.8}
        )
    else:
        rate = 2e-4 * (1 - step / total)
        records.append(
            {
                **base,
                "kind": "step",
                "loss": loss,
                "learning_rate": rate,
                "grad_norm": 0.8 + loss / 4,
                "tokens_total": 480 * step,
                "tokens_per_s": 2400 + 90 * math.sin(step),
            }
        )
    records.append({**base, "kind": "device", "rss_bytes": int(1.1e9 + 2e6 * step)})
    if step % max(1, total // 6) == 0:
        records.append(
            {**base, "kind": "eval", "eval_loss": loss + 0.1, "eval_rows": 20, "eval_s": 0.4}
        )
        records.append(
            {**base, "kind": "phase", "name": "eval", "status": "end", "duration_s": 0.4}
        )
        records.append(
            {**base, "kind": "phase", "name": "saving", "status": "end", "duration_s": 0.1}
        )
        write_answers(paths, step)
    with paths.metrics.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    state = {
        "state": "running",
        "phase": "training",
        "step": step,
        "total_steps": total,
        "attempt": 1,
        "eta_s": (total - step) * 0.05,
        "message": "" if step else "Loading libraries, about 8 s",
    }
    paths.state_json.write_text(json.dumps(state))


def write_answers(paths: RunPaths, step: int) -> None:
    """What the trainer appends when it answered the held-out prompts."""
    with paths.samples.open("a") as file:
        for index, prompt in enumerate(PROMPTS):
            said = ANSWERS["base"] if step == 0 else ANSWERS["adapter"]
            file.write(
                json.dumps(
                    {
                        "step": step,
                        "attempt": 1,
                        "prompt_index": index,
                        "prompt": prompt,
                        "answer": said,
                        "messages": [{"role": "user", "content": prompt}],
                        "reference": "Berth 4.",
                        "truncated": index == 2,
                        "tokens": 96,
                    }
                )
                + "\n"
            )


def finish(paths: RunPaths, step: int, total: int, state: str | None = None) -> None:
    """What the trainer writes at the end."""
    end = {
        "state": state or ("done" if step >= total else "stopped"),
        "attempt": 1,
        "cause": None,
        "error": None,
        "steps": step,
        "total_steps": total,
        "train_loss": 0.71,
        "eval_loss": 0.83,
        "best_step": step,
        "kept_step": step,
        "verdict": f"Held-out loss fell from 2.80 to 0.83; using step {step}.",
        "peak_rss_bytes": 1_240_000_000,
        "run_s": 31.0,
        "adapter_dir": "adapter",
    }
    paths.exit_json.write_text(json.dumps(end))
