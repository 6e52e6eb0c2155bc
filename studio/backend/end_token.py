"""The token that ends an answer: is it learned, and does generation stop on it?

A model that never learned to end, or that ends with a token nobody stops on, talks until its limit:
the most common complaint about finetuned models. Owns that check of one row. Knows nothing of
batches or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from studio.backend.tokenize import IGNORED, Encoded, stop_token_ids


def end_token_report(
    tokenizer: Any, encoded: Encoded, stop_ids: Sequence[int] = ()
) -> dict[str, Any]:
    """What closes the last answer of a row.

    Args:
        stop_ids: on which the model's generation_config.json ends an answer.

    Returns:
        id, text: the last learned token of the whole row, None where nothing is learned.
        learned: whether a stop token is the last learned token.
        stops: whether generation ends on it.
        cut: whether max_length cuts it off, so that this row does not teach it.
        pad_is_eos: padding and end of text are one token.
        padding_ignored: whether padding teaches nothing. Always true here: padding is masked by
            its place in the batch, never by its number, so an end token that is also the padding
            token stays learned.
        verdict: "ok", "cut", "never_stops" or "nothing_learned". message: a sentence.
    """
    stops = [*dict.fromkeys([*stop_token_ids(tokenizer), *stop_ids])]
    last = _last_learned(tokenizer, encoded.labels)
    found = None if last is None else encoded.input_ids[last]
    at_edge = bool(encoded.labels) and encoded.labels[-1] != IGNORED
    cut = found not in stops and at_edge and bool(encoded.cut_ids)
    pad = tokenizer.pad_token_id
    report = {
        "id": found,
        "text": None if found is None else str(tokenizer.convert_ids_to_tokens(found)),
        "learned": found in stops,
        "stops": found in stops,
        "cut": cut,
        "pad_is_eos": pad is not None and pad == tokenizer.eos_token_id,
        "padding_ignored": True,
        "stop_ids": stops,
    }
    return {**report, **_verdict(report)}


def _last_learned(tokenizer: Any, labels: list[int]) -> int | None:
    """Place of the last learned token; the line end that a template writes behind it, which is
    learned with loss_on="all", does not count."""
    learned = [place for place in range(1, len(labels)) if labels[place] != IGNORED]
    for place in reversed(learned[-4:]):
        if str(tokenizer.decode([labels[place]])).strip():
            return place
    return learned[-1] if learned else None


def _verdict(report: dict[str, Any]) -> dict[str, str]:
    if report["id"] is None:
        return {"verdict": "nothing_learned", "message": "No token of this row is learned."}
    name = report["text"]
    if report["learned"]:
        same = (
            " It is the padding token too; padding is masked by place, so it stays learned."
            if report["pad_is_eos"] else ""
        )  # fmt: skip
        return {
            "verdict": "ok",
            "message": f"The end token {name} is learned, and generation stops on it.{same}",
        }
    if report["cut"]:
        return {
            "verdict": "cut",
            "message": "max_length cuts the end token off: this row does not teach when to stop.",
        }
    return {
        "verdict": "never_stops",
        "message": f"The last learned token is {name}, on which generation does not stop: the "
        "model may talk until its limit.",
    }
