"""`python -m studio ...`: everything the page can do, without a browser.

Owns arguments, output and exit codes: 0 done, 1 failed (one line on stderr), 2 usage, 130 stopped.
`--json` prints one object on stdout. The work is done by the services; heavy modules are imported
by the command that needs them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.cli_chat import chat
from studio.cli_data import data_app
from studio.cli_models import models_app
from studio.cli_plan import plan
from studio.cli_render import render
from studio.cli_token import token_app
from studio.core.config_io import build_config, load_config, merge
from studio.core.errors import StudioError

if TYPE_CHECKING:
    from studio.core.config import RunConfig
    from studio.core.runs import RunPaths
    from studio.services.settings import Settings
    from studio.services.store import RunStore
    from studio.services.summary import RunSummary

Workspace = Annotated[
    Path | None,
    typer.Option("--workspace", help="Folder of all data (default: ./workspace)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting.")
]

app = typer.Typer(
    name="studio", help="LoRA Studio without a browser.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
runs_app = typer.Typer(help="Runs of a workspace.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(runs_app, name="runs")
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
app.add_typer(token_app, name="token")
data_app.command("render")(render)
app.command("chat")(chat)
app.command("plan")(plan)


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code; a problem is one line on stderr."""
    try:
        app(args=arguments, prog_name="python -m studio")
    except StudioError as error:
        sys.stderr.write("Error: " + " ".join(str(error).split()) + "\n")
        return 1
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def settings_for(workspace: Path | None) -> Settings:
    """Settings on a workspace that exists afterwards."""
    from studio.services.settings import Settings, choose_workspace, prepare_workspace

    chosen = choose_workspace(workspace)
    prepare_workspace(chosen)
    return Settings(workspace=chosen)


def store_for(workspace: Path | None) -> RunStore:
    """The runs of a workspace."""
    from studio.services.store import RunStore

    return RunStore(settings_for(workspace).workspace)


def store_to_read(workspace: Path | None) -> RunStore:
    """The runs of a workspace that is only looked at: it may be on a disk that takes no writes."""
    from studio.services.settings import choose_workspace, is_writable, refuse_no_folder
    from studio.services.store import RunStore

    chosen = choose_workspace(workspace)
    refuse_no_folder(chosen)
    if chosen.exists() and not is_writable(chosen):
        sys.stderr.write(f"Note: {chosen} cannot be written to; it is shown read-only.\n")
    return RunStore(chosen, create=False)


def print_json(value: Any) -> None:
    """One object on stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file: a config or a preset.")],
    overrides: Overrides = [],  # noqa: B006 - typer reads it, nobody changes it
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    warm_start: Annotated[
        str | None,
        typer.Option(metavar="RUN[@STEP]", help="Begin with the weights of an earlier run."),
    ] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Train in the foreground. Ctrl-C once: save and stop; twice: at once."""
    from studio.core.runs import read_json
    from studio.services.runs import create_run
    from studio.services.studio import build_parts

    wanted = locate_data(load_config(config, overrides), config.parent)
    parts = build_parts(settings_for(workspace))
    paths = create_run(parts, wanted, name=name, foreground=True, warm_start=warm_start)
    sys.stderr.write(f"Run {paths.id} in {paths.root}\n")
    for warning in (read_json(paths.run_json) or {}).get("warnings") or []:
        sys.stderr.write(f"Warning: {warning}.\n")
    _train_here(parts.runs, paths, as_json)


def locate_data(config: RunConfig, config_folder: Path) -> RunConfig:
    """The config with a relative data.path made absolute: from here, else from the config."""
    path = Path(config.data.path or "").expanduser()
    if not config.data.path or path.is_absolute():
        return config
    for folder in (Path.cwd(), config_folder):
        if (folder / path).exists():
            absolute = str((folder / path).resolve())
            return build_config(merge(config.model_dump(), {"data": {"path": absolute}}))
    return config  # a data set of the workspace, sample:NAME or hf:ID


def _train_here(runs: RunStore, paths: RunPaths, as_json: bool) -> None:
    """Follow one attempt to its end, report it, and leave with its exit code."""
    from studio.cli_memory import advice, diagnose, with_advice
    from studio.services.foreground import Foreground, exit_code_of, outcome
    from studio.services.measured_memory import MeasuredMemory

    run = Foreground(runs).train(paths)
    MeasuredMemory(runs.workspace, runs).refresh()  # the next estimate knows of this run
    found = diagnose(paths.root.parents[1], run)
    if as_json:
        print_json(with_advice(outcome(run, paths), found))
    else:
        print(f"{run.state}: {run.verdict}" if run.verdict else run.state)
        print(f"Adapter: {paths.adapter}" if paths.adapter.is_dir() else "No adapter was saved.")
    if run.error:
        sys.stderr.write("Error: " + " ".join(str(run.error.get("text")).split()) + "\n")
    if found is not None:
        sys.stderr.write(advice(found) + "\n")
    raise typer.Exit(exit_code_of(run))


