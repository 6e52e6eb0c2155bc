"""Poisoned model repositories: from a folder and from a hub, does anything of them run?

    python -m tests.faults.hostile_repos --trials 25

Each poison is put on a tiny honest model and tried twice: as a folder of this machine, and
downloaded from a hub on loopback. What is let in is then used as a chat uses it: tokenizer, model,
one rendered question, three tokens. An audit hook watches for code compiled or imported from the
model's folder and for connections to anything but the hub.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.backend.chat_model import load_plain
from studio.backend.loading import quiet_libraries
from studio.core.chat_request import parse_chat_request
from studio.core.errors import StudioError
from studio.services.models import ModelStore
from studio.services.settings import PROJECT_ROOT
from tests.faults.hostile_templates import ENDLESS
from tests.faults.result import Result, run_from_command_line
from tests.services.fake_hub import FakeHub, FakeModel, fake_hub
from tests.tiny_models import make_model_folder

VERDICT_S = 3.0
REFUSED, ACCEPTED, EITHER = "refused", "accepted", "either"
QUESTION = {"messages": [{"role": "user", "content": "hello"}], "which": "base", "max_tokens": 3}
Poison = Callable[[Path, Path], None]  # the model's folder, the canary


def changing(name: str, **values: Any) -> Poison:
    """Overwrite keys of a JSON file."""

    def apply(folder: Path, canary: Path) -> None:
        file = folder / name
        held = json.loads(file.read_text()) if file.exists() else {}
        text = json.dumps({**held, **values}).replace("CANARY", str(canary))
        file.write_text(text)

    return apply


def writing(name: str, content: str) -> Poison:
    """One more file, or another in its place."""

    def apply(folder: Path, canary: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content.replace("CANARY", str(canary)))

    return apply


def all_of(*poisons: Poison) -> Poison:
    """Several at once."""

    def apply(folder: Path, canary: Path) -> None:
        for poison in poisons:
            poison(folder, canary)

    return apply


def _code(name: str = "modeling_evil.py") -> Poison:
    """A module that shows when it is imported."""
    return writing(name, "import os\nos.mkdir('CANARY')\nclass Model: pass\n")


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def _pickle(name: str, *, only: bool) -> Poison:
    def apply(folder: Path, canary: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(_Touch(str(canary))))
        if only:
            (folder / "model.safetensors").unlink()

    return apply


def _sharded(names: dict[str, str], *, keep: bool) -> Poison:
    """An index in the place of the one file; the file itself becomes the first part."""

    def apply(folder: Path, _: Path) -> None:
        whole = folder / "model.safetensors"
        if keep:
            whole.rename(folder / "model-00001-of-00002.safetensors")
        else:
            whole.unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))

    return apply


def _weights(change: Callable[[bytes], bytes]) -> Poison:
    def apply(folder: Path, _: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return apply


def _link(name: str, target: str) -> Poison:
    def apply(folder: Path, _: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return apply


def _cache_layout(folder: Path, _: Path) -> None:
    """As the hub's own cache keeps models: names that link to blobs beside. This is honest."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for file in [path for path in folder.iterdir() if path.is_file()]:
        shutil.move(file, blobs / file.name)
        file.symlink_to(blobs / file.name)


def _pipe(folder: Path, _: Path) -> None:
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    os.mkfifo(folder / "special_tokens_map.json")


def _small_vocabulary(folder: Path, _: Path) -> None:
    """A tokenizer whose tokens the embeddings do not reach."""
    file = folder / "tokenizer.json"
    held = json.loads(file.read_text())
    vocabulary = held["model"]["vocab"]
    vocabulary.update({f"extra{n}": len(vocabulary) + n for n in range(1000)})
    file.write_text(json.dumps(held))


NESTED = {"text_config": {"vision": [{"auto_map": {"AutoModel": "modeling_evil.Model"}}]}}
DEEP: dict[str, Any] = {"trust_remote_code": True}
for _ in range(200):
    DEEP = {"x": DEEP}
