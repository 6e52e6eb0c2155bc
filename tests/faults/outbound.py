"""Whom the studio calls in its default mode: nobody.

    python -m tests.faults.outbound

`app.py` in a network namespace that has loopback alone, its system calls (and those of trainer and
chat) under strace: every connect and every datagram to another address is listed. Meanwhile a
browser opens the page, the first run trains and its adapter answers. Without the right to make a
namespace it runs in the usual one; without strace an audit hook in each Python process listens.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

from studio.services.settings import PROJECT_ROOT
from tests.browser_setup import find_chromium
from tests.faults.result import Result, run_from_command_line
from tests.waiting import wait_until

LIMIT_S = 420
WANTED = "0 connections to other addresses, 0 names looked up, 0 foreign hosts in the page"
CALLS = "connect,sendto,sendmsg,sendmmsg"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
_ADDRESS = re.compile(r'(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]+)"')
_FOREIGN = re.compile(
    r"""(?:(?:src|href|action|poster)\s*=\s*["']?|url\(\s*["']?|@import\s+["'])(?:https?:)?//([^"'/\s)>]+)""",
    re.IGNORECASE,
)
# Listens where strace is absent; python loads a module of this name by itself.
HOOK = """
import os, sys
def _note(event, values):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        place = values[0] if event == "socket.getaddrinfo" else values[1]
        with open(os.environ["STUDIO_CALLS"], "a") as file:
            file.write(event + " " + repr(place) + "\\n")
sys.addaudithook(_note)
"""


def outward(trace: str) -> list[str]:
    """Lines of strace's or the hook's output that name another machine."""
    found = []
    for line in trace.splitlines():
        addresses = _ADDRESS.findall(line)
        if not addresses and line.startswith("socket."):
            place = line.partition(" ")[2]
            addresses = re.findall(r"^\(?b?'([^']*)'", place)
            addresses = [one for one in addresses if not one.startswith("/") and one]
        if any(not is_here(address) for address in addresses):
            found.append(line.strip()[:200])
    return found


def is_here(address: str) -> bool:
    """Whether an address is this machine's loopback (or none at all)."""
    own = ("localhost", "::1", "::", "0.0.0.0")
    return address in own or address.startswith(("127.", "::ffff:127."))


def foreign_hosts(text: str, own: str) -> set[str]:
    """Hosts that a page or a style sheet refers to, other than its own; links to read excepted."""
    without_links = re.sub(r"<a\s[^>]*>", "", text)
    return {host for host in _FOREIGN.findall(without_links) if host != own}


