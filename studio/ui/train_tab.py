"""The Train tab: recipe on the left, the live view on the right.

Owns the layout and the handlers. What the form's values mean for the run (size of the adapter,
steps) is worked out in `train_summary`; the live view follows the run by itself.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.core.config_io import build_config, merge
from studio.core.errors import ConfigError, StudioError
from studio.ui.data_tab import dataset_choices, open_dataset
from studio.ui.data_view import failure_html
from studio.ui.errors import event_text, shows_errors, warn
from studio.ui.form import Form, FreeDropdown
from studio.ui.live import build_live
from studio.ui.memory_panel import (
    MemoryDesk,
    MemoryPanel,
    build_memory_panel,
    wire_memory_panel,
)
from studio.ui.model_panel import ModelPanel, build_model_panel
from studio.ui.text import clip, escape, short_count
from studio.ui.train_summary import config_values, summary_html
from studio.ui.welcome import FIRST_PRESET

if TYPE_CHECKING:
    from studio.core.presets import Preset
    from studio.services.studio import Studio
    from studio.ui.memory_bar import Bars

TARGETS = [
    ("All linear layers", "all-linear"),
    ("Attention only", "attention"),
    ("Choose", "choose"),
]
METHODS = [("LoRA", False), ("QLoRA (4-bit base)", True)]
COMMANDS = ("pause", "stop", "stop_now")
ADVANCED = {
    "Adapter": ("lora.lora_dropout", "lora.use_rslora", "lora.use_dora"),
    "4-bit base": (
        "quantization.bnb_4bit_quant_type", "quantization.bnb_4bit_compute_dtype",
        "quantization.bnb_4bit_use_double_quant",
    ),
    "Learning": (
        "train.optim", "train.lr_scheduler_type", "train.warmup_steps", "train.weight_decay",
        "train.max_grad_norm", "train.loss_on",
    ),
    "Speed and memory": (
        "train.activation_checkpointing", "train.packing", "train.group_by_length", "model.dtype",
        "model.attn_implementation", "runtime.num_threads",
    ),
    "Measuring and keeping": (
        "train.eval_steps", "train.save_steps", "train.eval_max_rows", "train.keep",
    ),
    "Machine": ("runtime.device", "train.seed", "model.revision"),
}  # fmt: skip
PAIRS = (
    ("lora.r", "lora.lora_alpha"),
    ("train.num_train_epochs", "train.max_steps"),
    ("train.learning_rate", "train.max_length"),
    ("train.per_device_train_batch_size", "train.gradient_accumulation_steps"),
)


@dataclass(frozen=True)
class TrainTab:
    """The tab's components."""

    preset: gr.Radio
    why: gr.HTML
    name: gr.Textbox
    data: FreeDropdown
    models: ModelPanel
    targets: gr.Radio
    modules: gr.CheckboxGroup
    summary: gr.HTML
    refusal: gr.HTML
    start: gr.Button
    request: gr.Textbox
    live: gr.HTML
    memory: MemoryPanel

    def settings(self, form: Form) -> list[Any]:
        """Outputs of `settings_of`: every control, and those that no knob stands behind."""
        return [*form.outputs(), self.targets, self.modules]


def build_train_tab(studio: Studio, form: Form) -> TrainTab:
    """Lay the tab out."""
    memory = build_memory_panel(studio)
    with gr.Row(equal_height=False, elem_id="train-row"):
        with gr.Column(scale=2, min_width=300, elem_id="formcol"):
            with gr.Column(elem_classes="card"):
                gr.Markdown("## Recipe", elem_classes="eyebrow")
                preset, why = _preset_controls(studio)
                name = gr.Textbox(
                    label="Run name", placeholder="Named after data and model", max_lines=1,
                    interactive=True, max_length=120,
                )  # fmt: skip
                data = form.adopt("data.path", _data_control(studio, form))
                models = build_model_panel(studio, form)
                form.add(
                    "quantization.load_in_4bit", maker=gr.Radio, choices=METHODS, label="Method"
                )
                for pair in PAIRS:
                    with gr.Row(elem_classes="tight pairs"):
                        for path in pair:
                            form.add(path)
                targets, modules = _target_controls(form)
                _advanced_controls(studio, form)
            with gr.Column(elem_classes="card", elem_id="startcard"):
                summary = gr.HTML()
                refusal = gr.HTML(elem_id="refusal")
                start = gr.Button(
                    "Start training", variant="primary", size="lg",
                    interactive=not studio.settings.read_only,
                )  # fmt: skip
                # Filled for each session as it opens: a value of the page would be everybody's.
                request = gr.Textbox("", visible="hidden", label="Request")
        with gr.Column(scale=3, min_width=320, elem_classes="card", elem_id="livecol"):
            live = build_live(read_only=studio.settings.read_only)
    return TrainTab(
        preset, why, name, data, models, targets, modules, summary, refusal, start, request, live,
        memory,
    )  # fmt: skip


