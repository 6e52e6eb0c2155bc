"""The inspection process: shapes of models, rendered rows and token statistics.

Run as `python -m studio.backend.inspector --socket PATH --parent-pid PID`. Owns the endpoints and a
small cache of shapes and tokenizers. One worker thread does all the work, so the libraries are
loaded outside the event loop and never used by two threads; what that thread is at (`/progress`)
and that it shall stop (`/cancel`) are asked beside it. Reads no weights.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from studio.backend.private_server import (
    build_app,
    end_process,
    json_body,
    parse_arguments,
    serve,
)
from studio.core.config_io import build_config
from studio.core.errors import ModelError
from studio.core.runs import read_json

if TYPE_CHECKING:
    from studio.backend.shapes import ModelShape
    from studio.core.config import RunConfig

CACHE_ENTRIES = 8
MAX_SHOWN_TOKENS = 20_000


class Inspector:
    """Answers the questions; used from one thread, but for `phase`, `progress` and `cancel`."""

    def __init__(self) -> None:
        self.phase = "idle"
        self.progress = {"done": 0, "total": 0}
        self.cancel = threading.Event()
        self._cache: OrderedDict[tuple[str, str, int], Any] = OrderedDict()

    def modules(self, body: dict[str, Any]) -> dict[str, Any]:
        """Module names with counts and sizes, parameter counts, context, template."""
        path = _model_path(body)
        shape = self._shape(path)
        from studio.backend.shapes import describe_modules

        template = self._chat_template(path)
        return {
            "modules": describe_modules(shape),
            "total_params": shape.total_params,
            "linear_params": sum(layer.weights for layer in shape.linear),
            "architecture": shape.architecture,
            "context_length": shape.context_tokens,
            "vocab_size": shape.vocab_size,
            "has_chat_template": template is not None,
            "generation_markers": "{% generation" in _squeezed(template or ""),
        }

    def adapter(self, body: dict[str, Any]) -> dict[str, Any]:
        """Size of the adapter that a `lora` section makes on this model."""
        lora = build_config({"lora": body.get("lora") or {}}).lora
        shape = self._shape(_model_path(body))
        from studio.backend.shapes import describe_adapter

        return describe_adapter(shape, lora)

    def profile(self, body: dict[str, Any]) -> dict[str, Any]:
        """What an estimate of memory needs to know of the model: `core.model_profile`."""
        from studio.backend.profile import profile_of

        return profile_of(_model_path(body)).to_dict()

    def step_costs(self, body: dict[str, Any]) -> dict[str, Any]:
        """How the memory of a step grows, for a `variant`: `core.step_costs.VariantCosts`."""
        from studio.backend.loading import quiet_libraries
        from studio.backend.profile import costs_of
        from studio.core.step_costs import Variant

        quiet_libraries()
        return costs_of(_model_path(body), Variant.from_dict(body["variant"])).to_dict()

    def render(self, body: dict[str, Any]) -> dict[str, Any]:
        """One example as the trainer will see it: its tokens, learned, ignored or cut."""
        path = _model_path(body)
        tokenizer = self._needed_tokenizer(path)
        from studio.backend.rendering import render_example

        config = _config(body)
        return render_example(
            tokenizer, dict(body.get("example") or {}), loss_on=config.train.loss_on,
            max_length=config.train.max_length, system_prompt=config.data.system_prompt,
            max_shown=MAX_SHOWN_TOKENS, stop_ids=generation_stops(path),
        )  # fmt: skip

    def token_stats(self, body: dict[str, Any]) -> dict[str, Any]:
        """Lengths and learned tokens of all rows of a data set: `core.token_stats.TokenSummary`.

        The tokens are those of the trainer, kept where it finds them.
        """
        self.cancel.clear()
        self.progress = {"done": 0, "total": 0}
        tokenizer = self._needed_tokenizer(_model_path(body))
        from studio.backend.data import load_rows, token_table
        from studio.backend.token_cache import TokenCache
        from studio.backend.token_stats import summarise

        config = _config(body)
        rows = load_rows(Path(str(body.get("data_folder") or "")))
        cache = body.get("cache_folder")

        def show(done: int, total: int) -> None:
            self.progress = {"done": done, "total": total}

        table = token_table(
            tokenizer, rows, loss_on=config.train.loss_on, system_prompt=config.data.system_prompt,
            cache=TokenCache(Path(cache)) if cache else None, progress=show,
            cancelled=self.cancel.is_set,
        )  # fmt: skip
        summary = summarise(table, max_length=config.train.max_length)
        return {"summary": summary.to_dict()}

    def _needed_tokenizer(self, path: Path) -> Any:
        tokenizer = self._tokenizer(path)
        if tokenizer is None:
            raise ModelError(
                "The model's tokenizer is not on this machine yet", value=path.name,
                remedy="Download the model first",
            )  # fmt: skip
        return tokenizer

    def _shape(self, path: Path) -> ModelShape:
        def read() -> ModelShape:
            from studio.backend.shapes import read_shape

            return read_shape(path)

        return self._cached("shape", path, "config.json", read)

    def _chat_template(self, path: Path) -> str | None:
        template = getattr(self._tokenizer(path), "chat_template", None)
        return template if isinstance(template, str) else None

    def _tokenizer(self, path: Path) -> Any:
        """The model's tokenizer, or None where the folder holds none (a catalogue entry)."""
        if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            return None

        def read() -> Any:
            from studio.backend.rendering import load_tokenizer

            return load_tokenizer(path)

        return self._cached("tokenizer", path, "tokenizer_config.json", read)

    def _cached(self, kind: str, path: Path, stamp_file: str, read: Callable[[], Any]) -> Any:
        stamp = path / stamp_file
        modified = stamp.stat().st_mtime_ns if stamp.exists() else 0
        key = (kind, str(path), modified)
        if key not in self._cache:
            self.phase = "loading"
            try:
                self._cache[key] = read()
            finally:
                self.phase = "ready"
            while len(self._cache) > CACHE_ENTRIES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


