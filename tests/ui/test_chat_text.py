"""What the chat shows against what the model reads again in the next turn."""

import re
from types import SimpleNamespace

import pytest

from studio.core.errors import StoreError
from studio.ui.chat_tab import Side, conversation, plain_text, safe
from studio.ui.page import open_chat


def test_our_remark_on_an_answer_is_not_read_by_the_model():
    side = Side(text="a < b & c", note="cut at 96 tokens")
    shown = side.shown()
    assert "(cut at 96 tokens)" in shown[-1]["content"]
    assert conversation(shown, None) == [{"role": "assistant", "content": "a < b & c"}]


def test_an_answer_may_end_in_brackets_of_its_own():
    said = "See there *(page 4)*"
    assert conversation(Side(text=said).shown(), " Be brief. ") == [
        {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": said},
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["![a](http://example.com/x.png)", "<b>&lt;</b>", "a ! [b] &#91;"])
def test_text_is_shown_harmless_and_read_as_it_was(text):
    assert "![" not in safe(text) and "<" not in safe(text)
    assert plain_text(safe(text)) == text


@pytest.mark.parametrize(
    "text", ["`<b>x</b>`", "```\n![a](b) <img>\n```", "\\`<img src=x>\\`", "a `x < 1` ```b <i>"]
)
def test_code_is_no_tag_either_and_read_as_it_was(text):
    assert "![" not in safe(text) and not re.search(r"<[A-Za-z/!?]", safe(text))
    assert plain_text(safe(text)) == text


def test_a_run_without_an_adapter_opens_no_chat_with_another_run():
    run = SimpleNamespace(state="failed", name="Mine", can_chat=False, is_usable=True)
    studio = SimpleNamespace(runs=SimpleNamespace(get=lambda run_id: run))
    with pytest.raises(StoreError, match="failed and has no adapter"):
        open_chat(studio, "some-run")
