"""The catalogue's figures against the models that its configs build."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from studio.backend.shapes import describe_adapter, read_shape
from studio.core.catalogue import CARD_GIB, CatalogueModel, load_catalogue
from studio.core.config import LoraSection

FOLDER = Path(__file__).parents[2] / "presets" / "catalogue"
MODELS = load_catalogue(FOLDER)
GIB = 2**30
shape_of = cache(read_shape)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_stated_figures_equal_the_config(model: CatalogueModel):
    shape = shape_of(model.folder)
    assert shape.total_params == model.params
    assert shape.context_tokens == model.context


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_stated_card_is_the_smallest_that_holds_qlora(model: CatalogueModel):
    """The formula of catalogue.yaml, with an error of about a quarter."""
    shape = shape_of(model.folder)
    linear = sum(layer.weights for layer in shape.linear)
    adapter = describe_adapter(shape, LoraSection(r=16))["trainable_params"]
    needed = (
        0.516 * linear + 2 * (shape.total_params - linear) + 16 * adapter
    ) / GIB + 1.5  # fmt: skip
    assert model.vram_gib == next(card for card in CARD_GIB if needed <= 0.93 * card)


def test_every_card_has_a_model_and_the_list_is_short():
    assert {model.vram_gib for model in MODELS} == set(CARD_GIB)
    assert len(MODELS) <= 8
    assert [m.params for m in MODELS] == sorted(m.params for m in MODELS)
