"""The one configuration of a run: form, YAML, command line, preset schema and saved run.

A knob is one field here. Its title, help, unit, range and choices live in the field and nowhere
else; the page's form, the command line's help and the README table are derived from them.
Fields keep the names of transformers, trl and peft. `auto` values are resolved by `core.plan`.
This module knows nothing of files, of gradio or of torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Auto = Literal["auto"]

# Modules that every Llama-like model has; "attention" picks those whose name ends in one of these.
ATTENTION_SUFFIXES = (
    "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "c_attn",
    "query_key_value", "query", "key", "value",
)  # fmt: skip


def knob(
    default: Any,
    label: str,
    help: str,
    *,
    unit: str | None = None,
    advanced: bool = False,
    upstream: str | None = None,
    needs: str | None = None,
    widget: str | None = None,
    **constraints: Any,
) -> Any:
    """A pydantic field with what a form needs.

    Args:
        label: the control's label in the page.
        help: one or two sentences: what it does and what is typical.
        unit: shown after the number.
        advanced: lives in the Advanced accordion.
        upstream: name in transformers/trl/peft where it differs from the field's.
        needs: capability of the machine without which the control is greyed out ("cuda", "bnb").
        widget: hint for the form: "slider", "number", "text", "hidden"; by default from the type.
        constraints: ge, gt, le, lt, pattern ... of pydantic.
    """
    extra = {
        "unit": unit,
        "advanced": advanced,
        "upstream": upstream,
        "needs": needs,
        "widget": widget,
    }
    return Field(
        default=default,
        title=label,
        description=help,
        json_schema_extra={k: v for k, v in extra.items() if v},
        **constraints,
    )


class Section(BaseModel):
    """Base of all sections: unknown keys, NaN and infinity are errors; values are frozen."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, strict=False)


class ModelSection(Section):
    """Which base model."""

    id: str = knob(
        "starter", "Base model",
        "starter (bundled, works without network), a folder with safetensors, or a Hugging Face "
        "id.",
        min_length=1, max_length=400, widget="text",
    )  # fmt: skip
    revision: str | None = knob(
        None, "Revision", "Branch, tag or commit of a Hugging Face model; empty means its default.",
        advanced=True, max_length=100, widget="text",
    )  # fmt: skip
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = knob(
        "auto", "Weights dtype",
        "Number format of the frozen base weights. auto: bfloat16 where the device can, else "
        "float32 (CPU) or float16 (older GPU).", advanced=True,
    )  # fmt: skip
    attn_implementation: Literal["auto", "sdpa", "eager"] = knob(
        "auto", "Attention", "How attention is computed. auto picks sdpa.", advanced=True
    )


class DataSection(Section):
    """Which examples, and how they are split."""

    path: str | None = knob(
        None, "Training file",
        "A file or folder (CSV, TSV, JSON, JSONL, Parquet, TXT, ZIP), a data set of the workspace, "
        "or hf:<id>.",
        max_length=1000, widget="text",
    )  # fmt: skip
    format: Literal[
        "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "pairs", "classification",
        "text", "preference", "kto",
    ] = knob(
        "auto", "Format", "What the rows look like. auto: detected from the content."
    )  # fmt: skip
    mapping: dict[str, str] = knob(
        {}, "Column mapping", "Which column plays which role (role: column); empty: detected.",
        advanced=True, widget="hidden",
    )  # fmt: skip
    split: str | None = knob(
        None, "Split", "Which split of a file or a hub's data set to read; empty: train, or the "
        "first usual one.", advanced=True, max_length=200, widget="text",
    )  # fmt: skip
    text_unit: Literal["detect", "paragraph", "line", "document"] = knob(
        "detect", "Rows of a plain text",
        "What one row of a text file is. detect: its paragraphs, its lines where it has none, and "
        "each file of a zip or folder.", advanced=True,
    )  # fmt: skip
    encoding: str = knob(
        "detect", "Encoding", "In which encoding the text of the file is written, as windows-1251. "
        "detect: told from the bytes.", advanced=True, min_length=1, max_length=20, widget="text",
    )  # fmt: skip
    system_prompt: str | None = knob(
        None, "System prompt", "Put in front of every example that has none.", advanced=True,
        max_length=4000, widget="text",
    )  # fmt: skip
    held_out_path: str | None = knob(
        None, "Held-out file",
        "A second file, or a data set of the workspace, to measure on; then all rows of the first "
        "train, and Held out has no effect.", advanced=True, max_length=1000, widget="text",
    )  # fmt: skip
    val_frac: float = knob(
        0.1, "Held out", "Share of the rows kept away from training, to measure on.",
        ge=0.0, le=0.5, widget="slider",
    )  # fmt: skip


