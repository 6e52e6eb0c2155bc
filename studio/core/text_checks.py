"""What can be wrong inside one text: control characters, broken encodings, secrets, e-mails.

Owns the patterns, the cheap tests that come before them, and the repair of what can be repaired.
Each pattern is held to few false alarms: a warning that is wrong half the time is not read.
Knows nothing of rows, files or checks.

A text of a million rows passes through here, so nothing runs a general pattern over all of it:
byte tables and substring searches decide first, patterns look at what they found.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Invisible or layout-breaking: C0 but tab, line feed and carriage return; DEL.
_CONTROL_BYTES = bytes([*range(9), 11, 12, *range(14, 32), 127])
# C1, zero width space, byte order mark inside a text, direction overrides ("Trojan source").
# Joiners and direction marks stay out: Persian, Hindi, emoji and Hebrew need them.
_WIDE = "\u0080-\u009f\u200b\ufeff\u202a-\u202e"
_WIDE_CONTROL = re.compile(f"[{_WIDE}]")
_ANY_CONTROL = re.compile(f"[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f{_WIDE}]")

# UTF-8 that was read as Windows-1252 or Latin-1. A continuation byte shows as one of these:
_LATIN = "\u0080-\u00bf"
_CP1252 = "\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2020-\u2022\u2030\u2039"
_QUOTES = "\u2013\u2014\u2018-\u201a\u201c-\u201e\u2026\u203a\u20ac\u2122"
_TAIL = f"[{_LATIN}{_CP1252}{_QUOTES}]"
_MOJIBAKE = re.compile(
    # One set of first characters, so that the search skips all others fast.
    "[\u00c2\u00c3\u00ce-\u00d1\u00d7-\u00d9\u00e2-\u00f0](?:"
    # C3/C2 + continuation: accented Latin letters, degree sign, no-break space.
    f"(?<=[\u00c2\u00c3])[{_LATIN}{_CP1252}]"
    # The same with a tail that is a usual quote or dash: only where no letter stands before it,
    # so that a Portuguese word in capitals that ends in A-tilde and a quote passes.
    f"|(?<=\u00c3)(?<![^\\W\\d_]\u00c3)[{_QUOTES}]"
    # E2 80: typographic quotes, dashes, ellipsis. F0 9F: emoji. EF BB BF: a byte order mark.
    "|(?<=\u00e2)[\u20ac\u0080]|(?<=\u00f0)[\u0178\u009f]|(?<=\u00ef)\u00bb\u00bf"
    # CE/CF, D0/D1, D7 to D9 pairs: Greek, Cyrillic, Hebrew, Arabic. E3..E9 triples: Chinese,
    # Japanese. Two in a row each: one alone can be a Western letter before a quote.
    f"|(?<=[\u00ce-\u00d1\u00d7-\u00d9]){_TAIL}[\u00ce-\u00d1\u00d7-\u00d9]{_TAIL}"
    f"|(?<=[\u00e3-\u00e9]){_TAIL}{{2}}[\u00e3-\u00e9]{_TAIL}{{2}})"
)
_MOJIBAKE_RUN = re.compile(f"(?:[\u00c2-\u00f4]{_TAIL}+)+")
_LOST = "\ufffd"
_SURROGATE = re.compile("[\ud800-\udfff]")

_EMAIL_BEFORE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}\Z")
_EMAIL_AFTER = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,6}[A-Za-z]{2,24}(?![A-Za-z0-9_-])"
)
# Reserved for documentation (RFC 2606), file names such as icon@2x.png, and the git login.
_NO_EMAIL_ENDS = ("example.com", "example.org", "example.net", ".example", ".invalid", ".test",
                  ".localhost", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".css", ".js",
                  ".py", ".html")  # fmt: skip
_NO_EMAIL_STARTS = ("example", "yourdomain", "yourcompany", "domain.")
_NO_EMAIL_NAMES = ("git",)

SECRET_MARK, EMAIL_MARK = "[secret removed]", "[e-mail removed]"


@dataclass(frozen=True)
class SecretKind:
    """One shape of secret.

    Attributes:
        title: how messages call it; the secret itself is never shown.
        triggers: lower-case pieces, one of which every match contains.
        pattern: the shape; a group named `value` is what counts, else the whole match.
        must_look_random: the value is judged by `_looks_random` too.
    """

    title: str
    triggers: tuple[str, ...]
    pattern: re.Pattern[str]
    must_look_random: bool = False


def _kind(title: str, triggers: str, pattern: str, *, random: bool = False) -> SecretKind:
    return SecretKind(title, tuple(triggers.split("|")), re.compile(pattern), random)


# Prefixes that their issuers chose in order to be found; lengths and alphabets as issued, so prose
# and shortened examples ("sk-...", "ghp_xxx") pass.
TOKENS = (
    _kind("private key", "private key-----",
          r"-----BEGIN (?:[A-Z]{2,10} ){0,2}PRIVATE KEY-----\s*[A-Za-z0-9+/=\\]"),
    # Base 32 by design; the documented example key ends in EXAMPLE.
    _kind("AWS access key", "akia|asia", r"\b(?:AKIA|ASIA)(?![A-Z2-7]{9}EXAMPLE)[A-Z2-7]{16}\b"),
    _kind("GitHub token", "ghp_|gho_|ghu_|ghs_|ghr_",
          r"\b(?P<value>gh[pousr]_[A-Za-z0-9]{36,255})\b", random=True),
    _kind("GitHub token", "github_pat_", r"\bgithub_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}\b"),
    _kind("GitLab token", "glpat-", r"\b(?P<value>glpat-[A-Za-z0-9_-]{20,})", random=True),
    _kind("Hugging Face token", "hf_", r"\b(?P<value>hf_[A-Za-z0-9]{30,40})\b", random=True),
    # OpenAI and those who took its prefix; "sk-learn" and "sk-proj-..." are too short.
    _kind("API key (sk-...)", "sk-",
          r"(?<![A-Za-z0-9])(?P<value>sk-(?:[A-Za-z0-9]{40,}|(?:proj|svcacct|admin|ant|or)-"
          r"[A-Za-z0-9_-]{32,}))", random=True),
    _kind("payment key (Stripe)", "_live_", r"\b(?P<value>[sr]k_live_[A-Za-z0-9]{20,})\b",
          random=True),
    _kind("Slack token", "xox",
          r"\b(?P<value>xox[abeoprs]-(?:[0-9A-Za-z]+-){1,4}[0-9A-Za-z]{12,})", random=True),
    _kind("Slack webhook", "hooks.slack.com",
          r"hooks\.slack\.com/services/(?P<value>T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{20,})",
          random=True),
    _kind("Google API key", "aiza", r"\b(?P<value>AIza[0-9A-Za-z_-]{35})(?![0-9A-Za-z_-])",
          random=True),
    _kind("Google client secret", "gocspx-", r"\b(?P<value>GOCSPX-[0-9A-Za-z_-]{28})", random=True),
    _kind("npm token", "npm_", r"\b(?P<value>npm_[A-Za-z0-9]{36})\b", random=True),
    # Header and payload are JSON objects, so both begin with eyJ.
    _kind("JSON web token", "eyj",
          r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{16,}"),
    # "a bearer of good news" has no random word of 20 characters.
    _kind("bearer token", "bearer ", r"\b[Bb]earer\s+(?P<value>[A-Za-z0-9._~+/-]{20,}=*)",
          random=True),
)  # fmt: skip
_IN_ADDRESS = _kind(
    "password in an address", "://",
    r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>]{1,64}:(?P<value>[^\s/@\"'<>]{6,128})@[\w.-]+",
    random=True,
)  # fmt: skip
# A value is assigned, without blanks, and mixes letters with digits: "password: ask Bob",
# "password=$PASSWORD" and "Password: ********" pass.
_ASSIGNED = _kind(
    "password or key that is assigned",
    "passw|secret|apikey|api-key|api_key|access_token|auth_token|access_key",
    # Matched against lower case; one set of first letters, so that the search skips the others.
    r"[psa](?:(?<=p)assw(?:or)?d|(?<=s)ecret(?:_?key|_access_key)?|(?<=a)pi[_-]?key|"
    r"(?<=a)ccess_(?:key|token)|(?<=a)uth_token)[\"']?\s{0,3}(?::|=(?!=)|:=)\s{0,3}[\"']?"
    r"(?P<value>[^\s\"'<>,;(){}\[\]$]{8,256})(?![(\[{$\w])", random=True,
)  # fmt: skip
# Bytes that tokens are made of, and the shortest run of them in a token of TOKENS, each as an "a".
TOKEN_BYTES = frozenset(
    byte for byte in range(128) if chr(byte).isalnum() or byte in b"_-+/=.~"
)  # fmt: skip
TOKEN_RUN = b"a" * 20
# One table answers two questions: control characters become "!", bytes that tokens are made of "a"
# and the rest blanks. Searches for "!" and for a run of "a" are fast.
_CLASSES = bytes(
    ord("!") if byte in _CONTROL_BYTES
    else ord("a") if byte in TOKEN_BYTES
    else ord(" ")
    for byte in range(256)
)  # fmt: skip
_NOT_SECRET = re.compile(
    r"(?i)your|example|placeholder|changeme|xxx|\*\*|\.\.\.|test|dummy|sample|redacted|1234|"
    r"abcd|process\.env|environ|getenv|os\.|https?:|null|none|undefined|string"
)
MIN_ENTROPY_BITS = 2.5  # a character; "aaaaaaaa1" has 0.5, a random word of ten about 3.2


def quick_look(data: bytes) -> tuple[bool, bool]:
    """Whether a text, given in UTF-8, (has control characters of ASCII, may hold a secret).

    The first is certain. The second is a cheap test that passes whatever `secrets_in` would find.
    """
    classes = data.translate(_CLASSES)
    return b"!" in classes, TOKEN_RUN in classes or _may_assign(data)


def _may_assign(data: bytes) -> bool:
    if b":" not in data and b"=" not in data:
        return False
    if b"@" in data and b"://" in data:
        return True
    low = data.lower()
    if b"passw" in low or b"secret" in low or b"apikey" in low or b"api-key" in low:
        return True
    return b"_" in data and (b"_key" in low or b"_token" in low)


def has_wide_control(text: str) -> bool:
    """Whether invisible characters beyond ASCII are in a text."""
    return _WIDE_CONTROL.search(text) is not None


def control_characters(text: str) -> list[str]:
    """The control characters of a text in order, as "U+0007"."""
    return [f"U+{ord(found):04X}" for found in _ANY_CONTROL.findall(text)]


def without_control(text: str) -> str:
    """The text with control characters removed; a form feed or vertical tab becomes a new line."""
    return _ANY_CONTROL.sub("", text.replace("\f", "\n").replace("\v", "\n"))


def broken_encoding(text: str) -> str | None:
    """What is broken in the encoding of a text, as a clause; None where nothing is."""
    if text.isascii():
        return None
    if _LOST in text or not _encodes(text):
        return "characters were lost (U+FFFD or half a surrogate pair)"
    found = _MOJIBAKE.search(text)
    if found is None:
        return None
    shown = text[max(0, found.start() - 8) : found.end() + 8]
    return f"UTF-8 was read as another encoding: {shown!r}"


def _encodes(text: str) -> bool:
    """False where half a surrogate pair stands in the text."""
    return _SURROGATE.search(text) is None


def repaired_encoding(text: str) -> str:
    """The text with mis-read UTF-8 turned back, twice where it went wrong twice.

    What decodes is repaired; the rest, and lost characters, stay as they are.
    """
    for _ in range(2):
        if text.isascii() or _MOJIBAKE.search(text) is None:
            break
        text = _MOJIBAKE_RUN.sub(_decoded_again, text)
    return text


def _decoded_again(found: re.Match[str]) -> str:
    run = found.group()
    try:
        return bytes(_cp1252_byte(char) for char in run).decode("utf-8")
    except ValueError:  # not UTF-8 after all, or a character no encoding has in one byte
        return run


def _cp1252_byte(char: str) -> int:
    """The byte that reads as this character; bytes that Windows-1252 lacks read as Latin-1."""
    code = ord(char)
    return char.encode("cp1252")[0] if code > 0xFF else code


def secrets_in(text: str) -> Iterator[tuple[str, int, int]]:
    """(kind, start, end) of what is likely a secret."""
    if not quick_look(text.encode("utf-8", "surrogatepass"))[1]:
        return
    low = _lower(text)
    if "@" in text and "://" in text:
        yield from _found(_IN_ADDRESS, text)
    if any(map(low.__contains__, _ASSIGNED.triggers)):
        yield from _found(_ASSIGNED, text, low)
    for kind in TOKENS:
        if any(map(low.__contains__, kind.triggers)):
            yield from _found(kind, text)


def _lower(text: str) -> str:
    """The text in lower case, character by character, so that positions stay the same."""
    low = text.lower()
    if len(low) == len(text):
        return low
    return "".join(one if len(one := char.lower()) == 1 else char for char in text)


def _found(kind: SecretKind, text: str, searched: str = "") -> Iterator[tuple[str, int, int]]:
    """Matches in `searched` (by default the text); what is judged stands in the text."""
    group = "value" if kind.must_look_random else 0
    for found in kind.pattern.finditer(searched or text):
        start, end = found.span(group)
        if not kind.must_look_random or _looks_random(text[start:end]):
            yield kind.title, start, end


def _looks_random(value: str) -> bool:
    """Letters and digits mixed, no placeholder, and not a few characters repeated."""
    if not any(map(str.isdigit, value)) or not any(map(str.isalpha, value)):
        return False
    if _NOT_SECRET.search(value):
        return False
    size = len(value)
    entropy = -sum(n / size * math.log2(n / size) for n in Counter(value).values())
    return entropy >= MIN_ENTROPY_BITS


def emails_in(text: str) -> Iterator[tuple[str, int, int]]:
    """(domain, start, end) of each e-mail address."""
    at = text.find("@")
    while at >= 0:
        before = _EMAIL_BEFORE.search(text, max(0, at - 64), at)
        after = _EMAIL_AFTER.match(text, at + 1, at + 256) if before else None
        if before and after:
            domain = after.group().lower()
            if not (
                domain.endswith(_NO_EMAIL_ENDS)
                or domain.startswith(_NO_EMAIL_STARTS)
                or before.group() in _NO_EMAIL_NAMES
            ):
                yield domain, before.start(), after.end()
        at = text.find("@", at + 1)


def _replaced(text: str, spans: Iterator[tuple[str, int, int]], mark: str) -> str:
    parts, end = [], 0
    for _, start, stop in sorted(spans, key=lambda span: span[1]):
        if start >= end:
            parts += [text[end:start], mark]
            end = stop
        end = max(end, stop)
    return "".join([*parts, text[end:]])


def without_secrets(text: str) -> str:
    """The text with a mark in place of each likely secret."""
    return _replaced(text, secrets_in(text), SECRET_MARK)


def without_emails(text: str) -> str:
    """The text with a mark in place of each e-mail address."""
    return _replaced(text, emails_in(text), EMAIL_MARK)


# What one click can put right inside a text, by check.
CLEANERS: dict[str, Callable[[str], str]] = {
    "control_characters": without_control,
    "broken_encoding": repaired_encoding,
    "secret": without_secrets,
    "email": without_emails,
}