def _preset_controls(studio: Studio) -> tuple[gr.Radio, gr.HTML]:
    choices = [(preset.title, preset.id) for preset in studio.presets]
    preset = gr.Radio(
        choices, value=None, label="Preset", interactive=True,
        info="What do you want? Sets every knob below; change what you like.",
    )  # fmt: skip
    return preset, gr.HTML(proposal_html(studio))


def _data_control(studio: Studio, form: Form) -> FreeDropdown:
    return FreeDropdown(
        dataset_choices(studio), value=None, label="Training data", interactive=True,
        info="Upload and check files in the Data tab.", elem_id="train-data",
    )  # fmt: skip


def _target_controls(form: Form) -> tuple[gr.Radio, gr.CheckboxGroup]:
    targets = gr.Radio(
        TARGETS, value="all-linear", interactive=True, elem_id="knob-lora-target-modules",
        label=form.knobs["lora.target_modules"].title, info=form.knobs["lora.target_modules"].help,
    )  # fmt: skip
    modules = gr.CheckboxGroup(
        [], label="Modules of this model", visible=False, interactive=True,
        info="With the parameters that each kind holds.", elem_id="modules",
    )  # fmt: skip
    return targets, modules


def _advanced_controls(studio: Studio, form: Form) -> None:
    with gr.Accordion("Advanced", open=False, elem_classes="quiet"):
        for title, paths in ADVANCED.items():
            gr.Markdown(f"### {title}", elem_classes="group-title")
            with gr.Row(elem_classes="tight pairs"):
                for path in paths:
                    form.add(path, **_choices_here(studio, path))


def _choices_here(studio: Studio, path: str) -> dict[str, Any]:
    if path != "runtime.device":
        return {}
    able = studio.machine.capabilities()
    devices = ["auto", "cpu", *(["mps"] if able.get("mps") else [])]
    devices += [f"cuda:{index}" for index, _ in enumerate(able.get("gpus") or []) if able["cuda"]]
    return {"maker": FreeDropdown, "choices": devices}


def proposal_html(studio: Studio) -> str:
    """One sentence: what fits this machine."""
    why = (studio.machine.capabilities().get("proposal") or {}).get("why")
    return f"<p class='hint'><b>For this machine:</b> {escape(why)}</p>" if why else ""


def preset_of(studio: Studio, preset_id: str | None) -> Preset | None:
    """The preset of that id, None where there is none."""
    return next((preset for preset in studio.presets if preset.id == preset_id), None)


def settings_of(studio: Studio, form: Form, values: dict[str, Any]) -> list[Any]:
    """Updates of `TrainTab.settings` for nested config values."""
    targets = (values.get("lora") or {}).get("target_modules", "all-linear")
    chosen = [] if targets in ("all-linear", "attention") else targets
    chosen = [chosen] if isinstance(chosen, str) else list(chosen)
    group = (
        gr.update(choices=chosen, value=chosen, visible=True)
        if chosen
        else gr.update(visible=False)
    )
    radio = "choose" if chosen else targets
    updates = form.updates(values)
    # The list may be older than the data set: the value without its choice would be refused.
    updates[list(form.controls).index("data.path")]["choices"] = dataset_choices(studio)
    return [*updates, gr.update(value=radio), group]


def wire_memory(studio: Studio, tab: TrainTab, form: Form, page: gr.Tab, bars: Bars) -> None:
    """Connect the memory card. To be called before anything else that listens to the form: gradio
    begins the events of one change in this order, and the bar shall move with the hand.

    Args:
        page: the gr.Tab it stands in.
        bars: answers it, and the route that a moved slider asks.
    """
    desk = MemoryDesk(
        studio, tab.memory, form, bars, form_inputs(tab, form), tab.settings(form),
        lambda values: settings_of(studio, form, values),
    )  # fmt: skip
    wire_memory_panel(desk, page)


def form_inputs(tab: TrainTab, form: Form) -> dict[str, Any]:
    """All that decides a run, by keyword argument."""
    return {**form.inputs(), "targets": tab.targets, "modules": tab.modules}


def wire_train_tab(studio: Studio, tab: TrainTab, form: Form, page: gr.Tab) -> None:
    """Connect the form with its summary and the start. `page`: the gr.Tab it stands in."""
    knobs = form_inputs(tab, form)
    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    @shows_errors
    def on_preset(preset_id: str | None, current_data: Any) -> list[Any]:
        preset = preset_of(studio, preset_id)
        if preset is None:
            return [gr.skip() for _ in range(len(tab.settings(form)) + 1)]
        values = preset_values(studio, preset, current_data)
        why = f"<p class='hint'>{escape(preset.why)}</p>"
        return [*settings_of(studio, form, values), why]

    @shows_errors
    def on_summary(preset_id: str | None, **raw: Any) -> tuple[str, str]:
        return summary_html(studio, form, raw, preset_of(studio, preset_id)), ""

    @shows_errors
    def on_targets(targets: str, model_id: str, modules: list[str]) -> Any:
        if targets != "choose":
            return gr.update(visible=False)
        return module_choices(studio, model_id, modules)

    tab.preset.input(
        on_preset, inputs_kwargs={"preset_id": tab.preset, "current_data": tab.data},
        outputs=[*tab.settings(form), tab.why], **hidden,
    )  # fmt: skip
    # Not the data's change: it follows the Data tab, and nothing shall be counted unseen.
    watched = [c.change for c in form.outputs() if c is not tab.data]
    gr.on(
        [*watched, tab.modules.change, tab.targets.change, tab.data.input, page.select], on_summary,
        inputs_kwargs={"preset_id": tab.preset, **knobs}, outputs=[tab.summary, tab.refusal],
        trigger_mode="always_last", **hidden,
    )  # fmt: skip
    gr.on(
        [tab.targets.input, tab.models.model.change], on_targets,
        inputs_kwargs={
            "targets": tab.targets, "model_id": tab.models.model, "modules": tab.modules,
        },
        outputs=tab.modules, trigger_mode="always_last", **hidden,
    )  # fmt: skip
    wire_start(studio, tab, form, knobs)
    wire_commands(studio, tab)


