"""Fifty XSS payloads wherever text from outside is shown: none fires, none loads anything.

The page runs on a fake studio whose runs, models, errors and answers are made of the payloads
(`python -m tests.ui.test_xss WORKSPACE PORT`). Payloads set `window.__xss`, open dialogs, or fetch
`beacon` from elsewhere or from here; a listener counts what leaves the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn

from studio.core.config import RunConfig
from studio.core.errors import ModelError
from studio.server import build_app
from tests.ui.conftest import Site, Watched, free_port, open_page
from tests.ui.fake_runs import finish, make_run, write_step
from tests.ui.fake_studio import (
    FakeChat,
    FakeInspector,
    FakeModel,
    FakeModels,
    build_fake_studio,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.browser
FIRE = "window.__xss=1"
EVIL = "https://evil.example/beacon"
PAYLOADS = (
    f"<script>{FIRE}</script>", f"<img src=x onerror={FIRE}>", f"<svg onload={FIRE}>",
    f"<svg><script>{FIRE}</script></svg>", f"<body onload={FIRE}>",
    f"<iframe srcdoc='<script>parent.{FIRE}</script>'></iframe>",
    f"<iframe src=\"javascript:parent.{FIRE}\"></iframe>",
    f"<a href='javascript:{FIRE}'>a link</a>", f"[a link](javascript:{FIRE})",
    f"[a link](  JaVaScRiPt:{FIRE})", f"[a link](&#106;avascript:{FIRE})",
    "[a link](data:text/html;base64,PHNjcmlwdD4=)", f"[a link](vbscript:{FIRE})",
    f"<javascript:{FIRE}>", f"<details open ontoggle={FIRE}>", f"<video src=x onerror={FIRE}>",
    f"<audio src=x onerror={FIRE}>", f"<input autofocus onfocus={FIRE}>",
    f"<select autofocus onfocus={FIRE}>", f"<marquee onstart={FIRE}>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={FIRE}>",
    f"<noscript><p title=\"</noscript><img src=x onerror={FIRE}>\">",
    f"\"><script>{FIRE}</script>", f"'><img src=x onerror={FIRE}>", f"\" onmouseover=\"{FIRE}",
    f"' autofocus onfocus='{FIRE}", f"</textarea><script>{FIRE}</script>",
    f"</title><script>{FIRE}</script>", f"</script><script>{FIRE}</script>",
    f"--><script>{FIRE}</script>", f"]]><script>{FIRE}</script>",
    f"<img src={EVIL}.png>", f"![a picture]({EVIL}.png)", f"![a picture][1]\n\n[1]: {EVIL}.png",
    f"<link rel=stylesheet href={EVIL}.css>", f"<style>@import '{EVIL}.css';</style>",
    f"<div style=\"background:url({EVIL}.png)\">x</div>", f"<object data={EVIL}></object>",
    f"<embed src={EVIL}>", f"<form action={EVIL}><button autofocus>x</button></form>",
    f"<meta http-equiv=refresh content='0;url={EVIL}'>", f"<base href='{EVIL}/'>",
    f"\\`<img src={EVIL}.png>\\`", f"$$`$$<img src={EVIL}.png>`", f"`a\n<img src={EVIL}.png>\n`",
    "{{constructor.constructor('window.__xss=1')()}}", "${window.__xss=1}",
    "&lt;img src=x onerror=window.__xss=1&gt;",
    f"<picture><source srcset={EVIL}.png><img></picture>",
    f"<a ping={EVIL} href=/ >x</a><img src=/beacon.png>",
)  # fmt: skip
ALL = "\n\n".join(PAYLOADS)
# What must not be in the page, whoever wrote it: our own page has none of these.
BAD_ELEMENTS = """() => {
  const found = [];
  for (const e of document.querySelectorAll('*')) {
    for (const a of e.attributes) {
      const value = a.value.replace(/[\\s\\u0000-\\u001f]/g, '').toLowerCase();
      if (a.name.startsWith('on') && value.includes('__xss')) found.push(e.outerHTML);
      if (['href', 'src', 'action', 'formaction', 'data', 'srcset', 'ping'].includes(a.name)
          && (/^(javascript|vbscript|data:text)/.test(value)
              || (value.includes('beacon') && !(e.tagName === 'A' && a.name === 'href'))))
        found.push(e.outerHTML);
      if (a.name === 'style' && value.includes('beacon')) found.push(e.outerHTML);
    }
    if (['SCRIPT', 'STYLE'].includes(e.tagName) && /__xss|beacon/.test(e.textContent)
        && !e.textContent.includes('gradio_config')) found.push(e.outerHTML);
  }
  return found.map((html) => html.slice(0, 200));
}"""


@dataclasses.dataclass
class Trap:
    """A page that notes what fired and what left it."""

    watched: Watched
    site_host: str
    left: list[str] = dataclasses.field(default_factory=list)
    dialogs: list[str] = dataclasses.field(default_factory=list)

    def check(self, where: str) -> None:
        """Nothing fired, nothing was asked for, nothing dangerous stands in the page."""
        page = self.watched.page
        assert page.evaluate("window.__xss") is None, where
        assert page.evaluate(BAD_ELEMENTS) == [], where
        assert (self.left, self.dialogs) == ([], []), where
        assert urlsplit(page.url).netloc == self.site_host, where

    def catch(self, route: Any) -> None:
        """Each request of the page."""
        url = route.request.url
        if "beacon" in url or (url.startswith("http") and urlsplit(url).netloc != self.site_host):
            self.left.append(url)
            route.abort()
        else:
            route.continue_()


class HostileModels(FakeModels):
    """A model list of payloads, and errors that quote them."""

    def list(self) -> list[FakeModel]:
        more = [
            FakeModel(f"evil/{i}{text}", text, 1000, 512, text, 0.1, False, "hub", note=text)
            for i, text in enumerate(PAYLOADS)
        ]
        return [*super().list(), *more]

    def resolve(self, model_id: str) -> Path:
        if model_id != "starter":
            raise ModelError(f"There is no such model: {ALL}", value=model_id, remedy=ALL)
        return super().resolve(model_id)


class HostileInspector(FakeInspector):
    """Templates that answer with payloads: as an error, and as what they render."""

    def render(
        self, model_id: str, example: dict[str, Any], options: dict[str, Any]
    ) -> dict[str, Any]:
        if example.get("i", 0) % 2 == 0:
            raise ModelError(f"the chat template refuses it: {ALL} (line 3 of the template)")
        return super().render(model_id, example, options)


class HostileChat(FakeChat):
    """Answers of payloads, in pieces that cut through tags."""

    async def stream(
        self, run_id: str, messages: list[Any], *, which: str, **_: Any
    ) -> AsyncIterator[dict[str, Any]]:
        yield {"notice": ALL, "message": ALL}
        for start in range(0, len(ALL), 61):
            await asyncio.sleep(0.005)
            for side in ("base", "adapter") if which == "both" else (which,):
                yield {"which": side, "delta": ALL[start : start + 61]}
        for side in ("base", "adapter") if which == "both" else (which,):
            yield {"which": side, "delta": " THE END"}
            yield {
                "which": side,
                "done": True,
                "tokens": 96,
                "truncated": True,
                "tokens_per_s": 1.0,
            }


def plain(text: str) -> str:
    """With single spaces, as a browser shows it."""
    return " ".join(text.split())


def write_runs(root: Path) -> None:
    """A run for each payload, with it in each text that a run has."""
    for text in PAYLOADS:
        paths = make_run(root, RunConfig(), text)
        record = json.loads(paths.run_json.read_text())
        record["model"] = {"id": text, "kind": text, "path": text}
        record["dataset"] = {"id": text, "name": text, "path": text}
        record["config"]["data"]["system_prompt"] = text
        record["auto"] = {"train.learning_rate": text, text: text}
        paths.run_json.write_text(json.dumps(record))
        paths.meta_json.write_text(json.dumps({"name": text, "notes": text}))
        for step in (0, 1, 2):
            write_step(paths, step, 2)
        sample = {"step": 2, "attempt": 1, "prompt_index": 0, "prompt": text, "answer": ALL,
                  "messages": [{"role": "user", "content": text}], "reference": text,
                  "truncated": False, "tokens": 9}  # fmt: skip
        paths.samples.write_text(json.dumps(sample) + "\n")
        with paths.metrics.open("a") as file:
            warning = {"attempt": 1, "time": "", "t_s": 1.0, "step": 2, "kind": "warning",
                       "text": ALL, "message": ALL}  # fmt: skip
            file.write(json.dumps(warning) + "\n")
        finish(paths, 2, 2)
        end = json.loads(paths.exit_json.read_text())
        error = {"type": "ModelError", "text": ALL, "what": text, "value": text, "remedy": text}
        failed = PAYLOADS.index(text) % 2 == 0
        end.update(verdict=ALL, cause=text)
        end.update({"state": "failed", "error": error} if failed else {})
        paths.exit_json.write_text(json.dumps(end))
        paths.adapter.mkdir()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, port = tmp_path_factory.mktemp("xss"), free_port()
    command = [sys.executable, "-m", "tests.ui.test_xss", str(folder / "w"), str(port)]
    served = Site(command, f"http://127.0.0.1:{port}", folder / "xss.log")
    try:
        yield served.start()
    finally:
        served.stop()


@contextlib.contextmanager
def trapped(browser: Any, site: Site) -> Iterator[Trap]:
    with open_page(browser) as watched:
        trap = Trap(watched, urlsplit(site.url).netloc)
        watched.page.context.route("**/*", trap.catch)

        def on_dialog(dialog: Any) -> None:
            trap.dialogs.append(dialog.message)
            dialog.dismiss()

        watched.page.on("dialog", on_dialog)
        yield trap


@pytest.fixture
def trap(browser: Any, site: Site) -> Iterator[Trap]:
    with trapped(browser, site) as found:
        yield found


def test_there_are_fifty() -> None:
    assert len(set(PAYLOADS)) == 50


def test_the_trap_catches(trap: Trap, site: Site) -> None:
    """On a page that escapes nothing the same payloads fire, load and stand there."""
    page = trap.watched.page
    page.set_content("".join(f"<div>{text}</div>" for text in PAYLOADS[:5]))
    wait_until(lambda: page.evaluate("window.__xss") == 1, what="a payload that fires")
    page.evaluate(f"document.body.innerHTML = '<img src={EVIL}.png>'")
    wait_until(lambda: page.evaluate("1") and trap.left, what="a picture that is asked for")
    with pytest.raises(AssertionError):
        trap.check("bare")


def test_runs_and_the_live_view(trap: Trap, site: Site) -> None:
    trap.watched.open(site.url)
    page = trap.watched.page
    trap.watched.tab("Runs")
    table = page.locator("#runs-table")
    wait_until(lambda: table.locator("button[data-run]").count() == 50, what="all runs")
    shown = plain(table.inner_text())
    assert all(plain(text) in shown for text in PAYLOADS)
    trap.check("the table of runs")
    ids = [button.get_attribute("data-run") for button in table.locator("button[data-run]").all()]
    for number in (0, 24):
        row = table.locator(f"button[data-run='{ids[number]}']")
        name = plain(row.inner_text())
        row.click()
        heading = page.locator("#run-panel .run-details h2")
        wait_until(lambda h=heading, n=name: n in plain(h.inner_text()), what=name)
        trap.check(f"the details of run {number}")
        page.get_by_role("button", name="Use these settings again").click()
        page.get_by_role("tab", name="Train", exact=True, selected=True).wait_for()
        trap.check(f"the settings of run {number}")
        trap.watched.tab("Runs")
    trap.watched.tab("Train")
    page.locator(".answer").first.wait_for(state="attached")
    trap.check("the live view")


def test_data_cells_columns_and_file_names(trap: Trap, site: Site, tmp_path: Path) -> None:
    names = [text.replace("/", "\u2215").replace("\n", " ")[:80] for text in PAYLOADS[:3]]
    page = trap.watched.page
    for number, name in enumerate(names):
        file = tmp_path / f"{name}.jsonl"
        rows = [
            {"question": text, "answer": ALL, **{f"{i}{t}": t for i, t in enumerate(PAYLOADS)}}
            for text in (*PAYLOADS[number:], *PAYLOADS[:number], "")
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        trap.watched.open(site.url)
        page.get_by_label("Training file").set_input_files(file)
        page.locator("#data-view .rows, #data-view .failure").first.wait_for()
        trap.check(f"the data of {name}")
    broken = tmp_path / f"{names[1]}.json"
    broken.write_text("[{" + ALL)
    trap.watched.open(site.url)
    page.get_by_label("Training file").set_input_files(broken)
    page.locator("#data-view .failure, .toast-body").first.wait_for()
    trap.check("a broken file")


def test_models_and_messages(trap: Trap, site: Site) -> None:
    trap.watched.open(site.url)
    trap.watched.tab("Train")
    page = trap.watched.page
    model = page.get_by_label("Model", exact=True).first
    model.click()
    page.get_by_role("option").nth(20).wait_for()
    trap.check("the list of models")
    model.fill(PAYLOADS[1])
    model.press("Enter")
    page.get_by_text("There is no such model", exact=False).first.wait_for()
    trap.check("a message about a model")


def test_chat_both_ways(trap: Trap, site: Site) -> None:
    trap.watched.open(site.url)
    trap.watched.tab("Chat")
    page = trap.watched.page
    page.get_by_label("Message").fill(ALL)
    trap.check("the list of runs and prompts")
    page.get_by_role("button", name="Send").click()
    base = page.get_by_label("Base model")
    wait_until(lambda: base.first.inner_text().count("THE END") >= 1, what="the whole answer")
    trap.check("the chat")
    links = page.evaluate(
        "[...document.querySelectorAll('#chat-base a[href]')].map((a) => a.protocol)"
    )
    assert set(links) <= {"http:", "https:"}, links
    assert page.locator("#chat-base .message img, #chat-adapter .message img").count() == 0


def test_the_viewers_page(trap: Trap, site: Site) -> None:
    page = trap.watched.page
    page.goto(f"{site.url}/view")
    shown = page.locator("table").inner_text()
    assert all(plain(text) in plain(shown) for text in PAYLOADS)
    trap.check("the viewers' list")
    addresses = [link.get_attribute("href") for link in page.locator("td a").all()]
    for address in addresses[:6]:
        page.goto(f"{site.url}{address}")
        trap.check("a viewers' run")
    chat = next(a for a in addresses if page.goto(
        f"{site.url}{a.replace('/runs/', '/chat/')}").status == 200)  # fmt: skip
    page.goto(f"{site.url}{chat.replace('/runs/', '/chat/')}")
    page.locator("#question").fill(ALL[:3900])
    page.get_by_role("button", name="Send").click()
    wait_until(lambda: "THE END" in page.locator("#base").inner_text(), what="the whole answer")
    assert ALL in page.locator("#base").inner_text()
    trap.check("the viewers' chat")


def main() -> None:
    """Serve the hostile studio."""
    workspace, port = Path(sys.argv[1]), int(sys.argv[2])
    studio = build_fake_studio(workspace)
    studio.settings = dataclasses.replace(studio.settings, port=port)
    studio.models, studio.inspector = HostileModels(workspace), HostileInspector()
    studio.chat = HostileChat()
    write_runs(studio.runs.root)
    uvicorn.run(build_app(studio), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
