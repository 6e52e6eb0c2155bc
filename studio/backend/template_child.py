"""Renders chat templates in a process of its own with limits: `template_child.py CPU_S BYTES`.

A template comes with a model and is a program: jinja's sandbox keeps it from Python's insides, but
not from running for ever or filling the memory. So this process has little: some memory, a second
of processor time for each rendering, no file that it could open. It reads one JSON request a line
and answers with one line; `backend.templates` is the other side, which ends it where it must.
Imports nothing but the standard library and jinja2, and starts in a tenth of a second.

    {"template", "messages", "add_generation_prompt", "tools", "marks", "context", "limit_chars"}
    {"text", "spans"} | {"error": {"kind": "refused" | "limit", "message", "line"}}
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import IO, Any

import jinja2
import jinja2.debug
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MAX_MESSAGE_CHARS = 300
_COMPILED_FILE = "<template>"  # jinja's name for the code of a template that has no file


class OutOfTime(BaseException):
    """The processor time of one rendering is used up. No `except Exception` may catch it."""


class TooLong(Exception):
    """The rendered text is longer than allowed."""


class PlainNamespace(Namespace):
    """`namespace()` of templates; names of Python's insides cannot be stored in it."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"{name!r} cannot be set on a namespace")
        super().__setitem__(name, value)


class GenerationMarks(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: what stands inside is the assistant's.

    While marks are wanted the text inside is put between two random strings, which are looked for
    in the result: right also inside a macro or a filter block.
    """

    tags = {"generation"}
    edges: tuple[str, str] | None = None  # set for one rendering

    def parse(self, parser: Any) -> nodes.Node:
        """Read the tag and its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_surround"), [], [], body).set_lineno(line)

    def _surround(self, caller: Any) -> str:
        edges = GenerationMarks.edges
        text = str(caller())
        return text if edges is None else f"{edges[0]}{text}{edges[1]}"


def raise_exception(message: Any) -> None:
    """What templates call to refuse a conversation."""
    raise TemplateError(str(message))


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
    sort_keys: bool = False,
) -> str:  # fmt: skip
    """The filter `tojson`, which unlike jinja's own does not escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)  # fmt: skip


def make_namespace(*arguments: Any, **values: Any) -> PlainNamespace:
    """`namespace(found=false)`."""
    made = PlainNamespace()
    for name, value in dict(*arguments, **values).items():
        made[str(name)] = value
    return made


@lru_cache(maxsize=8)
def compile_template(source: str) -> jinja2.Template:
    """The template as code; raises jinja2.TemplateSyntaxError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True,
        extensions=[GenerationMarks, jinja2.ext.loopcontrols],
    )  # fmt: skip
    environment.filters["tojson"] = to_json
    environment.globals.update(
        raise_exception=raise_exception,
        namespace=make_namespace,
        dict=lambda *arguments, **values: dict(*arguments, **values),
        strftime_now=lambda form: datetime.now().strftime(form),
    )
    return environment.from_string(source)


def render(request: Mapping[str, Any]) -> dict[str, Any]:
    """Text and spans of the assistant's parts."""
    template = compile_template(request["template"])
    edges = None
    if request["marks"]:
        nonce = secrets.token_hex(8)
        edges = (f"\ue000{nonce}\ue001", f"\ue001{nonce}\ue000")
    GenerationMarks.edges = edges
    pieces, length = [], 0
    try:
        for piece in template.generate(
            messages=request["messages"], tools=request.get("tools"), documents=None,
            add_generation_prompt=request["add_generation_prompt"], **request["context"],
        ):  # fmt: skip
            length += len(piece)
            if length > request["limit_chars"]:
                raise TooLong
            pieces.append(piece)
    finally:
        GenerationMarks.edges = None
    text, spans = "".join(pieces), []
    while edges is not None and (start := text.find(edges[0])) >= 0:
        text = text.replace(edges[0], "", 1)
        end = text.find(edges[1], start)
        if end < 0:
            break  # a filter cut it off: no span
        text = text.replace(edges[1], "", 1)
        spans.append((start, end))
    return {"text": text, "spans": spans}