def _model_path(body: dict[str, Any]) -> Path:
    path = Path(str(body.get("model_path") or ""))
    if not path.is_absolute() or not path.is_dir():
        raise ModelError(
            "The model folder does not exist", value=str(path),
            remedy="Choose an existing folder, a catalogue model or starter",
        )  # fmt: skip
    return path


def _config(body: dict[str, Any]) -> RunConfig:
    """The knobs that decide what a row becomes."""
    options = dict(body.get("config") or {})
    return build_config({
        "train": {k: options[k] for k in ("loss_on", "max_length") if k in options},
        "data": {k: options[k] for k in ("system_prompt",) if k in options},
    })  # fmt: skip


def generation_stops(path: Path) -> list[int]:
    """The end tokens that the model's own generation_config.json names."""
    found = (read_json(path / "generation_config.json") or {}).get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return [token for token in ids if isinstance(token, int)]


def _squeezed(template: str) -> str:
    """`{%- generation` and `{%  generation` written one way."""
    return " ".join(template.replace("{%-", "{%").replace("{%", "{% ").split())


def _endpoint(inspector: Inspector, question: Callable[[dict[str, Any]], dict[str, Any]],
              worker: ThreadPoolExecutor) -> Callable[[Request], Any]:  # fmt: skip
    async def answer(request: Request) -> Response:
        body = await json_body(request)
        loop = asyncio.get_running_loop()
        if inspector.phase == "idle":
            inspector.phase = "importing"
        found = await loop.run_in_executor(worker, partial(question, body))
        # The tokens of a long row are 300 kB: ten times as fast as with json.
        written = orjson.dumps(found, option=orjson.OPT_NON_STR_KEYS)
        return Response(written, media_type="application/json")

    return answer


def main() -> int:
    """Serve until the parent ends."""
    options = parse_arguments()
    inspector = Inspector()
    worker = ThreadPoolExecutor(1, thread_name_prefix="inspect")
    questions = {
        "/modules": inspector.modules, "/adapter": inspector.adapter, "/render": inspector.render,
        "/token_stats": inspector.token_stats, "/profile": inspector.profile,
        "/step_costs": inspector.step_costs,
    }  # fmt: skip

    async def progress(_: Request) -> Response:
        return JSONResponse(inspector.progress)

    async def cancel(_: Request) -> Response:
        inspector.cancel.set()
        return JSONResponse({})

    routes = [
        Route(path, _endpoint(inspector, question, worker), methods=["POST"])
        for path, question in questions.items()
    ]
    routes += [Route("/progress", progress), Route("/cancel", cancel)]
    return serve(build_app(routes, lambda: {"phase": inspector.phase}), options)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    end_process(status)
