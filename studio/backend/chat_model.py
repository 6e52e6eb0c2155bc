"""The model a chat talks to: one base, with or without its adapter, loaded as it was trained.

Owns loading from a run folder and the one lock around every use. The adapter is switched on and
off on the same loaded model; with it off the model is the base exactly. Knows nothing of HTTP.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError

from studio.backend.adapter_check import WEIGHTS, check_adapter, check_base, trained_fingerprint
from studio.backend.adapter_hold import held_adapter
from studio.backend.checkpoints import find_newest
from studio.backend.decode import Answer, Sampling
from studio.backend.lease import device_lease
from studio.backend.loading import check_vocabulary, load_model
from studio.backend.rendering import load_tokenizer
from studio.backend.tokenize import prompt_adds_special_tokens, render_prompt, stop_token_ids
from studio.core.chat_request import ChatRequest
from studio.core.config import RunConfig
from studio.core.config_io import build_config
from studio.core.errors import (
    BusyError,
    ConfigError,
    ModelError,
    OutOfMemoryError,
    StoreError,
)
from studio.core.examples import RowProblem
from studio.core.plan import SMALL_MODEL_PARAMS
from studio.core.runs import DONE, STOPPED, RunPaths, derive_state, read_json
from studio.core.safetensors_header import read_header
from studio.hardware.platforms import is_locked
from studio.hardware.threads import choose_threads, cpu_count, load_average

_LOAD_ERRORS = (
    OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError,
    SafetensorError,
)  # fmt: skip
_LEASE_TIMEOUT_S = 5.0


class ChatModel:
    """A loaded model and its tokenizer. Every use of the model goes through one lock."""

    def __init__(
        self, model: Any, tokenizer: Any, info: dict[str, Any], lease: ExitStack | None = None
    ) -> None:
        self.info = info
        self.tokenizer = tokenizer
        self._model: Any = model
        self._has_adapter = isinstance(model, PeftModel)
        self._adapter_is_on = self._has_adapter
        self._lease = lease or ExitStack()
        self._lock = threading.Lock()
        model.eval()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._model is None

    def open_answers(self, request: ChatRequest) -> dict[str, Answer]:
        """Start the answers that are wanted; nothing is generated yet.

        Raises:
            ConfigError, ModelError: the question cannot be asked of this model.
        """
        if "adapter" in request.sides and not self._has_adapter:
            raise ConfigError("This model has no adapter", value=request.which, allowed="base")
        prompt_ids = self._prompt_ids(request.messages)
        with self._lock:
            inner = self._inner()
            sampling = self._fit(request, len(prompt_ids), inner)
            stop_ids = stop_token_ids(self.tokenizer, inner.generation_config)
            return {
                side: Answer(inner, self.tokenizer, prompt_ids, sampling, stop_ids)
                for side in request.sides
            }

    def advance(self, side: str, answer: Answer) -> str:
        """One token of an answer, with the adapter on or off as its side says.

        Raises:
            BusyError: the model was unloaded meanwhile.
            OutOfMemoryError: the device is full.
        """
        with self._lock:
            self._inner()
            self._switch(side == "adapter")
            try:
                return answer.step()
            except torch.OutOfMemoryError as error:
                raise _out_of_memory(str(self.info.get("device"))) from error

    def close(self) -> None:
        """Free the memory and the device. Waits for the token in progress. Idempotent."""
        with self._lock:
            self._model = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._lease.close()

    def _inner(self) -> Any:
        """The transformers model inside, which holds the adapter's layers too."""
        if self._model is None:
            raise BusyError("The model was unloaded", remedy="Ask again to load it")
        return self._model.get_base_model() if self._has_adapter else self._model

    def _switch(self, on: bool) -> None:
        if not self._has_adapter or on == self._adapter_is_on:
            return
        # Not `disable_adapter()`: it walks the whole model for a status report at each token.
        tuner = self._model.base_model
        if on:
            tuner.enable_adapter_layers()
        else:
            tuner.disable_adapter_layers()
        self._adapter_is_on = on

    def _prompt_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        try:
            text = render_prompt(self.tokenizer, messages)
        except RowProblem as problem:
            raise ModelError(
                f"The question cannot be rendered: {problem.reason}", remedy=problem.remedy
            ) from problem
        adds = prompt_adds_special_tokens(self.tokenizer)
        ids: list[int] = self.tokenizer(text, add_special_tokens=adds, verbose=False)["input_ids"]
        return ids

    def _fit(self, request: ChatRequest, prompt_tokens: int, inner: Any) -> Sampling:
        """Sampling whose answer fits into the context behind the prompt."""
        config = inner.config.get_text_config(decoder=True)
        context = getattr(config, "max_position_embeddings", None)
        room = request.max_tokens if context is None else context - prompt_tokens
        if room < 1:
            raise ConfigError(
                f"The conversation has {prompt_tokens} tokens and the model reads {context}",
                allowed=f"at most {context - 1} tokens",
                remedy="Shorten the message or clear the conversation",
            )
        return Sampling(
            temperature=request.temperature, top_p=request.top_p, seed=request.seed,
            max_tokens=min(request.max_tokens, room),
        )  # fmt: skip


