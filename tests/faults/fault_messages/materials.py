"""F23 to F40: data files, models, browsers, networks, versions and what is left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import httpx
import psutil

from studio.backend import adapters, loading, templates
from studio.backend.data import prepare
from studio.core.config_io import build_config
from studio.core.runs import RunPaths
from studio.guard import RequestGuard
from studio.hardware import probe
from studio.hardware.platforms import write_json
from studio.services import live, studio
from studio.services.chat import ChatService
from studio.services.child import ChildServer
from studio.services.datasets import DatasetStore
from studio.services.models import ModelStore
from tests.backend.tiny import make_rows, make_tokenizer
from tests.corpus.binary_files import _parquet_bomb
from tests.faults.fault_messages import CHAT, DATA, NOTES, PAGE, RUNS, SIDE, START, fault
from tests.faults.fault_messages.runs import only, trained
from tests.services.fake_hub import fake_hub
from tests.tiny_models import make_config


def imported(folder: Path, name: str, content: bytes) -> str:
    """What is said of a data file: the refusal, or what was left out."""
    file = folder / name
    file.write_bytes(content)
    found = DatasetStore(folder / "workspace").import_file(file)
    lines = [f"line {p['line']}: {p['reason']}. {p['remedy']}" for p in found.problems]
    return "; ".join([f"{found.used} rows used, {found.left_out} left out", *lines, *found.notes])


@fault(23, "a CSV whose rows have different lengths", DATA)
def _(folder: Path) -> str:
    return imported(folder, "ragged.csv", b"prompt,completion\na,b\nc,1,2,3\nd,e\n")


@fault(24, "a text that is no UTF-8", DATA, quiet=True)
def _(folder: Path) -> str:
    return imported(folder, "odd.jsonl", b'{"text": "good"}\n{"text": "caf\xe9 \x81\xff"}\n')


@fault(25, "a row of 50 MB", DATA)
def _(folder: Path) -> str:
    return imported(folder, "huge.jsonl", b'{"text": "' + b"x" * 50_000_000 + b'"}\n')


@fault(26, "an upload over the limit", PAGE)
def _(folder: Path) -> str:
    import asyncio

    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it was let through")

    async def upload() -> str:
        transport = httpx.ASGITransport(RequestGuard(nothing, port=7860, max_upload_bytes=1 << 20))
        async with httpx.AsyncClient(transport=transport) as client:
            answer = await client.post(
                "http://127.0.0.1:7860/gradio_api/upload", content=bytes(3 << 20)
            )
            return answer.text

    return asyncio.run(upload())


@fault(27, "a parquet of a few kB that holds 10 GB", DATA)
def _(folder: Path) -> str:
    return imported(folder, "bomb.parquet", _parquet_bomb(is_text=False))


@fault(28, "a chat template that never ends", START)
def _(folder: Path) -> object:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer = SimpleNamespace(
        chat_template=endless, get_chat_template=lambda: endless, special_tokens_map={}
    )
    try:
        return templates.render_chat(tokenizer, [{"role": "user", "content": "hi"}])
    except ValueError as problem:  # RowProblem: what is said of each row
        return problem


@fault(29, "a tokenizer with more tokens than the model has embeddings", RUNS)
def _(folder: Path) -> None:
    weight = SimpleNamespace(shape=(10, 4))
    model = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=weight))
    loading.check_vocabulary(model, make_tokenizer())


@fault(30, "target modules that the model does not have", RUNS)
def _(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(make_config("gpt2"))
    lora = build_config({"lora": {"target_modules": ["q_proj", "v_proj"]}}).lora
    adapters.attach(model, lora, seed=0)


@fault(31, "every prompt is longer than max_length: nothing to learn", RUNS)
def _(folder: Path) -> None:
    rows = make_rows(10)
    for row in rows:
        row["messages"][0]["content"] = "red " * 50
    config = build_config({"train": {"max_length": 16}})
    prepare(make_tokenizer("marked"), rows, config)


@fault(32, "a run name and a run id that lead elsewhere", RUNS)
def _(folder: Path) -> str:
    workspace = trained(folder, 1)
    workspace.close()
    run_id = only(workspace).id
    workspace.store.rename(run_id, "../../con. \u202egnp.exe\n<b>")
    name = workspace.store.get(run_id).name
    kept = sorted(path.name for path in (workspace.root / "runs").iterdir()) == [run_id]
    if not (kept and "\n" not in name):
        raise AssertionError("the name went to the disk")
    workspace.store.paths("../../etc")
    return "nothing"


@fault(33, "a run of 100,000 steps", RUNS, quiet=True)
def _(folder: Path) -> str:
    paths = RunPaths(folder / "20260101-000000-0001")
    paths.root.mkdir()
    write_json(paths.run_json, {"config": {"lora": {}}})
    rows = ({"kind": "step", "attempt": 1, "step": i, "loss": 1.0, "t_s": i / 10}
            for i in range(1, 100_001))  # fmt: skip
    paths.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = SimpleNamespace(id=paths.id, state="running", step=100_000, total_steps=100_000,
                              state_record={}, ending=None, stalled=None)  # fmt: skip
    answer = live.follow_run(paths, summary, "")  # type: ignore[arg-type]
    lengths = [len(v) for v in json.loads(json.dumps(answer))["series"]["step"].values()]
    return f"{max(lengths):,} points of 100,000 steps in one answer"


@fault(34, "the browser sleeps and comes back", RUNS, quiet=True)
def _(folder: Path) -> str:
    workspace = trained(folder, 2)
    paths = only(workspace)
    first = live.follow_run(paths, workspace.store.get(paths.id), "")
    workspace.train(3, save=False)
    later = live.follow_run(paths, workspace.store.get(paths.id), str(first["cursor"]))
    workspace.close()
    seen = [*first["series"]["step"]["step"], *later["series"]["step"]["step"]]
    return f"steps {seen} seen over both looks: none missing, none twice"


@fault(35, "a chat on the GPU that a training needs", CHAT)
def _(folder: Path) -> str | None:
    chat = ChatService(folder, SimpleNamespace(), SimpleNamespace(),  # type: ignore[arg-type]
                       child_factory=lambda _: SimpleNamespace(is_alive=lambda: True,
                                                               stop=lambda: None))  # fmt: skip
    return studio._evict_chat(chat, "cuda:0")


@fault(36, "delete of a run that trains", RUNS)
def _(folder: Path) -> None:
    workspace = trained(folder, 1)
    try:
        workspace.store.delete(only(workspace).id)
    finally:
        workspace.close()


@fault(37, "no network", "the model's download")
def _(folder: Path) -> None:
    with fake_hub() as hub:
        endpoint = hub.endpoint
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    with mock.patch.dict(os.environ, clean, clear=True):
        ModelStore(folder / "w", folder / "p", endpoint=endpoint).download("tiny/llama")


@fault(38, "a driver too old for the installed torch", SIDE)
def _(folder: Path) -> str:
    reasons: dict[str, str] = {}
    build = SimpleNamespace(label="torch 2.13.0+cu130", cuda="13.0", oldest_driver=580)
    probe._cuda([object()], "550.54.14", build, None, reasons)  # type: ignore[list-item, arg-type]
    return reasons["cuda"]


@fault(39, "a run of a newer version", RUNS)
def _(folder: Path) -> str:
    workspace = trained(folder, 1)
    paths = only(workspace)
    workspace.kill_trainer()
    record = json.loads(paths.run_json.read_text())
    write_json(paths.run_json, {**record, "schema": 99})
    run = workspace.store.get(paths.id)
    return f"{run.shown_state}: {run.damaged}"


@fault(40, "a child process is killed: what is left", NOTES, quiet=True)
def _(folder: Path) -> str:
    server = ChildServer("tests.services.echo_child", name="echo", folder=folder)
    server.ensure()
    child = psutil.Process(server.pid)
    child.kill()
    child.wait(20)
    server.stop()
    left = [path.name for path in folder.iterdir() if path.suffix != ".log"]
    return f"{int(child.is_running())} processes and {len(left)} sockets or temp files left"
