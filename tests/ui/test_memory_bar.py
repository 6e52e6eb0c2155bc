"""The memory bar's value, the proposal and the tables without a browser."""

from __future__ import annotations

import html
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from studio.core.config_io import build_config
from studio.core.errors import ConfigError, ModelError
from studio.core.token_stats import TokenSummary
from studio.services.datasets import DatasetStore
from studio.services.memory import MemoryService
from studio.services.models import ModelStore
from studio.ui import memory_tables
from studio.ui.data_look import Look, TokenBook
from studio.ui.form import Abilities, Form
from studio.ui.memory_bar import HERE, Bars, measured
from studio.ui.memory_fit import applied, fit_of
from studio.ui.memory_panel import target_choices
from tests.services.fake_counter import FakeCounter, FakeMachine
from tests.ui.fake_studio import steps

PRESETS = Path(__file__).parents[2] / "presets"
MODEL = "Qwen/Qwen3-8B"  # of the catalogue: its config.json is here
HOSTILE = "<script>alert(1)</script>\"'&"
GIB = 2**30
NO_CONTROL = {"data.format", "data.mapping", "data.held_out_path"}


@pytest.fixture
def form() -> Form:
    built = Form(Abilities({"cuda": True, "bnb": True}, {}))
    with gr.Blocks():
        for path in built.knobs.keys() - NO_CONTROL:
            built.add(path)
    return built


def raw_values(form: Form, **changed: Any) -> dict[str, Any]:
    """What the page sends: the defaults with the 8 B model, and what is changed."""
    values = {form.knobs[path].key: control.value for path, control in form.controls.items()}
    return {**values, "model__id": MODEL, "targets": "all-linear", "modules": [], **changed}


def studio_with(
    workspace: Path, *, free_gib: float | None = 24, counter: Any = None, machine: Any = None
) -> Any:
    """A studio of real stores whose card has so many GiB free."""
    free = None if free_gib is None else round(free_gib * GIB)
    models = ModelStore(workspace, PRESETS)
    adapter = {"matched": [{"name": "q_proj", "in": 4096, "out": 4096, "count": 32},
                           {"name": "up_proj", "in": 4096, "out": 11008, "count": 32}],
               "trainable_params": 40_000_000}  # fmt: skip
    machine = machine or FakeMachine(free)
    memory = MemoryService(workspace, models, machine, child=counter or FakeCounter())
    return SimpleNamespace(
        memory=memory, machine=machine, datasets=DatasetStore(workspace), models=models,
        inspector=SimpleNamespace(adapter=lambda model_id, lora: adapter),
    )  # fmt: skip


def shown(studio: Any, form: Form, target: str = HERE, book: Any = None, **changed: Any) -> Any:
    """The bar after a count."""
    raw = raw_values(form, **changed)
    measured(studio, form, raw, target)
    return Bars(studio, book).of(form, raw, target)


def test_what_is_not_counted_is_measured_and_then_shown(workspace: Path, form: Form) -> None:
    counter = FakeCounter()
    studio, raw = studio_with(workspace, counter=counter), raw_values(form)
    first = Bars(studio).of(form, raw, HERE)
    assert first["state"] == "measuring" and "up to a minute" in first["sentence"]
    assert counter.asked == []  # the bar itself asks no child
    assert measured(studio, form, raw, HERE)["state"] == "measured"
    bar = Bars(studio).of(form, raw, HERE)
    assert bar["state"] == "bar" and bar["tone"] == "ok"
    assert bar["sentence"].startswith("Fits with ")
    assert counter.asked == ["/profile", "/step_costs"]


def test_the_items_are_the_estimate(workspace: Path, form: Form) -> None:
    studio = studio_with(workspace)
    bar = shown(studio, form)
    assert sum(item["bytes"] for item in bar["items"]) == bar["expected"]
    assert bar["low"] < bar["expected"] < bar["high"] < bar["free"] == 24 * GIB
    for item in bar["items"]:
        assert re.fullmatch(r"[\d.]+ (GiB|MiB)", item["size"])
        assert item["exact"] == f"{item['bytes']:,} bytes" and item["why"]
    assert "RTX 4090" in bar["place"] and "24.0 GiB of 24.0 GiB free" in bar["place"]
    assert re.fullmatch(r"[\d.]+ GiB expected, [\d.]+ GiB to [\d.]+ GiB", bar["range"])
    css = (PRESETS.parent / "studio/ui/assets/memory.css").read_text()
    assert all(f".mi-{item['name']}" in css for item in bar["items"])


