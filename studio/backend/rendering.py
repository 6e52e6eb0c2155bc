"""One example as a reader should see it: the tokens, which are learned and which are cut.

Owns the shape of the answer for the preview. What a token is and whether it is learned comes from
`backend.tokenize`, the trainer's own code. Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from studio.backend.end_token import end_token_report
from studio.backend.tokenize import IGNORED, Encoded, encode_example
from studio.core.errors import DatasetError, ModelError
from studio.core.examples import RowProblem


def load_tokenizer(model_path: Path) -> Any:
    """The tokenizer of a local model folder; never runs code of the folder. Raises ModelError."""
    try:
        return AutoTokenizer.from_pretrained(
            str(model_path), trust_remote_code=False, local_files_only=True
        )
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    # The tokenizers library raises plain Exception for a damaged file, and a panic that is none.
    except BaseException as error:
        raise ModelError(
            "The model's tokenizer cannot be loaded", value=str(model_path),
            remedy=f"Check its tokenizer files ({str(error)[:200]})",
        ) from error  # fmt: skip


def render_example(
    tokenizer: Any,
    example: Mapping[str, Any],
    *,
    loss_on: str,
    max_length: int,
    system_prompt: str | None,
    max_shown: int,
    stop_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """Text and tokens of one record of `data.jsonl`.

    Args:
        max_shown: at most so many tokens are listed; the counts are of all.
        stop_ids: on which the model's own settings end an answer, beside the tokenizer's.

    Raises:
        DatasetError: the row cannot be rendered.
    """
    try:
        encoded = encode_example(
            tokenizer, example, loss_on=loss_on, max_length=max_length, system_prompt=system_prompt
        )
    except RowProblem as problem:
        raise DatasetError(
            f"This row cannot be used: {problem.reason}", remedy=problem.remedy
        ) from problem
    tokens = _tokens(tokenizer, encoded)
    return {
        "text": encoded.text,
        "tokens": tokens[:max_shown],
        "trained_tokens": encoded.trained_tokens,
        "total_tokens": len(tokens),
        "cut_tokens": encoded.cut_tokens,
        "end_token": end_token_report(tokenizer, encoded, stop_ids),
    }


def _tokens(tokenizer: Any, encoded: Encoded) -> list[dict[str, Any]]:
    """One entry a token; the pieces of text put together give the whole text again.

    A character that takes several tokens stands at the first of them, the others are empty.
    A token that has no characters (a beginning-of-text that the tokenizer adds) shows its name.
    """
    special_ids = set(tokenizer.all_special_ids)
    special_ids.update(
        token_id for token_id, token in getattr(tokenizer, "added_tokens_decoder", {}).items()
        if token.special
    )  # fmt: skip
    kept = len(encoded.input_ids)
    tokens: list[dict[str, Any]] = []
    position = 0
    for index, token_id in enumerate([*encoded.input_ids, *encoded.cut_ids]):
        start, end = encoded.offsets[index]
        if start == end:
            text = str(tokenizer.convert_ids_to_tokens(token_id))
        else:
            text = encoded.text[position:end]
            position = max(position, end)
        trained = index < kept and index > 0 and encoded.labels[index] != IGNORED
        tokens.append({
            "id": token_id, "text": text, "trained": trained,
            "special": token_id in special_ids, "cut": index >= kept,
        })  # fmt: skip
    return tokens
