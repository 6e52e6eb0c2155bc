"""The Data tab: a file becomes a data set, is checked, corrected and seen as the model sees it.

Puts its parts together: the components stand in `data_parts`, what handlers share in `data_desk`,
the handlers in `data_import`, `data_rows`, `data_count` and `data_changes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from studio.core.errors import StudioError
from studio.ui.data_changes import wire_changes
from studio.ui.data_count import wire_count
from studio.ui.data_desk import Desk, dataset_choices, failed, open_dataset, shown
from studio.ui.data_import import wire_import
from studio.ui.data_look import Look, TokenBook
from studio.ui.data_parts import DataTab
from studio.ui.data_parts import build_data_tab as build_parts
from studio.ui.data_rows import wire_rows
from studio.ui.errors import shows_errors
from studio.ui.form import Form

if TYPE_CHECKING:
    from studio.services.studio import Studio

__all__ = ["DataTab", "build_data_tab", "dataset_choices", "open_dataset", "wire_data_tab",
           "wire_reopening"]  # fmt: skip


def build_data_tab(studio: Studio, form: Form) -> DataTab:
    """Lay the tab out."""
    return build_parts(dataset_choices(studio), form, read_only=studio.settings.read_only)


def wire_data_tab(studio: Studio, tab: DataTab, form: Form, *, model: Any, book: TokenBook) -> Desk:
    """Connect the tab. `model` renders the rows; the form's `data.path` follows the choice; `book`
    keeps what was counted, for the Train tab as well."""
    desk = Desk(studio, tab, form, model, book)
    wire_import(desk)
    wire_rows(desk)
    wire_count(desk)
    wire_changes(desk)
    return desk


def wire_reopening(desk: Desk, loaded: Any) -> None:
    """A page that is loaded again shows the data set that was open.

    Args:
        loaded: the event after which the form is back; its `data.path` names that data set, or
            the newest one in a browser that has kept nothing.
    """
    datasets = desk.studio.datasets

    @shows_errors
    def on_reopen(kept: Any, **raw: Any) -> list[Any]:
        id = str(kept or "")
        if raw.get("value") or not datasets.has(id):  # something was picked meanwhile; nothing
            return desk.updates()
        try:
            return shown(desk, datasets.get(id), Look.of(raw))
        except StudioError as error:
            return failed(desk, error)

    loaded.then(
        on_reopen, inputs_kwargs={"kept": desk.form.controls["data.path"], **desk.picked()},
        outputs=desk.view(), api_visibility="private", show_progress="hidden",
    )  # fmt: skip
