"""How fast the page shows a row of 4,096 tokens as the model sees it, from the click.

    python benchmarks/mask_view.py [--times 8] [--json]

Starts the studio as a user does, on an empty workspace, imports a file in which every second row is
long, and goes from short rows to the long ones behind them in Chromium. The clock is the page's
own: it starts with the click's event, `shown` is when the tokens stand in the page, `painted` when
the frame after that is done. Each row is opened for the first time. The median is the result.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TOKENS = 4096
_WORDS = ["the", "order", "changes", "when", "a", "small", "red", "house", "by", "river", "is"]

_CLOCK = """(least) => {
  window.seen = {};
  addEventListener('click', (event) => {
    if (event.target.closest('button')) window.seen = {from: performance.now()};
  }, true);
  new MutationObserver(() => {
    const seen = window.seen;
    if (seen.shown || document.querySelectorAll('#rendered .tokens i').length < least) return;
    seen.shown = performance.now() - seen.from;
    requestAnimationFrame(() => setTimeout(() => {
      seen.painted = performance.now() - seen.from;
    }, 0));
  }).observe(document.querySelector('#rendered'), {childList: true, subtree: true});
}"""


def write_rows(file: Path, count: int) -> None:
    """So many short rows, each with one of about TOKENS tokens of the starter behind it."""
    from studio.backend.rendering import load_tokenizer

    draw, tokenizer = random.Random(0), load_tokenizer(ROOT / "presets" / "starter")
    rows = []
    for number in range(count):
        words = draw.choices(_WORDS, k=TOKENS)
        share = TOKENS / len(tokenizer(" ".join(words), verbose=False)["input_ids"])
        rows += [
            {"question": f"Short {number}?", "answer": "word " * 20},
            {"question": f"Long {number}?", "answer": " ".join(words[: int(TOKENS * share)])},
        ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure(times: int) -> list[dict[str, Any]]:
    """Open a long row so many times."""
    from playwright.sync_api import sync_playwright

    from tests.ui.conftest import FLAGS, Site, find_chromium, free_port, open_page

    with tempfile.TemporaryDirectory(prefix="mask-view-") as folder:
        file, port = Path(folder) / "rows.jsonl", free_port()
        write_rows(file, times)
        command = [sys.executable, "app.py", "--no-browser", "--port", str(port),
                   "--workspace", str(Path(folder) / "w")]  # fmt: skip
        site = Site(command, f"http://127.0.0.1:{port}", Path(folder) / "studio.log")
        try:
            site.start()
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
                with open_page(browser) as watched:
                    return _opened(watched, site.url, file, times)
        finally:
            site.stop()


def _opened(watched: Any, url: str, file: Path, times: int) -> list[dict[str, Any]]:
    watched.open(f"{url}/?__theme=light")
    page = watched.page
    page.get_by_label("Training file").set_input_files(file)
    page.get_by_role("heading", name=file.name).wait_for()
    page.locator("#rendered .tokens i").first.wait_for()
    page.locator(".p-lengths[data-drawn]").wait_for()  # the count of tokens is done
    page.evaluate(_CLOCK, TOKENS // 2)
    found = []
    for number in range(1, 2 * times, 2):
        page.get_by_label("Row", exact=True).fill(str(number))
        page.get_by_text(f"Row {number}, line").wait_for()
        page.wait_for_timeout(500)
        page.get_by_role("button", name="Next", exact=True).click()
        page.wait_for_function("window.seen.painted !== undefined")
        seen = page.evaluate("window.seen")
        tokens = page.locator("#rendered .tokens i").count()
        found.append({"tokens": tokens, "shown_ms": round(seen["shown"]),
                      "painted_ms": round(seen["painted"])})  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs = measure(options.times)
    result = {
        "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "runs": runs,
        **{key: statistics.median(run[key] for run in runs)
           for key in ("tokens", "shown_ms", "painted_ms")},
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    print(f"{result['tokens']:.0f} tokens: in the page after {result['shown_ms']:.0f} ms, painted "
          f"after {result['painted_ms']:.0f} ms (medians of {len(runs)}, load {result['load']} on "
          f"{result['cores']} cores)")  # fmt: skip


if __name__ == "__main__":
    main()
