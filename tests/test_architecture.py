"""The house rules that a machine can hold: layers, imports, sizes, forbidden calls, pins, docs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.bootstrap import canonical, read_pins, requirement_files

ROOT = Path(__file__).resolve().parent.parent
STUDIO = ROOT / "studio"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

TORCH_STACK = {"torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate"}
STDLIB = set(sys.stdlib_module_names)

# Which third-party modules a layer may import, and which layers of ours.
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "core": ({"pydantic", "yaml"}, {"core"}),
    "hardware": ({"psutil", "filelock", "pynvml", "pydantic", "yaml"}, {"core", "hardware"}),
}
NO_BACKEND = ("services", "ui")
PARENTS_OF_UI = {"app.py", "studio/server.py"}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "base"}
MODULE_OF_PACKAGE = {"pyyaml": "yaml", "nvidia-ml-py": "pynvml", "pytest-xdist": "xdist"}
# Command-line programs and plug-ins that no file imports.
NOT_IMPORTED = {"ruff", "pytest-xdist"}
# Needed by a package of ours at run time without an import of ours, with the reason.
NEEDED_INDIRECTLY = {
    "accelerate": "transformers' Trainer runs on it",
    "bitsandbytes": "transformers loads 4-bit models with it",
    "uvicorn": "serves the page",
    "nvidia-ml-py": "hardware/nvml.py loads its module pynvml late, by name",
    "datasets": "TRL's trainer takes its data sets",
    "plotly": "studio/api.py serves its bundled script, found without importing it",
}


def python_files(*folders: str) -> list[Path]:
    found = [ROOT / "app.py"] if "app.py" in folders else []
    for folder in folders:
        found += sorted((ROOT / folder).rglob("*.py")) if (ROOT / folder).is_dir() else []
    return [path for path in found if path.is_file()]


OURS = python_files("app.py", "studio")
ALL = python_files("app.py", "studio", "tests", "presets", "benchmarks", "docs")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Dotted names that a module imports anywhere in it, with their line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def layer_of(dotted: str) -> str | None:
    """ "core" of "studio.core.config"; None for what is not ours or lies on the top level."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "studio" and len(parts) > 1 else None


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_pure_layers_import_only_what_they_may(layer: str) -> None:
    allowed, own_layers = LAYERS[layer]
    wrong = []
    for path in python_files(f"studio/{layer}"):
        for name, line in imports(parse(path)):
            top = name.partition(".")[0]
            if top == "studio":
                if layer_of(name) not in own_layers:
                    wrong.append(f"{relative(path)}:{line} imports {name}")
            elif top not in STDLIB | allowed | {"__future__"}:
                wrong.append(f"{relative(path)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_upward() -> None:
    forbidden = {
        "backend": {"services", "ui", "server", "cli"},
        "services": {"backend", "ui", "server", "cli"},
        "ui": {"backend", "server", "cli"},
    }
    wrong = [
        f"{relative(path)}:{line} imports {name}"
        for layer, above in forbidden.items()
        for path in python_files(f"studio/{layer}")
        for name, line in imports(parse(path))
        if layer_of(name) in above
    ]
    assert not wrong, "\n".join(wrong)


def test_the_torch_stack_lives_in_the_backend_alone() -> None:
    wrong = [
        f"{relative(path)}:{line} imports {name}"
        for path in OURS
        if "studio/backend/" not in relative(path)
        for name, line in imports(parse(path))
        if name.partition(".")[0] in TORCH_STACK
    ]
    assert not wrong, "\n".join(wrong)


def test_gradio_and_plotly_live_in_the_page_alone() -> None:
    wrong = [
        f"{relative(path)}:{line} imports {name}"
        for path in OURS
        if "studio/ui/" not in relative(path) and relative(path) != "studio/server.py"
        for name, line in imports(parse(path))
        if name.partition(".")[0] in {"gradio", "plotly"}
    ]
    assert not wrong, "\n".join(wrong)


def test_set_up_needs_the_standard_library_alone() -> None:
    for name in ("bootstrap.py", "torch_choice.py"):
        tops = {found.partition(".")[0] for found, _ in imports(parse(STUDIO / name))}
        assert tops <= STDLIB | {"studio", "__future__"}


def test_modules_have_telling_names() -> None:
    wrong = [relative(path) for path in OURS if path.stem in FORBIDDEN_NAMES]
    assert not wrong


@pytest.mark.parametrize("path", OURS, ids=relative)
def test_files_and_functions_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{relative(path)} has {lines} lines"
    long = [
        f"{node.name}: {length} lines"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long, f"{relative(path)}: {long}"


@pytest.mark.parametrize("path", OURS, ids=relative)
def test_modules_have_a_docstring(path: Path) -> None:
    assert ast.get_docstring(parse(path)), f"{relative(path)} does not say what it owns"


def called_names(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


# call -> the only file that may make it (None: nobody)
FORBIDDEN_CALLS: dict[str, str | None] = {
    "eval": None,
    "exec": None,
    "os.system": None,
    "yaml.load": None,
    "yaml.unsafe_load": None,
    "torch.load": "studio/backend/checkpoints.py",
    "pickle.load": None,
    "pickle.loads": None,
    "gr.State": None,
    "gr.BrowserState": None,
    "gr.Plot": None,
}


@pytest.mark.parametrize("path", OURS, ids=relative)
def test_forbidden_calls(path: Path) -> None:
    wrong = []
    for name, node in called_names(parse(path)):
        if name in FORBIDDEN_CALLS and FORBIDDEN_CALLS[name] != relative(path):
            wrong.append(f"line {node.lineno}: {name}")
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else "dynamic"
            if keyword.arg in ("shell", "trust_remote_code") and value is not False:
                wrong.append(f"line {node.lineno}: {keyword.arg}={value}")
            is_pipe = keyword.arg == "stdout" and ast.unparse(keyword.value).endswith("PIPE")
            if is_pipe and "Popen" in name and relative(path) not in PIPE_READERS:
                wrong.append(f"line {node.lineno}: a child must not write to a pipe of ours")
    assert not wrong, f"{relative(path)}: {wrong}"


# A child with a pipe dies or freezes with its reader; these read it to its end before they go on.
PIPE_READERS = {"studio/bootstrap.py", "studio/backend/templates.py"}


def test_no_swallowed_error() -> None:
    """`except ...: pass` needs a comment that says why nothing is to be done."""
    wrong = []
    for path in OURS:
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            if node.type is None:
                wrong.append(f"{relative(path)}:{node.lineno} bare except")
            if len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
                around = "".join(lines[node.lineno - 2 : node.body[0].lineno + 1])
                if "#" not in around:
                    wrong.append(f"{relative(path)}:{node.lineno} swallowed without a reason")
    assert not wrong, "\n".join(wrong)


def test_each_third_party_import_is_pinned_and_each_pin_is_used() -> None:
    pins = read_pins(requirement_files(ROOT, "dev"))
    module_of = {
        name: MODULE_OF_PACKAGE.get(name, canonical(name).replace("-", "_")) for name in pins
    }
    tops = {
        name.partition(".")[0]: relative(path) for path in ALL for name, _ in imports(parse(path))
    }
    # Scripts and test modules that import each other by bare name.
    scripts_beside = {path.stem for path in ALL if path not in OURS}
    third_party = {
        top: path
        for top, path in tops.items()
        if top not in STDLIB | {"studio", "tests", "benchmarks", "__future__", "app", ""}
        and top not in scripts_beside
    }
    # These come with torch, transformers, fastapi, gradio and pydantic, in versions those pin.
    carried = {"numpy", "tokenizers", "starlette", "gradio_client", "jinja2", "annotated_types"}
    unpinned = set(third_party) - set(module_of.values()) - carried
    assert not unpinned, {top: third_party[top] for top in unpinned}
    unused = {
        name
        for name, module in module_of.items()
        if module not in third_party and name not in NOT_IMPORTED | set(NEEDED_INDIRECTLY)
    }
    assert not unused, f"pinned but imported nowhere: {unused}"


def tracked_text_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False, text=True
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    texts = {".py", ".md", ".yaml", ".toml", ".txt", ".json", ".js", ".css", ".html", ""}
    return [
        ROOT / name
        for name in listed.stdout.split("\0")
        if name and Path(name).suffix in texts and (ROOT / name).is_file()
    ]


def test_no_text_knows_the_machine_it_was_written_on() -> None:
    # Put together here, so that this file itself passes.
    places = [f"/{folder}/" for folder in ("work", "opt/v", "opt/wheels", "opt/pypi")]
    outside = re.compile("|".join(rf"(?<![\w.]){re.escape(place)}" for place in places))
    wrong = []
    for path in tracked_text_files():
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
            if outside.search(line):
                wrong.append(f"{relative(path)}:{number}: {line.strip()[:80]}")
    assert not wrong, "\n".join(wrong)


def test_code_is_ascii_and_has_no_leftovers() -> None:
    leftover = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    wrong = []
    for path in OURS:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if leftover.search(line):
                wrong.append(f"{relative(path)}:{number}: {line.strip()[:60]}")
            if not line.isascii() and "studio/ui/" not in relative(path):
                wrong.append(f"{relative(path)}:{number}: not ASCII")
    assert not wrong, "\n".join(wrong)


def test_core_imports_fast() -> None:
    """Less than 0.3 s on idle cores; the bound here leaves room for busy ones."""
    code = "import time; t = time.perf_counter(); import studio.core.config_io; " \
        "print(time.perf_counter() - t)"  # fmt: skip
    times = [
        float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                             text=True, check=True).stdout)
        for _ in range(2)
    ]  # fmt: skip
    assert min(times) < 1.5, f"core takes {min(times):.2f} s to import"
