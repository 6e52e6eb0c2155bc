"""The form and the texts without a browser: every knob has a control, bad values are sentences."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from studio.core.config import RunConfig
from studio.core.config_io import dump_config
from studio.core.errors import ConfigError, StudioError
from studio.core.presets import load_presets
from studio.ui import data_tokens, data_view, text
from studio.ui.chat_tab import JOINER, Side, conversation, plain_text, safe, take
from studio.ui.errors import UNEXPECTED, shows_errors
from studio.ui.form import Abilities, Form, from_control, to_control
from studio.ui.header import doctor_html
from tests.ui.fake_studio import build_fake_studio

PRESETS = load_presets(Path(__file__).parents[2] / "presets")
# Decided in the Data tab, where the file is read; the run gets the data set that came out.
NO_CONTROL = {"data.format", "data.mapping", "data.held_out_path"}
HOSTILE = "<script>alert(1)</script>\"'&"


@pytest.fixture
def form() -> Form:
    built = Form(Abilities({"cuda": False, "bnb": True}, {"cuda": "no NVIDIA GPU"}))
    with gr.Blocks():
        for path in built.knobs:
            built.add(path)
    return built


def raw_values(form: Form, config: dict[str, Any]) -> dict[str, Any]:
    """What the controls would send for a config."""
    return {
        knob.key: to_control(knob, config[path.split(".")[0]][path.split(".")[1]])
        for path, knob in form.knobs.items()
    }


def test_every_knob_has_a_control_on_the_page(tmp_path: Path) -> None:
    from studio.ui.page import build_page

    blocks = build_page(build_fake_studio(tmp_path))
    labels = {block.elem_id for block in blocks.blocks.values() if getattr(block, "elem_id", None)}
    own = {"model.id": "model", "data.path": "train-data", "lora.target_modules": "modules"}
    for path in Form(Abilities({}, {})).knobs:
        expected = own.get(path, f"knob-{path.replace('.', '-').replace('_', '-')}")
        assert path in NO_CONTROL or expected in labels, f"{path} has no control"


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.id)
def test_presets_pass_through_the_form_unchanged(form: Form, preset: Any) -> None:
    config = preset.config()
    assert form.config(raw_values(form, dump_config(config))) == config
    assert len(form.updates(preset.values)) == len(form.controls)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("lora.r", 0, "1 to 512"),
        ("lora.lora_alpha", 99999, "1 to 2048"),
        ("train.learning_rate", math.nan, "learning_rate"),
        ("train.max_steps", 3.7, "whole number"),
        ("train.num_train_epochs", None, "num_train_epochs"),
        ("train.eval_steps", "often", "auto"),
        ("runtime.device", "/etc/passwd", "device"),
        ("train.optim", "evil", "adamw_torch"),
    ],
)
def test_bad_values_are_named(form: Form, path: str, value: Any, says: str) -> None:
    raw = raw_values(form, dump_config(RunConfig()))
    raw[form.knobs[path].key] = value
    with pytest.raises(ConfigError, match=says) as caught:
        form.config(raw)
    assert path in caught.value.issues


def test_numbers_from_the_page_become_whole_where_they_must(form: Form) -> None:
    assert from_control(form.knobs["lora.r"], 8.0) == 8
    assert isinstance(from_control(form.knobs["lora.r"], 8.0), int)
    assert from_control(form.knobs["train.eval_steps"], " 20 ") == 20
    assert from_control(form.knobs["train.eval_steps"], "auto") == "auto"
    assert from_control(form.knobs["model.revision"], "  ") is None


def test_what_the_machine_cannot_do_is_off_with_the_reason() -> None:
    form = Form(Abilities({"cuda": False, "bnb": False}, {"bnb": "bitsandbytes is missing"}))
    with gr.Blocks():
        four_bit = form.add("quantization.load_in_4bit")
        optimizer = form.add("train.optim")
    assert four_bit.interactive is False and "bitsandbytes is missing" in four_bit.info
    names = dict((value, label) for label, value in optimizer.choices)
    assert names["paged_adamw_8bit"] == "paged_adamw_8bit (needs CUDA)"
    assert names["adamw_torch_fused"] == "adamw_torch_fused"


def test_a_studio_error_is_shown_and_any_other_is_not() -> None:
    @shows_errors
    def known() -> None:
        raise StudioError("r is wrong", value="<b>", remedy="Choose 8")

    @shows_errors
    def unknown() -> None:
        raise RuntimeError("secret detail")

    @shows_errors
    async def streaming() -> Any:
        yield 1
        raise RuntimeError("secret detail")

    with pytest.raises(gr.Error) as shown:
        known()
    assert "r is wrong" in shown.value.message and "<b>" not in shown.value.message
    with pytest.raises(gr.Error) as hidden:
        unknown()
    assert text.escape(UNEXPECTED) == hidden.value.message

    async def drain() -> list[int]:
        return [item async for item in streaming()]

    with pytest.raises(gr.Error):
        asyncio.run(drain())


def test_everything_shown_is_escaped() -> None:
    example = {"i": 1, "messages": [{"role": "user", "content": HOSTILE}]}
    token = {"text": HOSTILE, "trained": True}
    problem = {"line": 3, "reason": HOSTILE, "remedy": HOSTILE}
    shown = (
        data_view.rows_html([example]),
        data_tokens.rendered_html({"tokens": [token], "total_tokens": 1, "trained_tokens": 1}, 1),
        data_view.problems_html([problem], 1),
        data_view.failure_html(HOSTILE),
        doctor_html({"summary": HOSTILE, "reasons": {"cuda": HOSTILE}}),
    )
    for html in shown:
        assert "<script>" not in html and "&lt;script&gt;" in html


def test_chat_shows_what_the_model_wrote_and_reads_it_back() -> None:
    said = "if a < b && b > c: <|im_end|> &lt;"
    assert "<" not in safe(said)
    for whole in (said, f"{said} `a < &lt; b` {said}", f"{said}\n```python\nif a < b: &amp;"):
        assert plain_text(safe(whole)) == whole
    assert safe("a < `b < c`") == "a &lt; `b < c`"
    assert safe("`<b>` `</b>` `<!--`").count(JOINER) == 3
    noted = Side(text=said, note="cut at 96 tokens").shown()[-1]["content"]
    assert "(cut at 96 tokens)" in noted and plain_text(noted) == said
    history = [{"role": "user", "content": safe(said)}]
    assert conversation(history, " be kind ") == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": said},
    ]


def test_stream_events_land_on_their_side() -> None:
    sides = {"base": Side(), "adapter": Side()}
    assert take(sides, {"phase": "loading", "message": "Loading the model"}) == "Loading the model"
    assert take(sides, {"which": "adapter", "delta": "Ahoy"}) is None
    take(sides, {"which": "adapter", "done": True, "tokens": 96, "truncated": True})
    assert sides["adapter"].note == "cut at 96 tokens"
    assert sides["base"].text == ""
    with pytest.raises(StudioError, match="no room"):
        take(sides, {"error": {"what": "no room", "remedy": "Wait"}})


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.gib(12 * 2**30), "12.0 GiB"),
        (text.gib(None), text.NONE),
        (text.megabytes(1_234_567), "1.2 MB"),
        (text.duration(75), "1 min 15 s"),
        (text.short_count(7_241_732_096), "7.24 B"),
        (text.percent(0.0123), "1.2 %"),
        (text.plain(2e-4), "2e-4"),
        (text.plain(1.0), "1"),
        (text.plural(1, "row"), "1 row"),
        (text.clip("abcdef", 4), "abc\u2026"),
    ],
)
def test_figures_read_as_people_write_them(shown: str, expected: str) -> None:
    assert shown == expected
