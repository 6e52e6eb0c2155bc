"""Hostile chat templates: does code run, does one take too long, does an honest one still render?

    python -m tests.faults.hostile_templates --trials 30

Each payload goes the way of every template: `render_chat`, the one that the trainer, the preview
and the chat use. A trial counts its verdict's time, looks for the canary file that an escape would
write, and renders an honest template afterwards: one bad model must not spoil the next.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from studio.backend.templates import render_chat
from studio.core.errors import ModelError
from studio.core.examples import RowProblem
from tests.faults.result import Result, run_from_command_line

VERDICT_S = 3.0
HONEST = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
HONEST_TEXT = "user: hello\nassistant: yes\n"
ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
TOUCH = "touch CANARY"
SAFE = "unsafe|undefined|has no"

# name -> (template, what the verdict has to say). "" means: any verdict, also a rendered text
# without effect. CANARY becomes the path of a file that no template may create.
PAYLOADS: dict[str, tuple[str, str]] = {
    "subclasses": (
        "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{% if c.__name__ == 'Popen' %}"
        f"{{{{ c('{TOUCH}', shell=True) }}}}{{% endif %}}{{% endfor %}}",
        SAFE,
    ),
    "attr filter": (f"{{{{ (''|attr('__class__')|attr('__base__'))('{TOUCH}') }}}}", SAFE),
    "map attribute": (
        f"{{{{ ['x']|map(attribute='__class__.__mro__')|list }}}}{{{{ '{TOUCH}' }}}}",
        "",
    ),
    "format string": ("{{ '{0.__class__.__init__.__globals__}'.format(messages) }}", SAFE),
    "format map": ("{{ '{m.__class__}'.format_map({'m': messages}) }}", "^rendered: $"),
    "lipsum globals": (
        f"{{{{ lipsum.__globals__['os'].system('{TOUCH}') }}}}",
        SAFE,
    ),
    "cycler globals": (
        f"{{{{ cycler.__init__.__globals__.os.system('{TOUCH}') }}}}",
        SAFE,
    ),
    "joiner": (f"{{{{ joiner.__init__.__globals__.os.popen('{TOUCH}') }}}}", SAFE),
    "function globals": (
        f"{{{{ raise_exception.__globals__['os'].system('{TOUCH}') }}}}",
        SAFE,
    ),
    "self": (
        f"{{{{ self._TemplateReference__context.environment.loader('{TOUCH}') }}}}",
        SAFE,
    ),
    "namespace dunder": (
        f"{{% set n = namespace(__class__='{TOUCH}') %}}{{{{ n.__class__ }}}}",
        "namespace",
    ),
    "generator frame": (
        "{% set g = messages|map('upper') %}"
        f"{{{{ g.gi_frame.f_globals['os'].system('{TOUCH}') }}}}",
        SAFE,
    ),
    "import": ("{% import '/etc/passwd' as x %}{{ x }}", "loader"),
    "include": ("{% include '/etc/passwd' %}", "loader"),
    "endless range": (ENDLESS, "processor time"),
    "endless string": ("{% set s = 'a' * 4000000000 %}{{ s }}", "memory"),
    "growing list": (
        "{% set n = namespace(l=['a' * 1000]) %}{% for i in range(99999) %}"
        "{% set n.l = n.l + n.l %}{% endfor %}",
        "memory|processor time",
    ),
    "recursion": ("{% macro f(x) %}{{ f(x + 1) }}{% endmacro %}{{ f(0) }}", "nested too deeply"),
    "long output": (
        "{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
        "too long",
    ),
    "huge source": ("{# " + "x" * 2_000_000 + " #}" + HONEST, "64 KiB"),
    "deep nesting": (
        "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
        "nested too deeply|syntax|memory|ended",
    ),
    "deep blocks": ("{% if 1 %}" * 2500 + "x" + "{% endif %}" * 2500, "nested|syntax|memory|ended"),
    "raise": (
        "\n\n{{ raise_exception('no <b>system</b> role') }}",
        r"no <b>system</b> role.*line 3",
    ),
    "undefined": ("{{ messages[7].content.nothing }}", "line 1"),
    "not a template": ("{% for m in messages %}", "line 1"),
    "format width": ("{{ '%4000000000s' % 'a' }}", "memory|too long"),
    "date width": ("{{ strftime_now('%9999999999Y' * 1000) }}", ""),
    "change the messages": (
        "{% for m in messages %}{{ m.update({'content': 'evil'}) }}{% endfor %}",
        "unsafe|not safe",
    ),
    "big power": (
        "{% set n = namespace(x=9) %}{% for i in range(40) %}{% set n.x = n.x * n.x %}"
        "{% endfor %}{{ n.x }}",
        "processor time|memory|digits",
    ),
    "json bomb": (
        "{% set n = namespace(d={'a': 'x' * 10000}) %}{% for i in range(60) %}"
        "{% set n.d = {'a': n.d, 'b': n.d} %}{% endfor %}{{ n.d | tojson }}",
        "memory|processor time",
    ),
    "exhausted generator": (
        "{% set g = range(90000)|map('string') %}{% for a in g %}{% for b in g %}{% endfor %}"
        "{% endfor %}{{ g | list | length }}",
        "",
    ),
    "bidi and zero width": (
        "{{ '\u202e\u200b\u2066' }}{{ raise_exception('\u202e\x1b[2J no') }}",
        "no",
    ),
    "differs by row": (
        "{% if 'hello' in messages[0].content %}" + ENDLESS + "{% endif %}" + HONEST,
        "processor time",
    ),
    "sorts for ever": (
        "{% set n = namespace(l=range(99999)|list) %}{% for i in range(99999) %}"
        "{% set x = n.l|sort(reverse=true) %}{% endfor %}",
        "processor time",
    ),
}


def tokenizer_with(template: Any) -> Any:
    """As much of a tokenizer as a template meets."""
    return SimpleNamespace(
        chat_template=template, get_chat_template=lambda: template,
        special_tokens_map={"eos_token": "<|im_end|>"},
    )  # fmt: skip


def verdict_of(template: str, turns: list[dict[str, str]]) -> str:
    """What is said of it; a text that it rendered is put behind a mark."""
    try:
        return f"rendered: {render_chat(tokenizer_with(template), turns)[0][:200]}"
    except (ModelError, RowProblem) as problem:
        return str(problem)


def run(trials: int, *, seed: int = 0, folder: Path | None = None) -> Result:
    """Try `trials` payloads, beginning at the seed's."""
    result = Result("hostile templates", f"0 code run, a verdict within {VERDICT_S:g} s, an honest "
                    "template renders after each")  # fmt: skip
    names = list(PAYLOADS)
    with tempfile.TemporaryDirectory(dir=folder) as root:
        canary = Path(root) / "canary"
        if verdict_of(HONEST, TURNS) != f"rendered: {HONEST_TEXT}":
            result.check(False, "the honest template does not render")
        for number in range(trials):
            name = names[(seed + number) % len(names)]
            template, wanted = PAYLOADS[name]
            began_s = time.monotonic()
            verdict = verdict_of(template.replace("CANARY", str(canary)), TURNS)
            took_s = time.monotonic() - began_s
            result.trials += 1
            told = f"{name}: {verdict[:160]!r} after {took_s:.1f} s"
            result.check(took_s <= VERDICT_S, f"too late: {told}")
            result.check(bool(re.search(wanted, verdict)), f"not said {wanted!r}: {told}")
            result.check(not any(c in verdict for c in "\x1b\x00"), f"control characters: {told}")
            result.check(not canary.exists(), f"code ran: {told}")
            honest = verdict_of(HONEST, TURNS)
            result.check(honest == f"rendered: {HONEST_TEXT}", f"spoilt by {name}: {honest}")
        result.check(not os.listdir(root), f"files appeared: {os.listdir(root)}")
    return result


def main() -> int:
    return run_from_command_line(run, __doc__, trials=len(PAYLOADS))


if __name__ == "__main__":
    raise SystemExit(main())