class LoraSection(Section):
    """The adapter (Hu et al. 2021, arXiv:2106.09685): W + (lora_alpha / r) B A."""

    r: int = knob(
        16, "Rank r", "Size of the adapter: a matrix n x m gets r x (n + m) trained numbers. "
        "8 to 16 suits style, 32 to 64 new facts.", ge=1, le=512, widget="slider",
    )  # fmt: skip
    lora_alpha: int = knob(
        32, "Alpha", "Strength: the adapter is scaled by alpha / r (1 to 2 is usual).",
        ge=1, le=2048, widget="slider",
    )  # fmt: skip
    lora_dropout: float = knob(
        0.0, "LoRA dropout", "Randomly drops adapter inputs while training; 0 is fastest.",
        ge=0.0, le=0.9, advanced=True,
    )  # fmt: skip
    target_modules: str | list[str] = knob(
        "all-linear", "Target modules",
        "Which linear layers get an adapter: all-linear, attention, or names of the model's "
        "modules.",
        advanced=True,
    )  # fmt: skip
    use_rslora: bool = knob(
        False, "Rank-stabilised scaling",
        "Scales by alpha / sqrt(r) instead of alpha / r (arXiv:2312.03732); helps at high rank.",
        advanced=True,
    )  # fmt: skip
    use_dora: bool = knob(
        False, "DoRA",
        "Learns magnitude and direction apart (arXiv:2402.09353); several times slower.",
        advanced=True,
    )  # fmt: skip

    @field_validator("target_modules")
    @classmethod
    def _known_targets(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str) and value not in ("all-linear", "attention"):
            names = [part.strip() for part in value.split(",") if part.strip()]
            if not names:
                raise ValueError("choose all-linear, attention or at least one module name")
            return names
        if isinstance(value, list) and not value:
            raise ValueError("choose all-linear, attention or at least one module name")
        return value


class QuantizationSection(Section):
    """QLoRA (Dettmers et al. 2023, arXiv:2305.14314): the frozen base in 4 bits."""

    load_in_4bit: bool = knob(
        False, "4-bit base (QLoRA)",
        "Stores the frozen base weights in 4 bits: about a quarter of the memory, a little slower.",
        needs="bnb",
    )  # fmt: skip
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = knob(
        "nf4", "4-bit type", "nf4 fits normally distributed weights and is usually better.",
        advanced=True, needs="bnb",
    )  # fmt: skip
    bnb_4bit_use_double_quant: bool = knob(
        True, "Double quantization",
        "Quantizes the scales too: 4.13 instead of 4.5 bits a weight.", advanced=True, needs="bnb",
    )  # fmt: skip
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = knob(
        "auto", "Compute dtype",
        "Format the 4-bit weights are unpacked to. auto: as the weights dtype.",
        advanced=True, needs="bnb",
    )  # fmt: skip


OPTIMIZERS = (
    "auto", "adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit",
    "paged_adamw_32bit", "adafactor", "sgd",
)  # fmt: skip