def test_each_knob_moves_it_and_in_time(workspace: Path, form: Form) -> None:
    studio = studio_with(workspace)
    before = shown(studio, form)["expected"]
    begun = time.perf_counter()
    moved = [
        Bars(studio).of(form, raw_values(form, **{key: value}), HERE)
        for key, value in (("lora__r", 64), ("train__per_device_train_batch_size", 8),
                           ("train__max_length", 2048))
    ]  # fmt: skip
    assert (time.perf_counter() - begun) / 3 < 0.1
    assert all(bar["expected"] > before for bar in moved)
    assert len({bar["key"] for bar in moved}) == 3
    assert moved[0]["knobs"]["lora.r"] == 64


def test_a_card_too_small_says_what_would_help(workspace: Path, form: Form) -> None:
    studio = studio_with(workspace, free_gib=8)
    bar = shown(studio, form)
    assert bar["tone"] == "bad" and bar["sentence"].startswith("Needs ")
    assert "4-bit saves" in bar["sentence"]
    assert shown(studio, form, "48")["tone"] == "ok"
    on_card = shown(studio, form, "rtx 3060")
    assert "RTX 3060" in on_card["place"] and on_card["free"] < 12 * GIB
    assert shown(studio, form, "10.5 GiB")["free"] < 10.5 * GIB


@pytest.mark.parametrize("target", ["RTX 0001", "0", "1e9", "-3", "nan", HOSTILE])
def test_a_card_that_is_none_is_a_sentence(workspace: Path, form: Form, target: str) -> None:
    bar = shown(studio_with(workspace), form, target)
    assert bar["state"] == "fault" and bar["sentence"].startswith("No estimate: ")


def test_bad_settings_are_a_sentence(workspace: Path, form: Form) -> None:
    studio = studio_with(workspace)
    bad = shown(studio, form, lora__r=0)
    assert bad["state"] == "fault" and "choose a whole number 1 to 512" in bad["sentence"]
    nobody = shown(studio, form, model__id="nobody/nothing")
    assert nobody["state"] == "fault" and "nobody/nothing" in nobody["sentence"]
    none_ticked = shown(studio, form, targets="choose")
    assert none_ticked["state"] == "fault"


def test_a_folder_without_config_json_is_a_sentence(
    workspace: Path, form: Form, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    bar = shown(studio_with(workspace), form, model__id=str(folder))
    assert bar["state"] == "fault" and "config.json" in bar["sentence"]


def test_an_unknown_architecture_is_a_sentence_and_asked_once(workspace: Path, form: Form) -> None:
    class Refusing(FakeCounter):
        def request(self, method: str, path: str, body: Any) -> dict[str, Any]:
            self.asked.append(path)
            raise ModelError("transformers does not know this architecture", value="Mystery")

    counter = Refusing()
    studio, raw = studio_with(workspace, counter=counter), raw_values(form)
    assert measured(studio, form, raw, HERE)["state"] == "fault"
    for _ in range(3):
        bar = Bars(studio).of(form, raw, HERE)
        assert bar["state"] == "fault" and "does not know" in bar["sentence"]
    assert counter.asked == ["/profile"]


def test_what_cannot_be_counted_is_unknown_and_no_number(workspace: Path, form: Form) -> None:
    bar = shown(studio_with(workspace, counter=FakeCounter(refuses=True)), form)
    assert [item["title"] for item in bar["unknown"]] == ["Activations"]
    assert bar["tone"] == "unknown" and "unknown" in bar["sentence"]
    assert bar["range"].startswith("At least ")
    assert "activations" not in {item["name"] for item in bar["items"]}
    assert any("cannot be counted" in note for note in bar["notes"])


def test_without_readings_of_the_card(workspace: Path, form: Form) -> None:
    machine = FakeMachine()
    machine.gpus, machine.note = [], "The NVIDIA driver does not answer"
    bar = shown(studio_with(workspace, machine=machine), form)
    assert bar["free"] is None and bar["tone"] == "unknown"
    assert any("driver does not answer" in note for note in bar["notes"])
    html_ = fit_of(studio_with(workspace, machine=machine), form, TokenBook(), raw_values(form),
                   HERE)  # fmt: skip
    assert "free memory of this device is unknown" in html_


def summary(lengths: list[int]) -> TokenSummary:
    return TokenSummary(
        rows=len(lengths), refused=0, never_trained=0, tokens=sum(lengths),
        trained_tokens=sum(lengths) // 2, longest=max(lengths), lengths=steps(lengths),
        answer_starts=steps([1] * len(lengths)), answer_ends=steps(lengths), trained=steps([1]),
        sample=lengths, first_rows={},
    )  # fmt: skip


def test_counted_tokens_are_used_and_never_counted_here(
    workspace: Path, form: Form, tmp_path: Path
) -> None:
    studio, book = studio_with(workspace), TokenBook()
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"question": f"Q{i}?", "answer": "A."}) + "\n"
                            for i in range(9)))  # fmt: skip
    info = studio.datasets.import_file(file, name="rows.jsonl")
    whole = shown(studio, form, data__path=info.id)
    assert any("not counted for this model" in note for note in whole["notes"])
    look = Look.of({"model_id": MODEL, "loss_on": "assistant"})
    book.put(info, look, summary([100, 200, 2000]))
    cut = shown(studio, form, book=book, data__path=info.id)
    assert cut["expected"] <= whole["expected"]
    assert any("2,000 tokens; 1 row is cut at 1,024" in note for note in cut["notes"])
    book.put(info, look, summary([100, 200]))
    short = shown(studio, form, book=book, data__path=info.id)
    assert short["expected"] < whole["expected"]
    assert any("longest of the rows has 200 tokens" in note for note in short["notes"])
    packed = shown(studio, form, book=book, data__path=info.id, train__packing=True)
    assert any("packed: 4,096 tokens at once" in note for note in packed["notes"])