POISONS: dict[str, tuple[str, Poison]] = {
    "auto_map": (REFUSED, all_of(
        _code(), changing("config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Model"}),
    )),
    "auto_map nested": (REFUSED, all_of(_code(), changing("config.json", **NESTED))),
    "custom_pipelines": (REFUSED, all_of(_code("pipe.py"), changing(
        "config.json", custom_pipelines={"x": {"impl": "pipe.P", "pt": ["AutoModel"]}},
    ))),
    "trust_remote_code deep inside": (REFUSED, changing("config.json", odd=DEEP)),
    "auto_map of the tokenizer": (REFUSED, all_of(_code("tok.py"), changing(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.T", "tok.T"]},
    ))),
    "auto_map of generation": (REFUSED, all_of(
        _code(), changing("generation_config.json", auto_map={"x": "modeling_evil.Model"}),
    )),
    "pickle only": (REFUSED, _pickle("pytorch_model.bin", only=True)),
    "pickle beside": (ACCEPTED, _pickle("pytorch_model.bin", only=False)),
    "code that nothing names": (ACCEPTED, all_of(
        _code(), _code("__init__.py"), _code("custom_generate/generate.py"), _code("torch.py"),
        _code("sitecustomize.py"), _code("tokenization_llama.py"),
    )),
    "unknown tokenizer class": (EITHER, changing(
        "tokenizer_config.json", tokenizer_class="EvilTokenizer", processor_class="os.system",
    )),
    "tokenizer that is none": (REFUSED, writing("tokenizer.json", '{"version": "1.0"}')),
    "tokenizer of brackets": (REFUSED, writing("tokenizer.json", "[" * 200_000)),
    "huge tokenizer": (REFUSED, writing("tokenizer.json", '{"x": "' + "a" * (300 << 20) + '"}')),
    "end tokens that are words": (REFUSED, changing(
        "generation_config.json", eos_token_id="</s>; import os",
    )),
    "penalty that is a list": (REFUSED, changing("generation_config.json", repetition_penalty=[1])),
    "a thousand million layers": (REFUSED, changing("config.json", num_hidden_layers=10**9)),
    "layers without weights": (REFUSED, changing("config.json", num_hidden_layers=900)),
    "negative sizes": (REFUSED, changing("config.json", hidden_size=-64, intermediate_size=-1)),
    "sizes that are words": (REFUSED, changing("config.json", num_hidden_layers="2; import os")),
    "no heads": (REFUSED, changing("config.json", num_attention_heads=0)),
    "other sizes": (REFUSED, changing("config.json", hidden_size=128)),
    "activation": (REFUSED, changing("config.json", hidden_act="os.system")),
    "model_type": (REFUSED, changing("config.json", model_type="../../evil")),
    "attention from elsewhere": (REFUSED, changing(
        "config.json", _attn_implementation="evil/kernels", attn_implementation="evil/kernels",
    )),
    "parts elsewhere": (REFUSED, _sharded({"a": "../../evil.safetensors"}, keep=False)),
    "part missing": (REFUSED, _sharded(
        {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
        keep=True,
    )),
    "index of pickles": (REFUSED, _sharded({"a": "pytorch_model.bin"}, keep=False)),
    "weights that lie": (REFUSED, _weights(lambda data: b"\xff" * 7 + b"\x00" + data[8:])),
    "weights cut": (REFUSED, _weights(lambda data: data[:-100])),
    "weights link to a device": (REFUSED, _link("model.safetensors", "/dev/zero")),
    "config links to a secret": (REFUSED, _link("config.json", "/etc/passwd")),
    "a pipe": (REFUSED, _pipe),
    "a cache's links": (ACCEPTED, _cache_layout),
    "quantized by a class": (REFUSED, changing(
        "config.json", quantization_config={"quant_method": "evil.Quantizer"},
    )),
    "endless template": (REFUSED, writing("chat_template.jinja", ENDLESS)),
    "endless template in the config": (REFUSED, all_of(
        lambda folder, _: (folder / "chat_template.jinja").unlink(missing_ok=True),
        changing("tokenizer_config.json", chat_template=ENDLESS),
    )),
    "template that escapes": (REFUSED, writing(
        "chat_template.jinja", "{{ lipsum.__globals__['os'].mkdir('CANARY') }}",
    )),
    "template of megabytes": (REFUSED, writing("chat_template.jinja", "{#" + "x" * 9_000_000)),
    "more templates": (EITHER, writing("additional_chat_templates/evil.jinja", ENDLESS)),
    "more templates of megabytes": (
        REFUSED, writing("additional_chat_templates/evil.jinja", "x" * 9_000_000),
    ),
    "adapter inside": (REFUSED, changing(
        "adapter_config.json", peft_type="LORA", base_model_name_or_path="http://127.0.0.1:1/x",
        auto_mapping={"parent_library": "os", "base_model_class": "system"},
    )),
    "more tokens than embeddings": (REFUSED, _small_vocabulary),
    "no model at all": (REFUSED, writing("config.json", "[]")),
}  # fmt: skip
# What a download cannot bring: links and pipes are no files of a hub, folders are not fetched.
LOCAL_ONLY = {
    "weights link to a device", "config links to a secret", "a pipe", "a cache's links",
    "more templates", "more templates of megabytes", "code that nothing names", "huge tokenizer",
}  # fmt: skip
# A download leaves these files out, so what is left is an honest model.
HARMLESS_FROM_HUB = {"adapter inside"}


