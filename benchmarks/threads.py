"""What threads cost a small model on busy cores: python benchmarks/threads.py [--busy 0 1 2]

Times training steps and greedy answers of the starter model in child processes with 1 and 2
threads, with OpenMP's default waiting and with passive waiting, beside 0 to N other processes that
compute without a pause. Prints a table; results are kept in docs/LOG.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPIN = "while True: pass"
# The other process as it is in life: a tiny torch loop with two threads of its own.
RIVAL = (
    "import torch\ntorch.set_num_threads(2)\na = torch.randn(256, 256)\n"
    "while True: a = torch.tanh(a @ a)\n"
)


def measure(steps: int) -> dict[str, float]:
    """Median seconds of a training step (8 x 128 tokens) and seconds of 3 answers of 64 tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(ROOT / "presets/starter", dtype=torch.float32)
    ids = torch.randint(10, model.config.vocab_size, (8, 128))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            input_ids=ids[:3, :24], attention_mask=torch.ones_like(ids[:3, :24]),
            max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0,
        )  # fmt: skip
    return {"step_s": statistics.median(seconds), "answers_s": time.perf_counter() - started}


def run_child(threads: int, passive: bool, steps: int) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    for name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT"):
        environment.pop(name, None)
    if passive:
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(steps)],
        env=environment, capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rival", choices=("spin", "torch"), default="spin")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--child", type=int)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child)))
        return
    print(f"load before: {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    print("busy  threads  waiting  step_ms  answers_s")
    for busy in options.busy:
        code = SPIN if options.rival == "spin" else RIVAL
        rivals = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(busy)]
        try:
            for threads in (1, 2):
                for passive in (False, True) if threads > 1 else (False,):
                    found = run_child(threads, passive, options.steps)
                    print(
                        f"{busy:4}  {threads:7}  {'passive' if passive else 'default':7}  "
                        f"{found['step_s'] * 1000:7.0f}  {found['answers_s']:9.2f}",
                        flush=True,
                    )
        finally:
            for rival in rivals:
                rival.kill()
                rival.wait()


if __name__ == "__main__":
    main()
