"""Zips out and in: what leaves comes back the same; what is hostile stays out."""

from __future__ import annotations

import json
import shutil
import stat
import zipfile

import pytest

from studio.core.errors import BusyError, StoreError
from studio.services import archive
from studio.services.store import RunStore

RUN = {
    "created": "2026-01-01", "config": {"lora": {"r": 4}}, "request_id": "abc",
    "model": {"id": "starter", "path": "/etc"}, "dataset": {"id": "d", "path": "../../.."},
}  # fmt: skip


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "here")


@pytest.fixture
def other(tmp_path):
    """A run in a teammate's workspace."""
    store = RunStore(tmp_path / "there")
    root = store.root / "20260101-000000-abcd"
    (root / "adapter").mkdir(parents=True)
    (root / "checkpoints" / "step-1").mkdir(parents=True)
    (root / "checkpoints" / "step-1" / "optimizer.pt").write_bytes(b"x")
    (root / "run.json").write_text(json.dumps(RUN))
    (root / "meta.json").write_text('{"name": "Ours", "notes": ""}')
    (root / "exit.json").write_text('{"state": "done", "steps": 3}')
    (root / "exit-1.json").write_text('{"state": "paused"}')
    (root / "metrics.jsonl").write_text('{"kind": "step", "step": 1, "loss": 1.0}\n')
    (root / "trainer.lock").write_text("")
    (root / "adapter" / "adapter_config.json").write_text("{}")
    (root / "adapter" / "adapter_model.safetensors").write_bytes(safetensors())
    return store


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def zip_of(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in files.items():
            bundle.writestr(name, content)
    return path


def test_run_travels_and_arrives_read_only(store, other):
    sent = other.zip_run("20260101-000000-abcd")
    names = zipfile.ZipFile(sent).namelist()
    assert not [name for name in names if "checkpoint" in name or "lock" in name]
    run_id = store.open_zip(sent)
    run = store.get(run_id)
    assert (run_id, run.name, run.state, run.read_only) == (
        "20260101-000000-abcd", "Ours", "done", True,
    )  # fmt: skip
    assert run.run_record["model"] == {"id": "starter", "path": None}
    assert "request_id" not in run.run_record and run.run_record["dataset"]["path"] is None
    adapter = store.paths(run_id).adapter / "adapter_model.safetensors"
    assert adapter.read_bytes() == safetensors()
    assert store.open_zip(sent) != run_id and len(store.list()) == 2
    assert not [p for p in (store.workspace / "tmp").iterdir() if p.name.startswith("import")]


@pytest.mark.parametrize("meanwhile", ["deleted", "replaced"])
def test_a_run_that_changes_while_it_is_packed_is_no_zip(other, monkeypatch, meanwhile):
    paths = other.paths("20260101-000000-abcd")
    write, done = zipfile.ZipFile.write, []

    def interrupted(bundle, *arguments, **options):
        write(bundle, *arguments, **options)
        if not done:
            done.append(True)
            if meanwhile == "deleted":
                other.delete(paths.id)
            else:
                staged = paths.root / ".staging-adapter"
                shutil.copytree(paths.adapter, staged)
                shutil.rmtree(paths.adapter)
                staged.rename(paths.adapter)

    monkeypatch.setattr(zipfile.ZipFile, "write", interrupted)
    pack = other.zip_run if meanwhile == "deleted" else other.zip_adapter
    words = "was deleted" if meanwhile == "deleted" else "got another adapter"
    with pytest.raises(BusyError, match=f"{words} while it was packed"):
        pack(paths.id)
    assert not list((other.workspace / "tmp").glob("zip-*"))


def test_imported_run_without_exit_is_not_queued(store, tmp_path):
    path = zip_of(tmp_path / "x.zip", {"run.json": json.dumps(RUN)})
    assert store.get(store.open_zip(path)).state == "interrupted"


def test_two_downloads_at_once_have_a_file_each(other):
    first, second = other.zip_run("20260101-000000-abcd"), other.zip_run("20260101-000000-abcd")
    first.unlink()
    assert second.name == first.name and zipfile.ZipFile(second).namelist()


def test_adapter_zip_is_a_peft_folder(other):
    with zipfile.ZipFile(other.zip_adapter("20260101-000000-abcd")) as bundle:
        assert sorted(bundle.namelist()) == [
            "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
        ]  # fmt: skip
    (other.paths("20260101-000000-abcd").adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(StoreError, match="no adapter yet"):
        other.zip_adapter("20260101-000000-abcd")


GOOD = {"r/run.json": json.dumps(RUN)}
HOSTILE = {
    "parent": ({**GOOD, "r/../../evil.json": "{}"}, "leads out"),
    "absolute": ({**GOOD, "/etc/evil.json": "{}"}, "leads out"),
    "backslash": ({**GOOD, "r\\..\\evil.json": "{}"}, "leads out"),
    "drive": ({**GOOD, "C:evil.json": "{}"}, "leads out"),
    "deep": ({**GOOD, "r/adapter/a/b.json": "{}"}, "leads out"),
    "pickle": ({**GOOD, "r/adapter/adapter_model.bin": b"\x80\x04."}, "safetensors only"),
    "checkpoint": ({**GOOD, "r/checkpoints/optimizer.pt": b"x"}, "safetensors only"),
    "lock": ({**GOOD, "r/trainer.lock": b""}, "no part of a run"),
    "command": ({**GOOD, "r/commands/0001-stop.json": "{}"}, "no part of a run"),
    "process": ({**GOOD, "r/process.json": '{"pid": 1}'}, "no part of a run"),
    "outside": ({**GOOD, "other/meta.json": "{}"}, "no part of a run"),
    "twice": ({**GOOD, "r/META.json": "{}", "r/meta.json": "{}"}, "twice"),
    "no run": ({"r/meta.json": "{}"}, "no run.json"),
    "two runs": ({**GOOD, "s/run.json": "{}"}, "no run.json"),
    "not json": ({**GOOD, "r/meta.json": "{"}, "not valid JSON"),
    "no config": ({"r/run.json": "{}"}, "cannot be read"),
    "code": ({**GOOD, "r/adapter/adapter_config.json": '{"auto_map": {"A": "x.A"}}'}, "foreign"),
    "nested": (
        {**GOOD, "r/adapter/config.json": '{"a": [{"trust_remote_code": true}]}'}, "foreign code",
    ),
    "weights": ({**GOOD, "r/adapter/w.safetensors": safetensors()[:-1]}, "safetensors"),
    "huge header": (
        {**GOOD, "r/adapter/w.safetensors": (1 << 60).to_bytes(8, "little")}, "impossible length",
    ),
    "nan": ({"r/run.json": '{"config": {}, "total_steps": NaN}'}, "not valid JSON"),
    "deep JSON": (
        {**GOOD, "r/meta.json": '{"a":' + "[" * 99_999 + "]" * 99_999 + "}"}, "not valid JSON",
    ),
    "a list": ({**GOOD, "r/state.json": "[1, 2]"}, "no JSON object"),
    "run is a list": ({"r/run.json": "[]"}, "no JSON object"),
    "config is text": ({"r/run.json": '{"config": "lora"}'}, "cannot be read"),
    "not utf-8": ({**GOOD, "r/meta.json": b'{"name": "\xff"}'}, "not valid JSON"),
    "large json": ({**GOOD, "r/meta.json": b'{"a": "' + b"x" * (9 << 20) + b'"}'}, "too large"),
    "line break": ({**GOOD, "r/adapter/a\nb.json": "{}"}, "no part of a run"),
    "tag in a name": ({**GOOD, "r/adapter/<img src=x>.json": "{}"}, "no part of a run"),
    "right to left": ({**GOOD, "r/adapter/a\u202enosj.json": "{}"}, "no part of a run"),
    "device": ({**GOOD, "r/adapter/CON.json": "{}"}, "no part of a run"),
    "dot file": ({**GOOD, "r/adapter/.netrc.json": "{}"}, "no part of a run"),
    "import mark": ({**GOOD, "r/imported.json": "{}"}, "no part of a run"),
    "resume": ({**GOOD, "r/resume.json": "{}"}, "no part of a run"),
    "folders": ({**GOOD, **{f"r/{n}/": "" for n in range(600)}}, "at most 500"),
    "many": ({**GOOD, **{f"r/{n}" * 20: "" for n in range(9000)}}, "at most 500"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_zip_is_refused_and_leaves_nothing(store, tmp_path, name):
    files, reason = HOSTILE[name]
    with pytest.raises(StoreError, match=reason):
        store.open_zip(zip_of(tmp_path / "x.zip", files))
    assert store.list() == [] and not list((store.workspace / "tmp").iterdir())
    assert {p.name for p in tmp_path.iterdir()} <= {"x.zip", "here", "there"}


DAMAGE = {
    "end": lambda data: data[:-10],
    "data": lambda data: data.replace(data[60:90], b"\xff" * 30),
    "local header": lambda data: b"XX" + data[2:],
    "encrypted": lambda data: _flagged(data),
    "count": lambda data: data[:-12] + b"\xff" * 4 + data[-8:],
}


def _flagged(data: bytes) -> bytes:
    at = data.index(b"PK\x01\x02")
    return data[: at + 8] + b"\x01" + data[at + 9 :]


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_zip_is_refused(store, tmp_path, name):
    words = {**RUN, "notes": [f"word {n * n}" for n in range(200)]}
    path = zip_of(tmp_path / "x.zip", {"r/run.json": json.dumps(words)})
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    with pytest.raises(StoreError, match="was not opened"):
        store.open_zip(path)
    assert store.list() == [] and not list((store.workspace / "tmp").iterdir())


def test_flipped_bytes_are_refused_or_without_effect(store, other, tmp_path):
    data = other.zip_run("20260101-000000-abcd").read_bytes()
    for at in range(0, len(data), 3):
        (tmp_path / "x.zip").write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            store.open_zip(tmp_path / "x.zip")
        except StoreError:
            continue
    assert all(run.id for run in store.list())  # whatever came in can be listed


@pytest.mark.parametrize("value", [7, [1], {"a": {}}, "<script>", None, -(10**400), "\u202e"])
def test_odd_values_in_an_imported_run_hide_no_other_run(store, other, tmp_path, value):
    keys = ("created", "total_steps", "resolved", "dataset", "model", "seed", "auto", "versions")
    record = {**dict.fromkeys(keys, value), "config": {"lora": {"r": value}, "train": value}}
    odd = dict.fromkeys(("name", "notes", "state", "step", "steps", "eval_loss", "error"), value)
    files = {
        "r/run.json": json.dumps(record), "r/meta.json": json.dumps(odd),
        "r/exit.json": json.dumps({**odd, "state": "done"}), "r/state.json": json.dumps(odd),
        "r/metrics.jsonl": json.dumps({"kind": "step", "step": value, "loss": value}) + "\n\xff{\n",
        "r/samples.jsonl": json.dumps({"prompt": value, "answer": value}) + "\n[1]\n",
    }  # fmt: skip
    good = store.open_zip(other.zip_run("20260101-000000-abcd"))
    odd_id = store.open_zip(zip_of(tmp_path / "x.zip", files))
    assert {run.id for run in store.list()} == {good, odd_id}
    assert store.get(odd_id).read_only


def test_link_in_a_zip_is_refused(store, tmp_path):
    link = zipfile.ZipInfo("r/meta.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(StoreError, match="is a link"):
        store.open_zip(zip_of(tmp_path / "x.zip", {**GOOD, link: "/etc/passwd"}))


def test_bomb_is_stopped_by_what_it_unpacks_to(store, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_TEXT_BYTES", 1000)
    path = zip_of(tmp_path / "x.zip", {**GOOD, "r/log.txt": b"0" * 100_000})
    with pytest.raises(StoreError, match="too large"):
        store.open_zip(path)
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 1 << 30)
    path = zip_of(tmp_path / "y.zip", {**GOOD, **{f"r/exit-{n}.json": "{}" for n in range(600)}})
    with pytest.raises(StoreError, match="at most 500"):
        store.open_zip(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"plain text"])
def test_what_is_no_zip_is_refused(store, tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(StoreError, match="not a zip"):
        store.open_zip(tmp_path / "x.zip")