def line_of(error: BaseException, source: str) -> int | None:
    """The line of the template where it happened, as far as that can be told."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    found, step = None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == _COMPILED_FILE:
            found = step.tb_lineno
        step = step.tb_next
    if found is not None and isinstance(error, OutOfTime):
        # jinja translates the lines of ordinary exceptions only.
        return compile_template(source).get_corresponding_lineno(found)
    return found


def answer(line: bytes, cpu_s: float) -> dict[str, Any]:
    """What to say to one request; whatever the template does, it is an answer."""
    source = ""
    try:
        request = json.loads(line)
        source = request["template"]
        start_clock(cpu_s)
        try:
            return render(request)
        finally:
            start_clock(0.0)
    except OutOfTime as error:
        return failure("limit", f"it takes more than {cpu_s:g} s of processor time",
                       line_of(error, source))  # fmt: skip
    except (MemoryError, OverflowError) as error:
        return failure("limit", "it needs more memory than a template may have",
                       line_of(error, source))  # fmt: skip
    except TooLong as error:
        return failure("limit", "its text is too long", line_of(error, source))
    except RecursionError as error:
        return failure("limit", "it is nested too deeply", line_of(error, source))
    except Exception as error:  # noqa: BLE001 - the edge of this process: a foreign program ran
        told = str(error) or type(error).__name__
        if not isinstance(error, TemplateError):
            told = f"{type(error).__name__}: {told}"
        return failure("refused", told, line_of(error, source))


def failure(kind: str, message: str, line: int | None) -> dict[str, Any]:
    """An error for the other side; one line without control characters."""
    cut = message[: 4 * MAX_MESSAGE_CHARS]
    clean = "".join(char if char.isprintable() else " " for char in cut)[:MAX_MESSAGE_CHARS]
    return {"error": {"kind": kind, "message": clean.strip(), "line": line}}


def start_clock(cpu_s: float) -> None:
    """Raise OutOfTime after so much processor time, and again until somebody has heard it."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, cpu_s, 0.1 if cpu_s else 0.0)
    if resource is not None and cpu_s:
        # For one long operation in C, which hears no signal, in a process whose parent is gone.
        used_s = time.process_time()
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used_s + cpu_s) + 2, hard))


def _out_of_time(number: int, frame: Any) -> None:
    raise OutOfTime


def limit_process(memory_bytes: int) -> None:
    """Limits that hold for the whole life. Windows has none: there the other side watches."""
    if resource is None:
        return

    limits = [
        (resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0),
        # Nothing can be opened any more: no file, no socket.
        (resource.RLIMIT_NOFILE, 3),
    ]  # fmt: skip
    for kind, amount in limits:
        with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(kind, (amount, amount))
    signal.signal(signal.SIGPROF, _out_of_time)
    # Signals to the group are for the process that asked; this one ends with its standard input.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def warm_up() -> None:
    """Load now what Python loads late, for later nothing can be opened."""
    warm = "{{ strftime_now('%Y') | wordwrap | pprint | trim }}{% generation %}{% endgeneration %}"
    request = {"template": warm, "messages": [], "add_generation_prompt": False, "marks": True,
               "tools": None, "context": {}, "limit_chars": 100}  # fmt: skip
    render(request)
    for broken in ("{{ raise_exception('x') }}", "{% for %}"):
        answer(json.dumps({**request, "template": broken}).encode(), 0.0)


def serve(source: IO[bytes], sink: IO[bytes], cpu_s: float) -> None:
    """Answer until the other side is gone or a limit was reached."""
    for line in source:
        said = answer(line, cpu_s)
        sink.write(json.dumps(said, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        sink.flush()
        if said.get("error", {}).get("kind") == "limit":
            return  # what is left of the memory is in pieces


if __name__ == "__main__":
    warm_up()
    limit_process(int(sys.argv[2]))
    serve(sys.stdin.buffer, sys.stdout.buffer, float(sys.argv[1]))