def wire_start(studio: Studio, tab: TrainTab, form: Form, knobs: dict[str, Any]) -> None:
    """The Start button. What it refuses stands beside it until something changes."""

    @shows_errors
    def on_start(name: str, request: str, **raw: Any) -> tuple[Any, Any, str]:
        try:
            values = config_values(form, raw)
            info = open_dataset(studio, values.get("data", {}).get("path"))
            if info is not None:
                values["data"]["path"] = info.id
            return start_run(studio, values, name, request), secrets.token_hex(8), ""
        except StudioError as error:
            # It stands by the button until something changes: the box alone is sometimes lost.
            warn(error)
            return gr.skip(), gr.skip(), failure_html(str(error))

    tab.start.click(
        on_start, inputs_kwargs={"name": tab.name, "request": tab.request, **knobs},
        outputs=[tab.live, tab.request, tab.refusal],
        api_visibility="private", show_progress="minimal",
    )  # fmt: skip


def wire_commands(studio: Studio, tab: TrainTab) -> None:
    """Pause, Resume, Stop, Stop now, warm start, and "Apply and retry" of the live view."""

    @shows_errors
    def on_command(event: gr.EventData) -> None:
        run_id, verb = event_text(event, "run"), event_text(event, "verb")
        if verb == "resume":
            studio.supervisor.resume(run_id)
        elif verb in COMMANDS:
            studio.supervisor.command(run_id, verb)
        else:
            raise ConfigError("Unknown command", value=clip(verb, 40), allowed=", ".join(COMMANDS))

    @shows_errors
    def on_warm(event: gr.EventData) -> str:
        return studio.supervisor.warm_start(event_text(event, "run"))

    @shows_errors
    def on_rescue(event: gr.EventData) -> str:
        return studio.doctor.retry(event_text(event, "run"), event_text(event, "option"))

    tab.live.command(on_command, api_visibility="private", show_progress="hidden", queue=False)
    tab.live.warm(on_warm, None, tab.live, api_visibility="private", show_progress="hidden")
    tab.live.rescue(on_rescue, None, tab.live, api_visibility="private", show_progress="hidden")


def start_run(studio: Studio, values: dict[str, Any], name: str | None, request: str) -> str:
    """Start a run from nested values and return its id. Raises StudioError."""
    config = build_config(values)
    request = request or secrets.token_hex(8)  # clicked before the page was quite there
    return studio.supervisor.start(config, name=(name or "").strip() or None, request_id=request)


def start_first_run(studio: Studio, request: str) -> str:
    """The one-click run: the preset `first-run` as it is."""
    preset = preset_of(studio, FIRST_PRESET)
    if preset is None:
        raise ConfigError(
            "The preset first-run is missing", remedy="Put presets/first-run.yaml back"
        )
    return start_run(studio, preset_values(studio, preset, None), "My first run", request)


def preset_values(studio: Studio, preset: Preset, current_data: Any) -> dict[str, Any]:
    """What a preset sets here: the machine's model, method and batch below the preset's own
    values, and the data set that is chosen already in place of the preset's sample."""
    proposal = (studio.machine.capabilities().get("proposal") or {}).get("values") or {}
    values = merge(proposal, preset.values)
    path = current_data or (values.get("data") or {}).get("path")
    sample_ids = {sample["id"] for sample in studio.datasets.samples()}
    if path in sample_ids:
        path = f"sample:{path}"
    if isinstance(path, str) and path.startswith("sample:"):
        path = studio.datasets.resolve(path).id
    return merge(values, {"data": {"path": path}} if path else {})


def module_choices(studio: Studio, model_id: str, modules: list[str] | None) -> Any:
    """The model's real module names with their parameter counts."""
    found = studio.inspector.modules(str(model_id or "starter"))["modules"]
    names = [module["name"] for module in found]
    choices = [
        (f"{module['name']} ({module['count']} x, {short_count(module['params'])})", module["name"])
        for module in found
    ]
    kept = [name for name in modules or [] if name in names]
    return gr.update(choices=choices, value=kept or names, visible=True)