class Visit:
    """What a user does, over HTTP as the page does it."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=60)
        self._url = url

    def page(self) -> tuple[set[str], int]:
        """Open the page as a browser: hosts it asked or refers to, and how many files it got."""
        own = self._url.split("/")[2]
        if find_chromium():
            return self._in_chromium(own)
        text = self._client.get("/").text
        names = set(re.findall(r'(?:src|href)="([^"]+\.(?:js|css))"', text))
        texts = [text, *(self._client.get(name).text for name in names if "//" not in name)]
        return set().union(*(foreign_hosts(one, own) for one in texts)), len(texts)

    def _in_chromium(self, own: str) -> tuple[set[str], int]:
        from playwright.sync_api import sync_playwright

        hosts: set[str] = set()
        texts: list[Any] = []
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
            page = browser.new_page()
            page.on("request", lambda one: hosts.add(one.url.split("/")[2])
                    if one.url.startswith(("http", "ws")) else None)  # fmt: skip
            page.on("response", lambda one: texts.append(one))
            page.goto(self._url, timeout=90_000)
            for name in ("Train", "Chat", "Runs"):
                page.get_by_role("tab", name=name, exact=True).click(timeout=90_000)
            page.wait_for_load_state("load")
            kinds = ("text/html", "text/css")
            for answer in [one for one in texts
                           if one.headers.get("content-type", "").startswith(kinds)]:  # fmt: skip
                hosts |= foreign_hosts(answer.text(), own)
            count = len(texts)
            browser.close()
        return hosts - {own}, count

    def close(self) -> None:
        """Let the connections go."""
        self._client.close()

    def first_run(self) -> str:
        """Click "Start" of the welcome card; the id of the run once it is done."""
        config = self._client.get("/config").json()
        index = next(one["id"] for one in config["dependencies"] if one["api_name"] == "on_first")
        click = {"data": ["outbound"], "fn_index": index, "session_hash": "outbound"}
        self._client.post("/gradio_api/queue/join", json=click).raise_for_status()

        def done() -> Any:
            runs = self._client.get("/api/runs").json()["runs"]
            assert not runs or runs[0]["state"] not in ("failed", "interrupted"), runs[0]
            return runs and runs[0]["state"] == "done" and runs[0]["id"]

        return str(wait_until(done, timeout_s=300, what="the first run"))

    def chat(self, run_id: str) -> str:
        """Ask the adapter; the answer."""
        question = {"messages": [{"role": "user", "content": "Is the harbour open?"}],
                    "which": "adapter", "max_tokens": 16}  # fmt: skip
        answer = self._client.post(f"/view/chat/{run_id}", json=question, timeout=180)
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if "data: " in line]
        return "".join(event.get("delta", "") for event in events)


def inside(folder: Path) -> dict[str, Any]:
    """Start the studio, visit it, end it; what was seen. Runs in the namespace."""
    calls = folder / "calls"
    calls.touch()
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    command = [sys.executable, str(PROJECT_ROOT / "app.py"), "--no-browser",
               "--workspace", str(folder / "workspace")]  # fmt: skip
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    # What a test sets to keep quiet must not be the reason for the quiet.
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED"):
        environment.pop(name, None)
    strace = shutil.which("strace")
    if strace:
        command = [strace, "-f", "-qq", "--seccomp-bpf", "-e", f"trace={CALLS}", "-o", str(calls),
                   *command]  # fmt: skip
    else:
        environment |= {"PYTHONPATH": str(folder / "hook"), "STUDIO_CALLS": str(calls)}
    output = folder / "output"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=PROJECT_ROOT, stdout=sink, stderr=sink, env=environment,
            start_new_session=True,
        )  # fmt: skip
    try:
        url = wait_until(
            lambda: re.search(r"runs at (http://\S+)", output.read_text()), timeout_s=120,
            what="the studio",
        )[1]  # fmt: skip
        visit = Visit(url)
        hosts, files = visit.page()
        run_id = visit.first_run()
        answer = visit.chat(run_id)
        visit.close()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    trace = calls.read_text(errors="replace")
    return {
        "outward": outward(trace), "seen": trace.count("connect"), "hosts": sorted(hosts),
        "files": files, "answer": answer, "traced": bool(strace),
    }  # fmt: skip


def namespace() -> list[str]:
    """The words before a command that leave it loopback alone; none where that is not allowed."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return []
    for words in (["unshare", "-n"], ["unshare", "-r", "-n"]):
        command = [*words, "ip", "link", "set", "lo", "up"]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return [*words, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    return []


def run(trials: int = 1, seed: int = 0) -> Result:
    """One visit from the start of the studio to its end. Nothing is drawn: `seed` is not used."""
    result = Result("outbound connections", WANTED)
    for _ in range(trials):
        with tempfile.TemporaryDirectory() as folder:
            words = namespace()
            done = subprocess.run(
                [*words, sys.executable, "-c", "import json, sys; from pathlib import Path; "
                 "from tests.faults.outbound import inside; "
                 "print(json.dumps(inside(Path(sys.argv[1]))))", folder],
                cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False,
            )  # fmt: skip
            result.trials += 1
            if not result.check(done.returncode == 0, f"no visit: {done.stderr[-600:]}"):
                continue
            judge(result, json.loads(done.stdout.splitlines()[-1]))
            result.count("without a namespace", int(not words))
    return result


def judge(result: Result, seen: dict[str, Any]) -> None:
    """What a visit showed."""
    for line in seen["outward"][:5]:
        result.check(False, f"called: {line}")
    result.check(not seen["hosts"], f"the page refers to {seen['hosts']}")
    result.check(bool(seen["answer"].strip()), "the adapter gave no answer")
    result.check(seen["seen"] > 0, "nothing was traced: the listener does not work")
    result.count("connects seen", seen["seen"])
    result.count("files of the page", seen["files"])


def main() -> int:
    return run_from_command_line(run, __doc__, trials=1)


if __name__ == "__main__":
    raise SystemExit(main())