class TrainSection(Section):
    """How long and how fast to train."""

    num_train_epochs: float = knob(
        3.0, "Epochs", "Passes over the training rows.", gt=0.0, le=1000.0
    )
    max_steps: int = knob(
        -1, "Steps", "Optimizer steps; -1: as many as the epochs need.", ge=-1, le=10_000_000
    )
    learning_rate: float = knob(
        2e-4, "Learning rate", "2e-4 is a good start for LoRA; 1e-4 above 10 B parameters.",
        gt=0.0, le=1.0,
    )  # fmt: skip
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = knob(
        "linear", "Schedule", "How the learning rate falls over the run.", advanced=True
    )
    warmup_steps: float = knob(
        0.03, "Warm-up", "Below 1: share of all steps; from 1: number of steps.",
        ge=0.0, le=1_000_000.0, advanced=True,
    )  # fmt: skip
    weight_decay: float = knob(0.0, "Weight decay", "Pulls weights to zero.", ge=0.0, le=1.0,
                               advanced=True)  # fmt: skip
    max_grad_norm: float = knob(
        1.0, "Gradient clipping", "Gradients longer than this are shortened.", gt=0.0, le=1000.0,
        advanced=True,
    )  # fmt: skip
    per_device_train_batch_size: int = knob(
        4, "Batch size", "Rows in memory at once.", unit="rows", ge=1, le=1024, widget="slider"
    )
    gradient_accumulation_steps: int = knob(
        4, "Accumulation", "Micro-batches per optimizer step; batch x accumulation rows a step.",
        ge=1, le=1024,
    )  # fmt: skip
    max_length: int = knob(
        1024, "Max length", "Rows longer than this are cut.", unit="tokens", ge=16, le=131_072
    )
    packing: bool = knob(
        False, "Packing", "Fills each sequence with several rows; less padding.", advanced=True
    )
    group_by_length: bool = knob(
        True, "Group by length", "Batches rows of similar length; less padding.", advanced=True,
        upstream="train_sampling_strategy",
    )  # fmt: skip
    activation_checkpointing: bool | Auto = knob(
        "auto", "Gradient checkpointing",
        "Recomputes activations in the backward pass: much less memory, about a third slower. "
        "auto: on for GPUs, off on CPU.", advanced=True,
    )  # fmt: skip
    optim: Literal[OPTIMIZERS] = knob(  # type: ignore[valid-type]
        "auto", "Optimizer", "paged_* may move optimizer state to host memory (CUDA only).",
        advanced=True,
    )  # fmt: skip
    loss_on: Literal["assistant", "all"] = knob(
        "assistant", "Learn from", "assistant: the answers only; all: every token of the row.",
        advanced=True,
    )  # fmt: skip
    eval_steps: Annotated[int, Field(ge=1)] | Auto = knob(
        "auto", "Evaluate every", "Steps between evaluations; auto: at most 12 a run.",
        unit="steps", advanced=True,
    )  # fmt: skip
    save_steps: Annotated[int, Field(ge=1)] | Auto = knob(
        "auto", "Save every", "Steps between checkpoints; auto: with the evaluations.",
        unit="steps", advanced=True,
    )  # fmt: skip
    eval_max_rows: int = knob(
        128, "Evaluation rows", "At most so many held-out rows are measured.", unit="rows",
        ge=1, le=100_000, advanced=True,
    )  # fmt: skip
    keep: Literal["best", "last"] = knob(
        "best", "Keep", "The adapter with the best evaluation loss, or the last one.", advanced=True
    )
    seed: int = knob(42, "Seed", "Same seed, same machine: same run.", ge=0, le=2**31 - 1,
                     advanced=True)  # fmt: skip


class RuntimeSection(Section):
    """Where to run."""

    device: str = knob(
        "auto", "Device", "auto, cpu, mps, cuda or cuda:N.",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", advanced=True, widget="text",
    )  # fmt: skip
    num_threads: Annotated[int, Field(ge=1, le=1024)] | Auto = knob(
        "auto", "CPU threads", "auto: chosen by model size and load; too many spin and slow down.",
        advanced=True,
    )  # fmt: skip


class RunConfig(Section):
    """Everything that decides a run, apart from its name."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    lora: LoraSection = LoraSection()
    quantization: QuantizationSection = QuantizationSection()
    train: TrainSection = TrainSection()
    runtime: RuntimeSection = RuntimeSection()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.train.optim.startswith("paged_") and self.runtime.device in ("cpu", "mps"):
            raise ValueError(
                f"train.optim={self.train.optim}: paged optimizers need CUDA, and runtime.device "
                f"is {self.runtime.device}; choose adamw_torch_fused"
            )
        if self.quantization.load_in_4bit and self.runtime.device == "mps":
            raise ValueError("quantization.load_in_4bit does not work on mps; choose device cpu")
        return self
