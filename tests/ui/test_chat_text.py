"""What the chat shows against what the model reads again in the next turn."""

from studio.ui.chat_tab import Side, conversation


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
