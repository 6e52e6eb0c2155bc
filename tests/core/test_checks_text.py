"""Patterns inside a text: what they find, what they must not find, and what they repair."""

import random
import string
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from studio.core.text_checks import (
    CLEANERS,
    EMAIL_MARK,
    broken_encoding,
    control_characters,
    emails_in,
    has_wide_control,
    quick_look,
    repaired_encoding,
    secrets_in,
    without_control,
    without_emails,
    without_secrets,
)

ANY = st.text(max_size=200)
NOT_HALVES = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


def controls(text):
    return quick_look(text.encode("utf-8", "surrogatepass"))[0] or has_wide_control(text)


@given(ANY)
@example("\x00\x0b\x7f\u0085\u200b\ufeff\u202e ok\t\r\n")
def test_quick_test_and_list_of_control_characters_agree(text):
    assert controls(text) == bool(control_characters(text))
    assert not controls(without_control(text))


@pytest.mark.parametrize(
    "text",
    [
        "a\tb\r\nc",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u05d0\u200f!",
    ],
)
def test_joiners_and_line_ends_are_no_control_characters(text):
    assert not controls(text)


# --------------------------------------------------------------------------------- encodings

SOUND = [
    "caf\u00e9 \u2013 \u201cna\u00efve\u201d \u2026 \u00a3 5 \u00bb",
    "\u00c5ngstr\u00f6m, 20 \u00b0C",
    "S\u00c3O PAULO, MA\u00c7\u00c3, AMANH\u00c3\u201d AMANH\u00c3\u2026",
    "ESPA\u00d1A \u00bfQu\u00e9?",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439",
    "\u4e2d\u6587\u3002",
    "\u65e5\u672c\u8a9e",
    "\u0622\u0628",
    "\U0001f600",
    "\u03ba\u03b1\u03bb\u03cc",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u00dc\u00d6\u00c4 \u00e4\u00f6\u00fc\u00df",
    "Vi\u1ec7t Nam \u00c2u",
    "\u00cele-de-France \u00ab\u00a0L\u2019\u00e9t\u00e9\u00a0\u00bb",
    "\u00d0a\u00f0 er, \u00de\u00f3r",
]


@pytest.mark.parametrize("text", SOUND)
def test_sound_text_is_left_alone(text):
    assert broken_encoding(text) is None
    assert repaired_encoding(text) == text


@pytest.mark.parametrize("text", [text for text in SOUND if "AMANH" not in text])
@pytest.mark.parametrize("misread", ["cp1252", "latin-1"])
def test_misread_utf8_is_found_and_repaired(text, misread):
    data = text.encode()
    try:
        broken = data.decode(misread)
    except UnicodeDecodeError:  # bytes that this code page lacks
        broken = "".join(
            bytes([b]).decode(misread) if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(b)
            for b in data
        )
    assert broken_encoding(broken), broken
    assert repaired_encoding(broken) == text


def test_text_broken_twice_is_repaired():
    assert repaired_encoding("caf\u00e9".encode().decode("cp1252").encode().decode("cp1252")) == (
        "caf\u00e9"
    )


def test_lost_characters_are_found_and_stay():
    assert "lost" in broken_encoding("caf\ufffd")
    assert "lost" in broken_encoding("caf\ud800")
    assert repaired_encoding("caf\ufffd") == "caf\ufffd"


@given(st.text(st.characters(max_codepoint=0xBF), max_size=200))
def test_text_without_lead_characters_is_never_broken(text):
    assert broken_encoding(text) is None


# ----------------------------------------------------------------------------------- secrets


def rand(alphabet, size, seed=7):
    draw = random.Random(seed)
    return "".join(draw.choice(alphabet) for _ in range(size))