def load_run(run_dir: Path, model_path: Path | None = None) -> ChatModel:
    """Load a run's base and adapter as they were trained.

    Args:
        model_path: where the base lies now, if not where run.json says.

    Raises:
        StudioError: the run, its adapter, its base or the device cannot be used.
    """
    paths = RunPaths(run_dir)
    record = read_json(paths.run_json)
    if record is None:
        raise StoreError(
            "The run's run.json is missing or damaged", value=paths.id, remedy="Choose another run"
        )
    config = build_config(record.get("resolved") or {})
    described = record.get("model") or {}
    base = model_path or Path(str(described.get("path")))
    tmp = paths.root.parents[1] / "tmp"
    with held_adapter(lambda: find_adapter(paths), tmp) as (adapter, source), ExitStack() as lease:
        check_adapter(adapter, base)
        check_base(base, described.get("config_sha256"), trained_fingerprint(paths))
        device, notice = choose_device(config.runtime.device)
        _take(lease, device, paths.id)
        model = load_base(base, config, device)
        threads = set_threads(model, config.runtime.num_threads)
        model = _put_adapter(model, adapter)
        tokenizer = load_tokenizer(base)
        check_vocabulary(model, tokenizer)
        info = {
            "run_id": paths.id, "adapter": source, "model": described.get("id"), "device": device,
            "dtype": config.model.dtype, "load_in_4bit": config.quantization.load_in_4bit,
            "num_threads": threads, "notice": notice,
        }  # fmt: skip
        return ChatModel(model, tokenizer, info, lease.pop_all())


def load_plain(model_path: Path) -> ChatModel:
    """Load a base model alone."""
    device, _ = choose_device("auto")
    files = sorted(model_path.glob("*.safetensors"))
    params = sum(tensor.numel for file in files for tensor in read_header(file).values())
    small_on_cpu = device == "cpu" and params < SMALL_MODEL_PARAMS
    dtype = "float32" if small_on_cpu else "bfloat16"
    config = build_config({
        "model": {"dtype": dtype, "attn_implementation": "sdpa"}, "runtime": {"device": device},
    })  # fmt: skip
    with ExitStack() as lease:
        _take(lease, device, model_path.name)
        model, tokenizer = load_base(model_path, config, device), load_tokenizer(model_path)
        check_vocabulary(model, tokenizer)
        info = {
            "run_id": None, "adapter": None, "model": str(model_path), "device": device,
            "dtype": dtype, "load_in_4bit": False, "num_threads": set_threads(model, "auto"),
            "notice": None,
        }  # fmt: skip
        return ChatModel(model, tokenizer, info, lease.pop_all())


def _take(lease: ExitStack, device: str, what: str) -> None:
    """Hold the GPU while the model is on it. On a CPU several may chat."""
    if device != "cpu":
        holder = f"the chat with {what}"
        lease.enter_context(device_lease(device, holder, timeout_s=_LEASE_TIMEOUT_S))


