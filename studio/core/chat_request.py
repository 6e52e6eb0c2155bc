"""What a chat question may contain: messages and sampling, checked before a model sees them.

Pure. The page's controls and the command line's options take their ranges from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.core.config import knob
from studio.core.errors import ConfigError
from studio.core.examples import ROLES, USER, Message

Which = Literal["both", "base", "adapter"]
MAX_MESSAGES = 400
MAX_MESSAGE_CHARS = 400_000


class ChatRequest(BaseModel):
    """One question. `temperature` 0 is greedy: the same answer every time."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    messages: list[dict[str, str]] = Field(min_length=1, max_length=MAX_MESSAGES)
    which: Which = "both"
    temperature: float = knob(
        0.0, "Temperature", "0: always the likeliest token, so that answers can be compared; "
        "higher: more varied.", ge=0.0, le=2.0, widget="slider",
    )  # fmt: skip
    top_p: float = knob(
        1.0, "Top-p", "Draw only from the likeliest tokens that together have this probability.",
        gt=0.0, le=1.0, widget="slider",
    )  # fmt: skip
    max_tokens: int = knob(
        256, "Max tokens", "Answers longer than this are cut, and marked so.", unit="tokens",
        ge=1, le=8192,
    )  # fmt: skip
    seed: int = knob(
        0, "Seed", "Same seed, same answer; both sides draw with the same.", ge=0, le=2**31 - 1
    )

    @property
    def sides(self) -> tuple[str, ...]:
        """Which answers are wanted, in the order they are shown."""
        return ("base", "adapter") if self.which == "both" else (self.which,)


def parse_chat_request(values: Mapping[str, Any]) -> ChatRequest:
    """Check a question. Raises ConfigError that names every wrong value at once."""
    try:
        request = ChatRequest.model_validate(dict(values))
    except ValidationError as error:
        issues = {
            str(item["loc"][0]) if item["loc"] else "chat": _sentence(item)
            for item in error.errors(include_url=False)
        }
        raise ConfigError("; ".join(issues.values()), issues=issues) from error
    _check_messages(request.messages)
    return request


def _sentence(item: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in item["loc"]) or "chat"
    return f"{name}={repr(item.get('input'))[:80]} is not allowed; {item['msg']}"


def _check_messages(messages: list[Message]) -> None:
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ConfigError(
                f"Message {number} has an unknown role", value=role, allowed=", ".join(ROLES)
            )
        if content is None or len(content) > MAX_MESSAGE_CHARS:
            raise ConfigError(
                f"Message {number} has no text or too much of it",
                allowed=f"up to {MAX_MESSAGE_CHARS} characters",
            )
    if messages[-1]["role"] != USER or not messages[-1]["content"].strip():
        raise ConfigError("There is no question to answer", remedy="Write a message first")
