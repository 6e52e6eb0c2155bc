"""The Data tab: a file becomes a data set, is checked, corrected and seen as the model sees it.

Puts its parts together: the components stand in `data_parts`, what handlers share in `data_desk`,
the handlers in `data_import`, `data_rows`, `data_count` and `data_changes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from studio.ui.data_changes import wire_changes
from studio.ui.data_count import wire_count
from studio.ui.data_desk import Desk, dataset_choices, open_dataset
from studio.ui.data_import import wire_import
from studio.ui.data_parts import DataTab
from studio.ui.data_parts import build_data_tab as build_parts
from studio.ui.data_rows import wire_rows
from studio.ui.form import Form

if TYPE_CHECKING:
    from studio.services.studio import Studio

__all__ = ["DataTab", "build_data_tab", "dataset_choices", "open_dataset", "wire_data_tab"]


def build_data_tab(studio: Studio, form: Form) -> DataTab:
    """Lay the tab out."""
    return build_parts(dataset_choices(studio), form, read_only=studio.settings.read_only)


def wire_data_tab(studio: Studio, tab: DataTab, form: Form, *, model: Any) -> None:
    """Connect the tab. `model` renders the rows; the form's `data.path` follows the choice."""
    desk = Desk(studio, tab, form, model)
    wire_import(desk)
    wire_rows(desk)
    wire_count(desk)
    wire_changes(desk)