def test_the_proposal_fits_once_it_is_applied(workspace: Path, form: Form) -> None:
    studio, raw = studio_with(workspace, free_gib=8), raw_values(form)
    before = shown(studio, form)
    text = fit_of(studio, form, TokenBook(), raw, HERE)
    assert before["tone"] == "bad" and "Fits after" in text and before["key"] in text
    assert text.count("<li>") >= 1 and "saves" in text and "slower" in text
    values = json.loads(html.unescape(re.search(r"data-values='([^']*)'", text)[1]))
    nested = applied(form, raw, gr.EventData(None, {"values": values}))
    updates = dict(zip(form.controls, form.updates(nested), strict=True))
    after = {form.knobs[path].key: update["value"] for path, update in updates.items()}
    assert shown(studio, form, **{**after, "targets": "all-linear"})["tone"] == "ok"
    assert build_config(nested).model.id == MODEL  # nothing else was changed


def test_a_proposal_for_another_card_and_one_that_cannot_be(workspace: Path, form: Form) -> None:
    studio, raw = studio_with(workspace), raw_values(form)
    assert "It fits as it is" in fit_of(studio, form, TokenBook(), raw, HERE)
    small = fit_of(studio, form, TokenBook(), raw, "3")
    assert "Nothing fits" in small and "Choose a smaller model" in small
    assert "fit-apply" not in small
    short = fit_of(studio, form, TokenBook(), raw_values(form, train__max_length=32768), "8")
    assert "rows cut: not known" in short or "rows of at most" not in short


@pytest.mark.parametrize(
    "sent",
    [None, {}, {"values": {}}, {"values": {"lora.r": 512}}, {"values": [1]},
     {"values": {"model.id": "/etc"}}],
)  # fmt: skip
def test_apply_takes_nothing_but_a_proposal(form: Form, sent: Any) -> None:
    with pytest.raises(ConfigError, match="no values of a proposal"):
        applied(form, raw_values(form), gr.EventData(None, sent))


def test_tables(workspace: Path, form: Form) -> None:
    studio = studio_with(workspace)
    first, last = memory_tables.tables_of(studio, form, TokenBook(), raw_values(form), HERE)
    assert "Measuring" in first and "on other cards" not in first
    assert all(f"{size} GB</th>" in last for size in (8, 12, 16, 24, 48))
    assert last.count("<tr><th scope='row'>") == 12  # six methods, twice
    assert "16 x 7 B = 112 GB" in last and "cannot be" in last
    weights = re.search(r"embeddings and head, are ([\d.]+) GiB", last)
    assert weights and 31 < float(weights[1]) < 33
    assert "45,088,768 frozen" in last  # 4,096 x 11,008, the largest
    assert "241,664" in last  # 16 x (4,096 + 11,008)
    assert "16.8 M frozen against 65,536 trained at r = 8" in last


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"bytes": 5, "high_bytes": 7}, "yes"), ({"bytes": 5, "high_bytes": 9}, "maybe"),
        ({"bytes": 9, "high_bytes": 9}, "no"), ({"bytes": 5, "unknown": ["x"]}, "unknown"),
        ({"bytes": 9, "unknown": ["x"]}, "no"),
    ],
)  # fmt: skip
def test_verdicts(row: dict[str, Any], says: str) -> None:
    assert memory_tables.verdict(row, 8) == says


def test_the_drawing_of_the_rank_is_to_scale() -> None:
    drawn = memory_tables.rank_svg(4096, 4096, 256, HOSTILE)
    sizes = re.findall(r"class='(?:w|ab)'[^>]*width='([\d.]+)' height='([\d.]+)'", drawn)
    (w, _), (thin, _), _ = [(float(a), float(b)) for a, b in sizes]
    assert w / thin == pytest.approx(4096 / 256, rel=0.01)
    assert "<script>" not in drawn


