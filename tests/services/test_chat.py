"""ChatService against the real chat process with a tiny model."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from studio.core.errors import BusyError, ConfigError, ModelError, StoreError
from studio.services.chat import ChatService, device_environment
from studio.services.store import RunStore
from tests.tiny_models import make_adapter, make_model_folder, make_run
from tests.waiting import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
PROMPT = [{"role": "user", "content": "Can I change my order?"}]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    base = make_model_folder(
        folder / "base",
        tie_word_embeddings=False,
        max_position_embeddings=16_384,
        eos_token_id=None,
    )
    make_run(folder / "runs", base, number=1, seed=1)
    make_run(folder / "runs", base, number=2, seed=2, state="paused")
    return folder


@pytest.fixture(scope="module")
def chat(workspace):
    models = SimpleNamespace(resolve=lambda model_id: workspace / model_id)
    service = ChatService(workspace, RunStore(workspace), models)
    yield service
    service.close()


FIRST, SECOND = "20260102-000000-0001", "20260102-000000-0002"


def collect(chat: ChatService, run_id: str = FIRST, **options) -> list[dict]:
    async def run() -> list[dict]:
        return [event async for event in chat.stream(run_id, PROMPT, **options)]

    return asyncio.run(run())


def text_of(events: list[dict], which: str) -> str:
    return "".join(e["delta"] for e in events if e.get("which") == which and "delta" in e)


def test_first_answer_tells_what_it_waits_for_then_streams_both(chat):
    chat.unload()
    events = collect(chat, max_tokens=24)
    phases = [event["phase"] for event in events if "phase" in event]
    assert phases[-1] == "ready" and "importing" in phases
    assert all(event["message"] for event in events if event.get("phase") == "importing")
    ends = {event["which"]: event for event in events if event.get("done")}
    assert set(ends) == {"base", "adapter"}
    assert all(end["tokens"] == 24 and end["truncated"] for end in ends.values())
    assert all(end["tokens_per_s"] > 0 for end in ends.values())
    assert text_of(events, "base") != text_of(events, "adapter")
    # Side by side: neither waits for the other's end.
    order = [event["which"] for event in events if "delta" in event]
    assert order.index("adapter") < len(order) / 2 and order.index("base") < len(order) / 2
    assert chat.status()["run_id"] == FIRST


def test_second_answer_needs_no_loading_and_greedy_repeats(chat):
    first = collect(chat, max_tokens=8)
    second = collect(chat, max_tokens=8)
    assert not any("phase" in event for event in second)
    assert text_of(first, "adapter") == text_of(second, "adapter")


def test_one_side_alone(chat):
    events = collect(chat, which="base", max_tokens=4)
    assert {event["which"] for event in events if "which" in event} == {"base"}


def test_other_run_replaces_the_model_in_the_same_process(chat):
    collect(chat, max_tokens=2)
    pid = chat._child.pid
    first = text_of(collect(chat, FIRST, max_tokens=16), "adapter")
    second = text_of(collect(chat, SECOND, max_tokens=16), "adapter")
    assert first != second
    assert chat._child.pid == pid
    assert chat.status()["run_id"] == SECOND


def test_new_adapter_of_the_same_run_is_loaded_again(chat, workspace):
    before = text_of(collect(chat, SECOND, max_tokens=16), "adapter")
    make_adapter(workspace / "runs" / SECOND / "adapter", workspace / "base", seed=9)
    assert text_of(collect(chat, SECOND, max_tokens=16), "adapter") != before


def test_leaving_stops_the_work(chat):
    async def leave() -> None:
        async with aclosing(chat.stream(FIRST, PROMPT, max_tokens=8192)) as events:
            async for event in events:
                if "delta" in event:
                    return

    asyncio.run(leave())
    process = psutil.Process(chat._child.pid)

    def is_quiet() -> bool:
        before = sum(process.cpu_times()[:2])
        try:
            process.wait(0.5)
        except psutil.TimeoutExpired:
            return sum(process.cpu_times()[:2]) - before < 0.05
        return False

    wait_until(is_quiet, what="generation stopped", timeout_s=20)
    assert collect(chat, max_tokens=2)


def test_eviction_breaks_the_answer_off_with_its_reason(chat):
    reason = "The chat was unloaded to make room for a training"

    notices = []

    async def run() -> None:
        async with aclosing(chat.stream(FIRST, PROMPT, max_tokens=8192)) as events:
            async for event in events:
                if "delta" in event and not notices:
                    notices.append(await asyncio.to_thread(chat.evict, reason))

    with pytest.raises(BusyError, match=f"{reason}.*Ask again"):
        asyncio.run(run())
    assert notices == [reason]
    assert chat.status()["phase"] == "stopped"
    assert chat.evict(reason) is None
    assert text_of(collect(chat, max_tokens=4), "base")


def test_two_pages_are_answered_at_once(chat):
    alone = text_of(collect(chat, max_tokens=12), "adapter")

    async def one() -> str:
        return text_of([e async for e in chat.stream(FIRST, PROMPT, max_tokens=12)], "adapter")

    async def both() -> list[str]:
        return list(await asyncio.gather(one(), one()))

    assert asyncio.run(both()) == [alone, alone]


def test_wrong_values_are_refused_before_anything_starts(chat):
    for options in (
        {"temperature": float("nan")}, {"temperature": 3.0}, {"top_p": 0.0}, {"max_tokens": 0},
        {"which": "neither"}, {"seed": -1},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(options))):
            collect(chat, **options)


def test_unknown_run_is_one_sentence(chat):
    with pytest.raises(StoreError, match="no such run"):
        collect(chat, "20200101-000000-0000")


def test_damaged_adapter_keeps_its_sentence(chat, workspace):
    run = make_run(workspace / "runs", workspace / "base", number=3)
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        collect(chat, run.name)
    assert text_of(collect(chat, max_tokens=2), "base")


def test_run_from_elsewhere_finds_its_base_by_id(chat, workspace):
    elsewhere = shutil.copytree(workspace / "base", workspace / "elsewhere" / "base")
    run = make_run(workspace / "runs", elsewhere, number=4)
    shutil.rmtree(elsewhere)
    assert text_of(collect(chat, run.name, max_tokens=2), "base")


@pytest.mark.parametrize("recorded", [None, "", "/nowhere"])
def test_run_from_a_zip_names_no_folder(tmp_path, recorded):
    models = SimpleNamespace(resolve=lambda model_id: tmp_path / model_id)
    service = ChatService(tmp_path, RunStore(tmp_path), models)
    record = {"model": {"id": "starter", "path": recorded}}
    assert service._moved_base(record) == tmp_path / "starter"
    assert service._moved_base({"model": {"id": "x", "path": str(tmp_path)}}) is None


def test_idle_process_holds_no_libraries(chat):
    chat.unload()
    chat._child.ensure()
    assert chat.status()["phase"] == "idle" and chat.status()["loaded"] is None
    assert psutil.Process(chat._child.pid).memory_info().rss < 120 * 2**20


def test_child_sees_the_gpu_of_the_run_only(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device_environment("cpu") == {"CUDA_VISIBLE_DEVICES": ""}
    assert device_environment("cuda:1")["CUDA_VISIBLE_DEVICES"] == "1"
    assert device_environment("mps") == {}


def test_a_run_deleted_under_its_chat_is_gone_for_the_next_question(chat, workspace):
    store = RunStore(workspace)
    assert any("delta" in event for event in collect(chat, max_tokens=2))

    async def ask() -> list[dict]:
        events = []
        async with aclosing(chat.stream(FIRST, PROMPT, max_tokens=200)) as answers:
            async for event in answers:
                if "delta" in event and not any("delta" in seen for seen in events):
                    store.rename(FIRST, "Renamed under its chat")
                    token.append(store.delete(FIRST))
                events.append(event)
        return events

    token: list[str] = []
    events = asyncio.run(ask())  # the answer that has begun goes on to its end
    assert {event["which"] for event in events if event.get("done")} == {"base", "adapter"}
    try:
        with pytest.raises(StoreError, match="There is no such run"):
            collect(chat, max_tokens=2)
    finally:
        store.undo_delete(token[0])
    assert any("delta" in event for event in collect(chat, max_tokens=2))
