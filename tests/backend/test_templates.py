"""Chat templates in their limited process: as transformers renders them, and no further."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from studio.backend import templates
from studio.backend.data import prepare
from studio.backend.templates import (
    Conversation,
    render_all,
    render_chat,
    render_template,
    template_of,
)
from studio.core.config_io import build_config
from studio.core.errors import ModelError
from studio.core.examples import RowProblem
from tests import tiny_models
from tests.backend import tiny
from tests.backend.test_tokenize import EMPTY_THINK, LLAMA2, MARKED_WITHOUT_END, NO_END, REWRITES
from tests.faults import hostile_templates
from tests.faults.hostile_templates import ENDLESS, PAYLOADS, TURNS, tokenizer_with

STARTER = Path(__file__).resolve().parents[2] / "presets" / "starter" / "chat_template.jinja"
RICH = (
    "{%- set ns = namespace(n=0, seen=[]) -%}\n{% for m in messages if m.role != 'system' %}\n"
    "{%- set ns.n = ns.n + 1 %}{{ ns.n ~ m.role|upper ~ (m.content|trim|tojson) }}"
    "{% if not loop.last %}{{ '|' }}{% else %}{% break %}{% endif %}\n  {% endfor %}"
    "{{ dict(a=1)|tojson }}{{ eos_token }}{{ bos_token is defined }}{{ tools is none }}"
    "{{ messages[0]['missing'] is defined }}{{ messages[-1].content[1:3] }}\n\n"
)
SAMPLES = {
    "starter": STARTER.read_text(encoding="utf-8"), "tests": tiny_models.CHATML,
    "chatml": tiny.CHATML, "marked": tiny.CHATML_MARKED, "llama2": LLAMA2, "rewrites": REWRITES,
    "think": EMPTY_THINK, "no end": NO_END, "marked open": MARKED_WITHOUT_END, "rich": RICH,
}  # fmt: skip
TALKS = [
    [{"role": "user", "content": " what <b> is \U0001f680? "},
     {"role": "assistant", "content": "a\nb"}],
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>x</think>cat"},
     {"role": "user", "content": "\u4f60\u597d"}, {"role": "assistant", "content": "yes yes"}],
    [{"role": "user", "content": "open"}],
]  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("prompt", [False, True])
def test_it_renders_what_transformers_renders(name: str, prompt: bool) -> None:
    tokens = {"eos_token": "<|im_end|>"}
    for talk in TALKS:
        for marks in (False, True) if "generation" in SAMPLES[name] else (False,):
            found = render_jinja_template(
                conversations=[talk], chat_template=SAMPLES[name], add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks, **tokens,
            )  # fmt: skip
            text, spans = render_template(
                SAMPLES[name], talk, prompt=prompt, marks=marks, context=tokens
            )
            assert text == found[0][0]
            assert spans == ([tuple(span) for span in found[1][0]] if marks else [])


def test_tools_and_reasoning_reach_the_template() -> None:
    source = "{{ tools[0].function.name }}{{ messages[0].thinking }}{{ messages[0].content }}"
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    talk = [{"role": "assistant", "content": None, "reasoning_content": "hm"}]
    expected = render_jinja_template(conversations=[talk], tools=tools, chat_template=source)[0][0]
    assert render_template(source, talk, tools=tools, context={}) == (expected, [])


@pytest.mark.parametrize(
    "name", ["subclasses", "endless range", "endless string", "raise", "include"]
)
def test_hostile_templates_get_a_verdict(name: str, tmp_path: Path) -> None:
    at = list(PAYLOADS).index(name)
    result = hostile_templates.run(1, seed=at, folder=tmp_path)
    assert result.trials == 1
    late = [problem for problem in result.failures if problem.startswith("too late")]
    assert [problem for problem in result.failures if problem not in late] == []


def test_an_endless_row_ends_the_preparation_and_not_the_process() -> None:
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = "{% if 'stop' in messages[0].content %}\n" + ENDLESS + "{% endif %}ok"
    rows = tiny.make_rows(5)
    rows[3]["messages"][0]["content"] = "stop"
    with pytest.raises(ModelError, match=r"more than 1 s of processor time \(line 2 of the templ"):
        prepare(tokenizer, rows, build_config({}))


def test_a_refused_row_is_left_out_with_the_line() -> None:
    talk = [{"role": "user", "content": "a"}]
    with pytest.raises(RowProblem, match=r"no <i>, no \(line 2 of the template\)"):
        render_chat(tokenizer_with("\n{{ raise_exception('no <i>, no \\u001b\\n') }}"), talk)


@pytest.mark.parametrize(
    ("template", "says"), [("x" * 70_000, "64 KiB"), (["x"], "no text"), ({"a": "x"}, "no text")]
)
def test_what_is_no_template_is_named(template: object, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        template_of(tokenizer_with(template))


def test_the_process_is_started_again_after_a_kill() -> None:
    honest = tokenizer_with(hostile_templates.HONEST)
    render_chat(honest, TURNS)
    process = templates._PROCESS._process
    assert process is not None
    os.kill(process.pid, signal.SIGTERM)  # a signal to our group is not for it
    render_chat(honest, TURNS)
    assert templates._PROCESS._process is process
    process.kill()
    assert render_chat(honest, TURNS)[0] == hostile_templates.HONEST_TEXT
    assert templates._PROCESS._process is not process


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_the_process_can_open_nothing_and_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    templates._PROCESS.close()
    render_chat(tokenizer_with(hostile_templates.HONEST), TURNS)
    process = templates._PROCESS._process
    assert process is not None
    child = psutil.Process(process.pid)
    assert "hf_canary" not in json.dumps(child.environ())
    assert child.rlimit(psutil.RLIMIT_NOFILE) == (3, 3)
    assert child.rlimit(psutil.RLIMIT_AS)[0] == templates.MEMORY_BYTES


def test_a_forked_copy_has_a_process_of_its_own() -> None:
    honest = tokenizer_with(hostile_templates.HONEST)
    render_chat(honest, TURNS)
    pid = os.fork()
    if pid == 0:
        said = render_chat(honest, TURNS)[0] == hostile_templates.HONEST_TEXT
        templates._PROCESS.close()
        os._exit(0 if said else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert render_chat(honest, TURNS)[0] == hostile_templates.HONEST_TEXT


def test_many_rows_behind_an_endless_one_cost_nothing() -> None:
    """More than a pipe holds: whoever writes must not wait for a template that never ends."""
    source = "{% if 'stop' in messages[0].content %}" + ENDLESS + "{% endif %}ok"
    rows = [Conversation([{"role": "user", "content": "x" * 1000}]) for _ in range(500)]
    assert {found[0] for found in render_all(source, rows, {})} == {"ok"}
    rows[3] = Conversation([{"role": "user", "content": "stop"}])
    began_s = time.monotonic()
    with pytest.raises(ModelError, match="processor time"):
        render_all(source, [*rows[:4], *rows[3:4] * 50, *rows], {})
    assert time.monotonic() - began_s < 10