@runs_app.command("list")
def list_runs(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """All runs, newest first."""
    from studio.services.summary import to_row

    runs = store_to_read(workspace).list()
    if as_json:
        print_json({"runs": [to_row(run) for run in runs]})
        return
    for run in runs:
        print(_line(run))
    if not runs:
        print("No runs yet. Start one with: python -m studio train presets/first-run.yaml")


def _line(run: RunSummary) -> str:
    loss = f"eval {run.eval_loss:.3f}" if run.eval_loss is not None else ""
    where = f"{run.step}/{run.total_steps}"
    line = f"{run.id}  {run.shown_state:<11} {where:>9}  {run.method:<14} {loss:<11} {run.name}"
    return f"{line}\n    {run.stalled.text} {run.stalled.remedy}" if run.stalled else line


@runs_app.command("show")
def show_run(
    run_id: Annotated[str, typer.Argument(metavar="ID")],
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """One run with its settings and figures."""
    from studio.services.summary import to_detail

    detail = to_detail(run := store_to_read(workspace).get(run_id))
    if as_json:
        print_json(detail)
        return
    if run.stalled:
        detail["stalled"] = f"{run.stalled.text} {run.stalled.remedy}"
    if run.ending:
        detail["ending"] = run.ending.text
    for key, value in detail.items():
        if not isinstance(value, dict | list) and value not in (None, ""):
            print(f"{key}: {value}")


RunId = Annotated[
    str | None, typer.Argument(metavar="[ID]", help="The run; by default the one in progress.")
]


@runs_app.command("pause")
def pause_run(run_id: RunId = None, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Save, free the GPU, and wait for `runs resume`."""
    _command(run_id, "pause", workspace, as_json)


@runs_app.command("stop")
def stop_run(
    run_id: RunId = None,
    now: Annotated[
        bool, typer.Option("--now", help="Do not finish the step; kill it if it does not end.")
    ] = False,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Save and end."""
    _command(run_id, "stop_now" if now else "stop", workspace, as_json)


def _command(run_id: str | None, verb: str, workspace: Path | None, as_json: bool) -> None:
    from studio.services.commands import send_command

    store = store_for(workspace)
    run = store.get(run_id) if run_id else _only_live(store)
    paths = store.paths(run.id)
    send_command(paths, verb, run.state)
    killed = verb == "stop_now" and _end_now(paths)
    if as_json:
        print_json({"run_id": run.id, "command": verb, "killed": killed})
    else:
        print(f"{run.id}: {verb} was sent" + ("; it did not end, so it was killed" * killed))


def _end_now(paths: RunPaths) -> bool:
    """End the run's trainer as the page does, which may not be there. Whether it was killed."""
    from studio.hardware.platforms import remove_staged
    from studio.services import launcher
    from studio.services.endings import explain_vanished

    process = launcher.recorded_process(paths)
    if process is None or not launcher.end_now(process, launcher.STOP_GRACE_S):
        return False
    if not process.is_alive():
        remove_staged(paths.root)  # what it had begun to write
        explain_vanished(paths)
    return True


def _only_live(store: RunStore) -> RunSummary:
    from studio.core.errors import StoreError
    from studio.core.runs import ACTIVE_STATES

    live = [run for run in store.list() if run.state in ACTIVE_STATES]
    if len(live) != 1:
        raise StoreError(
            f"{len(live)} runs are in progress", remedy="Name one; `runs list` shows their ids"
        )
    return live[0]


@runs_app.command("resume")
def resume_run(
    run_id: Annotated[str, typer.Argument(metavar="ID")],
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Continue in the foreground from the last checkpoint."""
    from studio.services.supervisor import check_resumable

    store = store_for(workspace)
    check_resumable(store.get(run_id))
    _train_here(store, store.paths(run_id), as_json)


@runs_app.command("delete")
def delete_run(
    run_id: Annotated[str, typer.Argument(metavar="ID")],
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Move a run to the workspace's trash."""
    store = store_for(workspace)
    token = store.delete(run_id)
    if as_json:
        print_json({"run_id": run_id, "trash": str(store.trash / token)})
    else:
        print(f"{run_id} was moved to {store.trash / token}")


@app.command()
def doctor(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """What this machine can do, and why not."""
    from studio.cli_doctor import run_doctor
    from studio.services.settings import choose_workspace

    print(run_doctor(choose_workspace(workspace), as_json=as_json))