ALNUM = string.ascii_letters + string.digits
# Put together here, so that no scanner of repositories takes this file for a leak.
PLANTED = {
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7bq1",
    "AWS access key": "AKIA" + rand("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16),
    "GitHub token": "ghp_" + rand(ALNUM, 36),
    "GitLab token": "glpat-" + rand(ALNUM, 20),
    "Hugging Face token": "hf_" + rand(ALNUM, 34),
    "API key (sk-...)": "sk-proj-" + rand(ALNUM + "_-", 64),
    "payment key (Stripe)": "sk_" + "live_" + rand(ALNUM, 24),
    "Slack token": "xoxb-" + rand(string.digits, 12) + "-" + rand(ALNUM, 24),
    "Slack webhook": "https://hooks.slack.com/services/T0AB12CD3/B0EF45GH6/" + rand(ALNUM, 24),
    "Google API key": "AIza" + rand(ALNUM, 35),
    "Google client secret": "GOCSPX-" + rand(ALNUM, 28),
    "npm token": "npm_" + rand(ALNUM, 36),
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + rand(ALNUM, 43),
    "bearer token": "Authorization: Bearer " + rand(ALNUM, 40),
    "password in an address": "postgres://admin:s3cr9tPw7@db.acme.io:5432/main",
    "password or key that is assigned": 'DB_PASSWORD="hunter2Zq9"',
}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_secrets_are_found_and_replaced(kind):
    text = f"First of all.\nUse {PLANTED[kind]} for it, and \u0130stanbul."
    assert kind in [found[0] for found in secrets_in(text)]
    clean = without_secrets(text)
    assert not list(secrets_in(clean))
    assert clean.startswith("First of all.\nUse ") and clean.endswith("\u0130stanbul.")


@pytest.mark.parametrize(
    "text",
    [
        "Set password=your_password_1 and run it.",
        "password: ********",
        "Enter your password: Bob",
        "api_key = os.environ['KEY_1']",
        "token = get_token(user1)",
        "secret=${SECRET_1}",
        "Authorization: Bearer <token>",
        "The bearer of these good news2 is here.",
        "risk-free, task-based, sk-learn and sk-proj-...",
        "AKIAIOSFODNN7EXAMPLE",
        "https://example.com/a/very/long/path-with-words/and/numbers/2024/index.html",
        "d41d8cd98f00b204e9800998ecf8427e",
        "asia and Asia2024 are not keys; hf_hub_download, ghp_xxx",
        "if password == stored1234password:",
        "key: value, secret: a well kept one of 12 people",
        "iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4",
        "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQ",
        "PRIVATE KEY----- is the marker",
        "user@example.com:pass at http://localhost:8080/",
        "xoxb-your-token",
        "eyJ is how they begin",
        "password = hashlib.sha256(b'x1').hexdigest()",
        "api_key='test_key_123456'",
    ],
)
def test_prose_and_placeholders_are_no_secrets(text):
    assert list(secrets_in(text)) == []


# ----------------------------------------------------------------------------------- e-mails


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("write to ann.lee+x@acme.co.uk.", "acme.co.uk"),
        ("<bob@uni-bonn.de>", "uni-bonn.de"),
        ("a@b @c d_1@mail.acme.io, thanks", "mail.acme.io"),
        ("\u00e9ann@acme.io", "acme.io"),
    ],
)
def test_addresses_are_found_and_replaced(text, domain):
    assert [found[0] for found in emails_in(text)] == [domain]
    assert list(emails_in(without_emails(text))) == []
    assert EMAIL_MARK in without_emails(text)


@pytest.mark.parametrize(
    "text",
    [
        "@property",
        "icon@2x.png",
        "git@github.com:me/it",
        "jane@example.com",
        "a@b",
        "x @ y.com",
        "lodash@4.17.21",
        "me@localhost",
        "foo@bar.test",
        "@user on the net",
        "john@domain.com",
    ],
)
def test_what_looks_like_an_address_is_none(text):
    assert list(emails_in(text)) == []


# ----------------------------------------------------------------------------------- all


@given(NOT_HALVES)
def test_cleaners_settle_after_one_pass(text):
    for name, clean in CLEANERS.items():
        once = clean(text)
        assert clean(once) == once, name


@pytest.mark.parametrize(
    "piece",
    [
        "a@",
        "a.",
        "sk-",
        "password=",
        "eyJa.",
        "://a:",
        "\u00c3",
        "x" * 50 + " ",
        "-----BEGIN ",
        "a@a.",
        "\u00e4\u00b8",
        "A-",
    ],
)
def test_long_hostile_texts_take_linear_time(piece):
    """Half a million characters made of what patterns begin with: a square would take minutes."""
    text = piece * (500_000 // len(piece))
    began = time.process_time()
    list(secrets_in(text))
    list(emails_in(text))
    broken_encoding(text)
    for clean in CLEANERS.values():
        clean(text)
    assert time.process_time() - began < 8
