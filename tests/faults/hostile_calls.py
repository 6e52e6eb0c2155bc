"""Hostile calls in four roles: does anything change without the right, break, or tell too much?

    python -m tests.faults.hostile_calls --trials 2000

Against the whole page, every tab's handlers, over a real socket; the trainer alone is pretended.
First three quarters of the calls, in four roles, of which none may change anything; then what the
owner may send: nonsense to any route, and clicks on every handler with values no control can hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.door import HOME, House
from tests.faults.hostile_values import ROLES, Drawer, page_of
from tests.faults.result import Result, run_from_command_line
from tests.faults.site import READ_BYTES, Call, Site, leaks, serve
from tests.full_house import full_house

REFUSED = (401, 403, 404, 405, 408, 413, 421, 422, 429)
MAX_GROWTH_BYTES = 100 << 20
CLICK_S = 60.0  # the first one starts the process that knows the models
SETTLE_S = 1.0
UNEXPECTED = "Unexpected problem"  # title of the box for what is no StudioError
WANTED = (
    "0 changes without the right, 0 answers 5xx, 0 tracebacks, paths or tokens told, a sentence "
    "for each value that is none, less than 100 MB more memory"
)


def tree(workspace: Path) -> dict[str, str]:
    """Every file of a workspace with its sum; locks and downloads that are being sent left out."""
    found = {}
    for path in sorted(workspace.rglob("*")):
        if path.name.endswith("lock") or any(part.startswith("zip-") for part in path.parts[-2:]):
            continue
        with contextlib.suppress(FileNotFoundError):
            content = path.read_bytes() if path.is_file() else b""
            found[path.relative_to(workspace).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def stamps(workspace: Path) -> dict[str, tuple[int, int]]:
    """What tells quickly whether a file was written."""
    found = {}
    for path in workspace.rglob("*"):
        skipped = path.name.endswith("lock") or path.parent.name.startswith("zip-")
        if path.is_file() and not skipped:
            with contextlib.suppress(FileNotFoundError):
                entry = path.stat()
                found[str(path)] = (entry.st_size, entry.st_mtime_ns)
    return found


class Clicks:
    """The owner's clicks, as the page sends them: handler by index, values, the answer's stream."""

    def __init__(self, site: Site, client: httpx.Client, drawer: Drawer) -> None:
        self._site, self._client, self._drawer = site, client, drawer
        page = page_of(site.house)
        self.functions = sorted(page.fns)
        self._fns = page.fns

    def click(self, number: int) -> tuple[Call, int, str]:
        """The next click: what was sent, status and what came back."""
        draw, fn = self._drawer.draw, self._fns[self.functions[number % len(self.functions)]]
        data = [getattr(component, "value", None) for component in fn.inputs]
        for place in range(len(data)):
            if draw.random() < 2 / len(data):
                data[place] = self._drawer.value()
        if data and draw.random() < 0.1:
            data.pop()
        session = f"click{number}"
        body: dict[str, Any] = {"data": data, "fn_index": fn._id, "session_hash": session}
        if draw.random() < 0.7:
            fields = {"run": self._run(), "verb": self._drawer.value(), "prompt": 1}
            body["event_data"] = draw.choice((fields, self._drawer.value()))
        call = Call(
            "owner", "POST", "/gradio_api/queue/join",
            {"origin": HOME, "content-type": "application/json"}, _json(body),
        )  # fmt: skip
        if not fn.queue and draw.random() < 0.5:
            call.path = f"/gradio_api/run/{fn.api_name}"
            return call, *self._site.send(self._client, call)
        status, said = self._site.send(self._client, call)
        if status != 200:
            return call, status, said
        listen = Call("owner", "GET", f"/gradio_api/queue/data?session_hash={session}", {})
        return call, *self._site.send(self._client, listen, read_s=CLICK_S)

    def _run(self) -> Any:
        draw = self._drawer.draw
        return draw.choice((self._drawer.value(), *self._site.house.runs.values()))


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except (TypeError, ValueError):  # a component whose first value is no JSON
        return json.dumps(value, default=str).encode()


def unfit(said: str) -> str:
    """What is wrong with how a click was answered; "" where it worked or was told why not."""
    for text in re.findall(r"^data: (.*)$", said, re.MULTILINE):
        try:
            event = json.loads(text)
        except ValueError:
            return "" if len(said) > READ_BYTES else "an answer that is no JSON"
        if event.get("msg") != "process_completed" or event.get("success"):
            continue
        output = event.get("output") or {}
        if not output.get("error"):
            return "refused without a word"
        if output.get("title") == UNEXPECTED:
            return f"an error that nobody foresaw: {output['error'][:80]}"
    if '"msg"' in said and "process_completed" not in said:
        return "no end of the answer"
    return ""


def attempt(site: Site, client: httpx.Client, call: Call, result: Result, where: str) -> None:
    """Send one request and judge the answer."""
    try:
        status, said = site.send(client, call)
    except httpx.HTTPError as error:
        status, said = 0, type(error).__name__
        # A connection that the server closed, or a request that httpx itself will not send.
        if not isinstance(error, httpx.RemoteProtocolError | httpx.LocalProtocolError):
            result.check(False, f"{where}: {error!r}")
    judge(site.house, call, status, said, result, where)


def judge(house: House, call: Call, status: int, said: str, result: Result, where: str) -> None:
    """Status and words of an answer."""
    result.trials += 1
    result.count("refused", int(status in REFUSED))
    result.check(status < 500, f"{where}: {status} {said[-300:]!r}")
    told = leaks(house, call, said)
    result.check(not told, f"{where}: told {told} in {said[-300:]!r}")


def without_right(site: Site, client: httpx.Client, drawer: Drawer, trials: int,
                  result: Result, seed: int) -> None:  # fmt: skip
    """Calls of which none may change anything."""
    workspace = site.house.workspace
    before, seen = tree(workspace), stamps(workspace)
    for number in range(trials):
        call = drawer.call(ROLES[number % len(ROLES)])
        while call.may_change:
            call = drawer.call("owner")
        where = f"seed {seed}, call {number}: {call.told()}"
        attempt(site, client, call, result, where)
        now = stamps(workspace)
        if now != seen:
            names = sorted(dict(set(now.items()) ^ set(seen.items())))[:3]
            result.check(False, f"{where}: changed {names}")
        seen = now
    time.sleep(SETTLE_S)  # what was queued against the right would begin now
    changed = sorted(dict(set(tree(workspace).items()) ^ set(before.items())))[:5]
    result.check(not changed, f"seed {seed}: the workspace changed: {changed}")


def by_owner(site: Site, client: httpx.Client, drawer: Drawer, trials: int,
             result: Result, seed: int) -> None:  # fmt: skip
    """What the owner may send; it may change things, but not break them."""
    clicks = Clicks(site, client, drawer)
    for number in range(trials):
        if number % 2:
            call = drawer.call("owner")
            attempt(site, client, call, result, f"seed {seed}, owner {number}: {call.told()}")
            continue
        call, status, said = clicks.click(number // 2)
        where = f"seed {seed}, click {number // 2}: {call.told()}"
        judge(site.house, call, status, said, result, where)
        result.count("clicks")
        problem = unfit(said)
        result.check(not problem, f"{where}: {problem}: {said[-300:]!r}")


def warm_up(site: Site, client: httpx.Client, drawer: Drawer) -> None:
    """One click on each handler, so that what is loaded once is not growth."""
    clicks = Clicks(site, client, Drawer(site.house, drawer.draw.randrange(2**32)))
    for number in range(len(clicks.functions)):
        clicks.click(number)


def run(trials: int, seed: int = 0, *, folder: Path | None = None) -> Result:
    """Send `trials` calls and judge every answer."""
    result = Result("hostile calls", WANTED)
    with tempfile.TemporaryDirectory(dir=folder) as root, serve(Path(root), full_house) as site:
        drawer = Drawer(site.house, seed)
        with httpx.Client(trust_env=False, follow_redirects=False) as client:
            page = Call("owner", "GET", "/", {})
            site.send(client, page)
            warm_up(site, client, drawer)
            begun = psutil.Process().memory_info().rss
            owners = trials // 4
            without_right(site, client, drawer, trials - owners, result, seed)
            by_owner(site, client, drawer, owners, result, seed)
            result.count("runs begun by the owner", len(site.house.studio.runs.list()) - 2)
            grown = psutil.Process().memory_info().rss - begun
            result.facts["MB more memory"] = max(0, grown >> 20)
            result.check(grown < MAX_GROWTH_BYTES, f"{grown >> 20} MB more memory")
            status, _ = site.send(client, page)
            result.check(status == 200, f"the page answers {status} afterwards")
        logged = site.errors.getvalue()
        result.check("Traceback" not in logged, f"seed {seed}: logged {logged[-1500:]!r}")
    return result


def main() -> int:
    return run_from_command_line(run, __doc__, trials=2000)


if __name__ == "__main__":
    raise SystemExit(main())