def test_the_list_of_cards(workspace: Path) -> None:
    studio = studio_with(workspace)
    choices = target_choices(studio)
    assert choices[0] == ("This machine", HERE)
    assert ("RTX 4090 (24 GB)", "RTX 4090") in choices and ("24 GB", "24 GiB") in choices
    names = [value for _, value in choices]
    assert names.index("RTX 3060") < names.index("RTX 3060 Ti")  # the first that is typed
    (workspace / "cards.yaml").write_text("cards: nonsense")
    assert "cards" in target_choices(studio)[-1][0]


def test_a_moved_knob_is_answered_from_the_question_before(workspace: Path, form: Form) -> None:
    studio = studio_with(workspace)
    shown(studio, form)
    bars = Bars(studio)
    first = bars.of(form, raw_values(form, quantization__load_in_4bit=True), HERE)
    if first["state"] == "measuring":
        measured(studio, form, raw_values(form, quantization__load_in_4bit=True), HERE)
        first = bars.of(form, raw_values(form, quantization__load_in_4bit=True), HERE)
    moved = bars.moved(first["key"], {"lora.r": "64", "train.max_length": "2048"})
    whole = raw_values(
        form, quantization__load_in_4bit=True, lora__r=64, train__max_length=2048
    )  # fmt: skip
    assert moved == bars.of(form, whole, HERE)
    assert bars.moved(moved["key"], {"lora.r": "16", "train.max_length": "1024"}) == first
    assert bars.moved("nothing", {"lora.r": "8"}) == {"state": "forgotten"}


@pytest.mark.parametrize(
    ("path", "text", "key", "value"),
    [
        ("quantization.bnb_4bit_quant_type", "fp4", "quantization__bnb_4bit_quant_type", "fp4"),
        ("train.activation_checkpointing", "true", "train__activation_checkpointing", True),
        ("train.activation_checkpointing", "auto", "train__activation_checkpointing", "auto"),
        ("train.packing", "true", "train__packing", True),
        ("train.optim", "sgd", "train__optim", "sgd"),
        ("lora.lora_dropout", "0.1", "lora__lora_dropout", 0.1),
        ("lora.target_modules", "attention", "targets", "attention"),
    ],
)
def test_the_text_of_a_field_is_what_the_form_says(
    workspace: Path, form: Form, path: str, text: str, key: str, value: Any
) -> None:
    studio = studio_with(workspace)
    bars, raw = Bars(studio), raw_values(form, **{key: value})
    for asked in (raw, raw_values(form)):
        measured(studio, form, asked, HERE)
    first = bars.of(form, raw_values(form), HERE)
    assert bars.moved(first["key"], {path: text}) == bars.of(form, raw, HERE)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("lora.r", "0"), ("lora.r", ""), ("lora.r", "[1, 2]"), ("lora.r", "nan"),
        ("lora.r", "1e999"), ("train.optim", HOSTILE), ("train.packing", "perhaps"),
        ("train.activation_checkpointing", "&a [*a]"), ("runtime.device", "/etc/passwd"),
        ("lora.target_modules", "choose"), ("lora.target_modules", "layers.0.q_proj"),
    ],
)  # fmt: skip
def test_a_moved_knob_that_cannot_be_is_a_sentence(
    workspace: Path, form: Form, path: str, text: str
) -> None:
    studio = studio_with(workspace)
    bars = Bars(studio)
    measured(studio, form, raw_values(form), HERE)
    key = bars.of(form, raw_values(form), HERE)["key"]
    assert bars.moved(key, {path: text})["state"] == "fault"


@pytest.mark.parametrize("path", ["model.id", "data.path", "r", "lora", "train.nothing", ""])
def test_a_path_that_is_no_knob_of_the_bar_is_refused(workspace: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="no knob of the memory bar"):
        Bars(studio_with(workspace)).moved("nothing", {path: "1"})


def test_what_would_help_most_is_asked_for_where_it_is_not_counted(
    workspace: Path, form: Form
) -> None:
    studio, raw = studio_with(workspace, free_gib=8), raw_values(form)
    measured(studio, form, raw_values(form), "48")  # fits there: nothing else was counted
    bar = Bars(studio).of(form, raw, HERE)
    assert bar["tone"] == "bad" and bar["more"] and "4-bit" not in bar["sentence"]
    measured(studio, form, raw, HERE)
    bar = Bars(studio).of(form, raw, HERE)
    assert not bar["more"] and "4-bit saves" in bar["sentence"]
    assert not Bars(studio).of(form, raw, "48")["more"]
