"""Downloads from a fake hub: resume, cancel, checks, and every refusal as a sentence."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from studio.core.errors import BusyError, HubError, ModelError, StoreError
from studio.services import hub_token, models
from studio.services.hub import Hub, is_hub_id
from studio.services.models import ModelStore
from tests.services.fake_hub import FakeModel, fake_hub
from tests.waiting import wait_until

ID = "tiny/llama"
TOKEN = "hf_" + "x" * 20


def safetensors_bytes(numbers: int = 50_000) -> bytes:
    """A valid file of one tensor, without torch."""
    head = json.dumps(
        {"w": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}
    ).encode()
    data = bytes(index % 251 for index in range(4 * numbers))
    return len(head).to_bytes(8, "little") + head + data


WEIGHTS = safetensors_bytes()
FILES = {
    "config.json": b'{"model_type": "llama", "max_position_embeddings": 128}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "README.md": b"# card",
    "modeling_evil.py": b"import os",
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"twice",
    "original/model.safetensors": b"nested",
}
WANTED = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}


@pytest.fixture(autouse=True)
def own_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub():
    with fake_hub() as server:
        server.models[ID] = FakeModel(dict(FILES))
        yield server


@pytest.fixture
def store(hub, tmp_path) -> ModelStore:
    return ModelStore(tmp_path / "workspace", tmp_path / "presets", endpoint=hub.endpoint)


def test_download_fetches_what_is_needed_and_nothing_else(hub, store):
    seen: list[tuple[int, int]] = []
    place = store.download(ID, progress=lambda here, total: seen.append((here, total)))
    files = {path.name for path in place.iterdir()}
    assert files == WANTED | {"download.json"}
    assert (place / "model.safetensors").read_bytes() == WEIGHTS
    total = sum(len(FILES[name]) for name in WANTED)
    assert seen[-1] == (total, total)
    assert [here for here, _ in seen] == sorted(here for here, _ in seen)
    record = json.loads((place / "download.json").read_text())
    assert record["commit"] == hub.models[ID].commit and record["licence"] == "apache-2.0"
    assert store.resolve(ID) == place
    assert place.name == "tiny--llama"
    info = next(info for info in store.list() if info.id == ID)
    assert info.local and info.params == 50_000 and info.context == 128


def test_size_is_known_before_anything_is_written(store, tmp_path):
    size = store.size(ID)
    assert size.total_bytes == size.missing_bytes == sum(len(FILES[name]) for name in WANTED)
    assert size.fits and size.licence == "apache-2.0" and not size.is_gated
    assert not (tmp_path / "workspace" / "models" / "tiny--llama").exists()


def test_second_download_asks_nothing(hub, store):
    store.download(ID)
    hub.asked.clear()
    store.download(ID)
    assert hub.asked == []


def test_broken_connections_are_taken_up_where_they_broke(hub, store):
    hub.models[ID].cuts = [70_000, 1_000, 0]
    place = store.download(ID)
    assert (place / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [wanted for path, _, wanted in hub.asked if path.endswith("model.safetensors")]
    assert ranges[0] is None
    assert [int(wanted[6:-1]) for wanted in ranges[1:]] == [70_000, 71_000, 71_000]


def test_server_without_ranges_starts_the_file_again(hub, store):
    hub.models[ID].cuts = [70_000]
    hub.models[ID].ranges = False
    place = store.download(ID)
    assert (place / "model.safetensors").read_bytes() == WEIGHTS


def test_connection_that_brings_nothing_gives_up_with_a_sentence(hub, store):
    hub.models[ID].cuts = [0] * 50
    with pytest.raises(HubError, match="keeps breaking.*continues where it stopped"):
        store.download(ID)
    hub.models[ID].cuts = []
    assert store.download(ID).is_dir()


def test_cancel_keeps_what_is_here_and_the_commit(hub, store):
    hub.holding.set()
    stop = threading.Event()
    failures = []
    here: list[int] = [0]

    def work():
        try:
            store.download(
                ID, progress=lambda have, total: here.append(have), cancelled=stop.is_set
            )
        except HubError as error:
            failures.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    small = sum(len(FILES[name]) for name in WANTED - {"model.safetensors"})
    wait_until(lambda: here[-1] == small + 1000, what="first bytes of the weights")
    with pytest.raises(BusyError, match="being downloaded already"):
        store.download(ID)
    stop.set()
    hub.hold.set()
    thread.join(30)
    assert "cancelled" in failures[0] and "continues where it stopped" in failures[0]
    with pytest.raises(HubError, match="not on this machine yet"):
        store.resolve(ID)
    hub.holding.clear()
    hub.asked.clear()
    store.download(ID)
    [wanted] = [wanted for path, _, wanted in hub.asked if path.endswith("model.safetensors")]
    assert wanted == "bytes=1000-"
    assert f"/api/models/{ID}/revision/{hub.models[ID].commit}" in [path for path, *_ in hub.asked]


def test_fetch_tells_shares_and_cancel_ends_it(hub, store):
    told = list(store.fetch(ID))
    assert told[-1][0] == 1.0 and "MB" in told[-1][1]
    hub.models["tiny/other"] = FakeModel(dict(FILES))
    hub.holding.set()
    progress = store.fetch("tiny/other")
    next(progress)
    store.cancel("tiny/other")
    hub.hold.set()
    with pytest.raises(HubError, match="cancelled"):
        for _ in progress:
            pass


def test_content_that_differs_from_the_announced_is_thrown_away(hub, store):
    hub.models[ID].corrupt = {"model.safetensors"}
    with pytest.raises(HubError, match="not what the hub announced.*Download it again"):
        store.download(ID)
    folder = store.root / "tiny--llama"
    assert not list(folder.glob("model.safetensors*"))
    hub.models[ID].corrupt = {"tokenizer.json"}
    (folder / "tokenizer.json").unlink()
    with pytest.raises(HubError, match=r"tokenizer\.json"):
        store.download(ID)
    hub.models[ID].corrupt = set()
    assert store.download(ID).is_dir()


def test_unknown_id_is_one_sentence(store):
    with pytest.raises(HubError, match="knows no such model.*'tiny/none'.*spelling"):
        store.download("tiny/none")
    with pytest.raises(HubError, match="no such revision"):
        store.download(ID, "v9")


@pytest.mark.parametrize("text", ["llama", "a/b/c", "../x", "a/..", "a--b/c", "a b/c", "", "/a/b"])
def test_malformed_ids_are_refused_without_asking(hub, store, text):
    assert not is_hub_id(text)
    with pytest.raises(HubError):
        store.size(text)
    assert hub.asked == []


def test_gated_model_names_its_licence_page(hub, store):
    hub.models[ID].gated = True
    hub.models[ID].allowed_token = TOKEN
    assert store.size(ID).is_gated
    with pytest.raises(HubError, match=f"gated.*Accept it at {hub.endpoint}/{ID}.*keep a token"):
        store.download(ID)
    store.set_token("hf_" + "y" * 20)
    with pytest.raises(HubError, match="use a token of that account"):
        store.download(ID)
    store.set_token(TOKEN)
    assert store.download(ID).is_dir()


def test_token_is_private_and_goes_nowhere_else(hub, store, capfd):
    store.set_token(TOKEN)
    assert store.has_token()
    file = hub_token.token_file()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    place = store.download(ID)
    assert {token for _, token, _ in hub.asked} == {f"Bearer {TOKEN}"}
    assert set(hub.content_tokens) == {None}
    written = [path for path in place.parent.rglob("*") if path.is_file()]
    assert written and not any(TOKEN.encode() in path.read_bytes() for path in written)
    captured = capfd.readouterr()
    assert TOKEN not in captured.out + captured.err
    store.set_token("")
    assert not store.has_token() and not file.exists()


def test_token_with_a_slip_is_refused_without_showing_it(store):
    with pytest.raises(HubError) as caught:
        store.set_token("hf_secret value")
    assert "secret" not in str(caught.value)


def test_token_is_not_sent_in_the_clear_to_another_machine():
    assert Hub(endpoint="http://hub.example", token=TOKEN)._token is None
    assert Hub(endpoint="https://hub.example", token=TOKEN)._token == TOKEN


def test_no_network_is_one_sentence(tmp_path):
    store = ModelStore(tmp_path, tmp_path / "presets", endpoint="http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"127\.0\.0\.1 cannot be reached.*Check the connection"):
        store.size(ID)


def test_offline_by_environment_asks_nothing(hub, store, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        store.download(ID)
    assert hub.asked == []


def test_login_page_instead_of_the_hub_is_named(hub, tmp_path):
    hub.models[ID].commit = "not a commit"
    store = ModelStore(tmp_path, tmp_path / "presets", endpoint=hub.endpoint)
    with pytest.raises(HubError, match="does not answer like a model hub"):
        store.size(ID)


def test_full_disk_is_told_before_the_download(hub, store, monkeypatch):
    monkeypatch.setattr(models, "free_bytes", lambda path: 400 << 20)
    with pytest.raises(StoreError, match="Not enough disk space.*0.4 GB free"):
        store.download(ID)
    assert not any("resolve" in path for path, *_ in hub.asked)
    assert not store.size(ID).fits


def test_disk_that_fills_up_is_one_sentence_and_the_rest_continues(hub, store, monkeypatch):
    real = Path.open

    def full(path, mode="r", *arguments, **options):
        if path.name == "model.safetensors.part" and "b" in mode and mode != "rb":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(StoreError, match="No space left on the disk that holds"):
            store.download(ID)
    assert store.download(ID).is_dir()


def test_remote_code_is_refused_before_the_weights(hub, store):
    hub.models[ID].files["config.json"] = json.dumps(
        {"model_type": "llama", "text_config": {"auto_map": {"AutoConfig": "evil.C"}}}
    ).encode()
    with pytest.raises(ModelError, match="code of its own"):
        store.download(ID)
    assert not any(path.endswith("model.safetensors") for path, *_ in hub.asked)


def test_model_without_safetensors_is_refused(hub, store):
    del hub.models[ID].files["model.safetensors"]
    with pytest.raises(ModelError, match="no safetensors weights"):
        store.download(ID)
    del hub.models[ID].files["config.json"]
    with pytest.raises(ModelError, match=r"no config\.json"):
        store.download(ID)


def test_sharded_model_is_fetched_whole(hub, store):
    files = hub.models[ID].files
    weights = files.pop("model.safetensors")
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    files.update(dict.fromkeys(names, weights))
    files["model.safetensors.index.json"] = json.dumps(
        {"weight_map": {"a": names[0], "b": names[1]}}
    ).encode()
    place = store.download(ID)
    assert all((place / name).is_file() for name in names)


def test_hostile_file_names_are_not_asked_for(hub, store):
    files = hub.models[ID].files
    for name in ("../config.json", "..\\x.json", "a/config.json", ".git/config", "x.safetensors"):
        files[name] = b"x"
    place = store.download(ID)
    assert {path.name for path in place.iterdir()} == WANTED | {"download.json"}


def test_more_bytes_than_announced_are_not_taken(hub, store):
    hub.models[ID].stated_sizes["model.safetensors"] = 1000
    with pytest.raises(HubError, match="not what the hub announced"):
        store.download(ID)
    part = store.root / "tiny--llama" / "model.safetensors.part"
    assert not part.exists() or part.stat().st_size <= 1000


def test_revision_has_its_own_folder(hub, store):
    place = store.download(ID, hub.models[ID].commit)
    assert place.name == f"tiny--llama@{hub.models[ID].commit}"
    assert store.resolve(ID, hub.models[ID].commit) == place
    with pytest.raises(HubError, match="not on this machine yet"):
        store.resolve(ID)


def test_environment_names_another_hub(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint + "/")
    store = ModelStore(tmp_path, tmp_path / "presets")
    assert store.size(ID).total_bytes > 0


def test_hub_imports_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, studio.services.models\n"
        "print(sorted({'torch', 'transformers'} & {*sys.modules}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert found.stdout.strip() == "[]"