def find_adapter(paths: RunPaths) -> tuple[Path, str]:
    """The kept adapter of a run that ended, else that of its newest whole checkpoint.

    Raises:
        BusyError: the run is being trained. StoreError: it has no adapter yet.
    """
    if is_locked(paths.lock):
        raise BusyError(
            "This run is being trained", value=paths.id, remedy="Pause it or wait until it ends"
        )
    has_adapter = (paths.adapter / WEIGHTS).is_file()
    if has_adapter and derive_state(paths, alive=False) in (DONE, STOPPED):
        return paths.adapter, "adapter"
    checkpoint = find_newest(paths.checkpoints).checkpoint
    if checkpoint is not None:
        return checkpoint.path, checkpoint.path.name
    if has_adapter:
        return paths.adapter, "adapter"
    raise StoreError(
        "This run has no adapter and no whole checkpoint yet", value=paths.id,
        remedy="Resume it, or choose another run",
    )  # fmt: skip


def choose_device(wanted: str) -> tuple[str, str | None]:
    """The device to chat on, and a notice where it is not the one of the training.

    The process sees one GPU (CUDA_VISIBLE_DEVICES), so a number behind "cuda" is dropped.
    """
    has_cuda = torch.cuda.is_available()
    has_mps = torch.backends.mps.is_available()
    if wanted == "auto":
        return ("cuda" if has_cuda else "mps" if has_mps else "cpu"), None
    kind = wanted.partition(":")[0]
    if (kind == "cuda" and not has_cuda) or (kind == "mps" and not has_mps):
        return "cpu", f"Trained on {wanted}, which is not here: chatting on the CPU"
    return kind, None


def load_base(model_path: Path, config: RunConfig, device: str) -> Any:
    """The base on `device` as the trainer loads it: same number format, 4-bit stays 4-bit.

    Raises:
        ModelError: damaged or unfit files. OutOfMemoryError: it does not fit.
    """
    dtype = config.model.dtype
    if dtype == "float16" and device == "cpu":
        dtype = "float32"  # a CPU has no fast float16
    sections = {
        "model": config.model.model_copy(update={"dtype": dtype}),
        "runtime": config.runtime.model_copy(update={"device": device}),
    }
    try:
        model = load_model(model_path, config.model_copy(update=sections))
        return model if config.quantization.load_in_4bit else model.to(device)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(device) from error
    except (RuntimeError, SafetensorError) as error:
        raise ModelError(
            "The base model cannot be loaded", value=str(model_path),
            remedy=f"Check its files ({str(error)[:200]})",
        ) from error  # fmt: skip


def set_threads(model: Any, wanted: int | str) -> int:
    """CPU threads of this process: as in training where that is known, else by size and load."""
    cores = cpu_count()
    if isinstance(wanted, int):
        count = min(wanted, cores)
    else:
        count, _ = choose_threads(model.num_parameters(), cores, load_average())
    torch.set_num_threads(count)
    return count


def _put_adapter(model: Any, folder: Path) -> Any:
    """peft's model around the base. Raises ModelError if names or shapes do not fit."""
    try:
        wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(str(model.device)) from error
    except _LOAD_ERRORS as error:
        raise ModelError(
            "The adapter does not fit the base model", value=str(error)[:200],
            remedy="Restore the base model the run was made with",
        ) from error  # fmt: skip
    _check_fits(get_peft_model_state_dict(wrapped), read_header(folder / WEIGHTS))
    return wrapped


def _check_fits(loaded: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    # peft passes over names it does not find, and the adapter would silently do less.
    odd = sorted(set(loaded) ^ set(stored))
    if odd:
        raise ModelError(
            "The adapter does not fit the base model: its layers are not the model's",
            value=odd[0], remedy="Restore the base model the run was made with",
        )  # fmt: skip


def _out_of_memory(device: str) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"The {device} has too little memory for this model",
        remedy="End other programs that use it, or choose a smaller or 4-bit model",
    )
