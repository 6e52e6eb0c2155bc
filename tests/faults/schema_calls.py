"""schemathesis on every OpenAPI the application can tell: Gradio's page, Gradio's routes, ours.

    python -m tests.faults.schema_calls --trials 200

Examples are drawn from the schemas, sound and unsound ones, spread over all operations, and sent
by the owner, whom no door keeps from breaking things; one in four comes from a viewer.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable

from tests.faults.result import Result, run_from_command_line
from tests.faults.site import Call, Site, leaks, serve
from tests.full_house import full_house

READ_S = 30.0
WANTED = "0 answers 5xx, 0 tracebacks, paths or tokens told"
METHODS = ("get", "post", "put", "patch", "delete")
# They answer as long as somebody listens; `hostile_calls` has them.
ENDLESS = ("/heartbeat/", "/queue/data", "/upload_progress", "/call/{api_name}/{event_id}")


def schemas(site: Site) -> dict[str, Any]:
    """One OpenAPI document of all operations; `parts` of each keep their names apart."""
    own = site.house.app.openapi()
    (gradio_app,) = [
        route.app for route in site.house.app.routes
        if hasattr(getattr(route, "app", None), "get_blocks")
    ]  # fmt: skip
    with warnings.catch_warnings():  # two routes of Gradio share an operation id
        warnings.simplefilter("ignore")
        routes = gradio_app.openapi()
    page = json.loads(get(site, "/gradio_api/openapi.json"))
    paths: dict[str, Any] = {}
    components: dict[str, Any] = {}
    for document, prefix in ((routes, ""), (page, "/gradio_api"), (own, "")):
        for path, operations in document["paths"].items():
            full = path if path.startswith(prefix) else prefix + path
            paths[full.replace(":path}", "}")] = {
                name: value for name, value in operations.items() if name in METHODS
            }
        components |= document.get("components", {}).get("schemas", {})
    kept = {path: ops for path, ops in paths.items() if not any(one in path for one in ENDLESS)}
    return {
        "openapi": "3.1.0", "info": {"title": "LoRA Studio", "version": "0"}, "paths": kept,
        "components": {"schemas": components},
    }  # fmt: skip


def get(site: Site, path: str) -> str:
    """A body, asked for by the owner."""
    with httpx.Client(trust_env=False) as client:
        status, said = site.send(client, Call("owner", "GET", path, {}))
    assert status == 200, f"{path} answers {status}"
    return said.partition("\n{")[1][1:] + said.partition("\n{")[2]


def operations(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and strategy of every operation."""
    import schemathesis
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_dict(document)
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            yield operation.label, operation.as_strategy(generation_mode=mode)


def call_of(case: Any, role: str, base_url: str) -> Call:
    """The request of a drawn case, as `Site.send` takes it."""
    drawn = case.as_transport_kwargs(base_url=base_url)
    data = drawn.pop("data", None)
    content = {"content": data} if isinstance(data, bytes | str) else {"data": data}
    wanted = ("headers", "params", "cookies", "json", "files")
    values = {name: drawn[name] for name in wanted if drawn.get(name) is not None}
    if "files" in values:
        pairs = values["files"].items() if isinstance(values["files"], dict) else values["files"]
        values["files"] = [(str(name), ("x", repr(value).encode())) for name, value in pairs]
    headers = {str(name): str(value).encode("latin-1", "replace")
               for name, value in dict(values.pop("headers", {})).items()}  # fmt: skip
    request = httpx.Request(drawn["method"], drawn["url"], headers=headers, **values, **content)
    kept = {
        name: value
        for name, value in request.headers.items()
        if name not in ("host", "cookie", "content-length")
    }
    path = request.url.raw_path.decode("ascii")
    return Call(role, request.method, path, kept, request.read())


def run(trials: int, seed: int = 0, *, folder: Path | None = None) -> Result:
    """Send about `trials` examples, at least one for each operation and kind."""
    result = Result("calls from the OpenAPI", WANTED)
    if importlib.util.find_spec("schemathesis") is None:
        result.skipped = "schemathesis is not installed (requirements-dev.txt)"
        return result
    with tempfile.TemporaryDirectory(dir=folder) as root, serve(Path(root), full_house) as site:
        found = list(operations(schemas(site)))
        result.count("operations", len({label for label, _ in found}))
        each = max(1, -(-trials // len(found)))
        with httpx.Client(trust_env=False, follow_redirects=False) as client:
            for label, strategy in found:
                send_examples(site, client, label, strategy, each, seed, result)
        logged = site.errors.getvalue()
        result.check("Traceback" not in logged, f"seed {seed}: logged {logged[-1500:]!r}")
    return result


def send_examples(
    site: Site, client: httpx.Client, label: str, strategy: Any, count: int, number: int,
    result: Result,
) -> None:  # fmt: skip
    """Draw and send the examples of one operation."""

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(strategy)
    def send(case: Any) -> None:
        role = "viewer" if result.trials % 4 == 3 else "owner"
        call = call_of(case, role, f"http://127.0.0.1:{site.port}")
        where = f"seed {number}, {label}: {call.told()}"
        result.trials += 1
        try:
            status, said = site.send(client, call, read_s=READ_S)
        except httpx.LocalProtocolError:
            return  # httpx itself will not send it
        except httpx.HTTPError as error:
            result.check(False, f"{where}: {error!r}")
            return
        result.check(status < 500, f"{where}: {status} {said[-300:]!r}")
        told = leaks(site.house, call, said)
        result.check(not told, f"{where}: told {told}")

    try:
        send()
    except Unsatisfiable:  # an operation without parameters: nothing about it can be unsound
        result.count("kinds that cannot be drawn")


def main() -> int:
    return run_from_command_line(run, __doc__, trials=200)


if __name__ == "__main__":
    raise SystemExit(main())