@dataclass
class Watch:
    """What the audit hook saw. A hook cannot be removed, so there is one and it is switched."""

    root: str = ""
    seen: list[str] = field(default_factory=list)
    is_set: bool = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.root:
            return
        if event == "import" and str(arguments[1] or "").startswith(self.root):
            self.seen.append(f"import {arguments[0]}")
        elif event == "compile" and str(arguments[1]).startswith(self.root):
            self.seen.append(f"compile {arguments[1]}")
        elif event == "exec" and getattr(arguments[0], "co_filename", "").startswith(self.root):
            self.seen.append(f"exec {arguments[0].co_filename}")
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            if arguments[1][0] not in ("127.0.0.1", "localhost", "::1"):
                self.seen.append(f"connect {arguments[1]}")
        elif event in ("os.system", "pickle.find_class"):
            self.seen.append(f"{event} {arguments}")


WATCH = Watch()


@contextlib.contextmanager
def watched(root: Path) -> Iterator[list[str]]:
    """Events while it lasts."""
    if not WATCH.is_set:
        WATCH.is_set = True
        sys.addaudithook(WATCH.hook)
    WATCH.seen, WATCH.root = [], str(root)
    try:
        yield WATCH.seen
    finally:
        WATCH.root = ""


def use(folder: Path) -> None:
    """What a chat does with a model."""
    model = load_plain(folder)
    try:
        [answer] = model.open_answers(parse_chat_request(QUESTION)).values()
        while not answer.is_done:
            model.advance("base", answer)
    finally:
        model.close()


def judge(import_it: Callable[[], Path]) -> tuple[str, str]:
    """Refused or accepted, and the words."""
    try:
        use(import_it())
    except StudioError as error:
        return REFUSED, str(error)
    return ACCEPTED, ""


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of the top level, as a hub lists them."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def run(trials: int, *, seed: int = 0, folder: Path | None = None) -> Result:
    """Try `trials` poisons, beginning at the seed's, and the honest model in front."""
    result = Result("hostile model repositories", f"0 code run, a verdict within {VERDICT_S:g} s, "
                    "the honest model accepted both ways")  # fmt: skip
    quiet_libraries()
    names = sorted(POISONS)
    random.Random(seed).shuffle(names)
    offline = os.environ.pop("HF_HUB_OFFLINE", None)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as root, fake_hub() as hub:
            honest = make_model_folder(Path(root) / "honest")
            use(honest)  # imports libraries, whose time is nobody's verdict
            hub.models["vera/honest"] = FakeModel(files_of(honest))
            _try(result, hub, Path(root), honest, "honest")
            for number in range(trials):
                _try(result, hub, Path(root), honest, names[number % len(names)])
    finally:
        if offline is not None:
            os.environ["HF_HUB_OFFLINE"] = offline
    return result


def _try(result: Result, hub: FakeHub, root: Path, honest: Path, name: str) -> None:
    """One poison, as a folder and from the hub."""
    wanted, poison = POISONS.get(name, (ACCEPTED, lambda *_: None))
    result.trials += name != "honest"
    with tempfile.TemporaryDirectory(dir=root) as place:
        canary, folder = Path(place) / "canary", Path(place) / "model"
        shutil.copytree(honest, folder)
        poison(folder, canary)
        store = ModelStore(Path(place) / "w", PROJECT_ROOT / "presets", endpoint=hub.endpoint)
        ways: list[tuple[str, Callable[[], Path]]] = [
            ("folder", lambda: store.resolve(str(folder))),
        ]
        if name not in LOCAL_ONLY:
            hub.models["evil/model"] = FakeModel(files_of(folder))
            ways.append(("hub", lambda: store.download("evil/model")))
        for way, import_it in ways:
            expected = ACCEPTED if way == "hub" and name in HARMLESS_FROM_HUB else wanted
            began_s = time.monotonic()
            with watched(root) as seen:
                try:
                    verdict, words = judge(import_it)
                except BaseException as error:  # noqa: BLE001 - any other error is a finding
                    verdict, words = "broke", f"{type(error).__name__}: {error}"
            took_s = time.monotonic() - began_s
            told = f"{name!r} from the {way}: {verdict}, {words[:200]!r}, {took_s:.1f} s"
            result.count(verdict)
            result.check(verdict == expected or (expected == EITHER and verdict != "broke"),
                         f"not {expected}: {told}")  # fmt: skip
            result.check(took_s <= VERDICT_S, f"too late: {told}")
            result.check(verdict != REFUSED or len(words) > 30, f"no reason: {told}")
            result.check(not canary.exists() and not seen, f"code ran, {seen[:3]}: {told}")


def main() -> int:
    return run_from_command_line(run, __doc__, trials=25)


if __name__ == "__main__":
    raise SystemExit(main())
