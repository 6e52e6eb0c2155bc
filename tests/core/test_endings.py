"""Why a trainer vanished, from every combination of evidence; and the grace of a stop."""

import pytest

from studio.core.endings import Evidence, OomKills, explain, stop_grace_s

GIB = 2**30


@pytest.mark.parametrize(
    ("micro_batch_s", "last_save_s", "grace_s"),
    [(None, None, 15), (0.1, 0.5, 15), (4.0, 1.5, 15), (4.0, 2.0, 16), (10.0, None, 30),
     (None, 60.0, 120), (-1.0, -1.0, 15)],
)  # fmt: skip
def test_grace_is_three_micro_batches_and_two_saves_but_at_least_15_s(
    micro_batch_s, last_save_s, grace_s
):
    assert stop_grace_s(micro_batch_s, last_save_s) == grace_s


def seen(**changes):
    values = {"phase": "training", "step": 7, "boot_then": "a", "boot_now": "a",
              "kills_before": OomKills(3, 9), "kills_after": OomKills(3, 9),
              "rss_bytes": 6 * GIB, "available_bytes": 2 * GIB, "total_bytes": 8 * GIB}  # fmt: skip
    return Evidence(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"kills_after": OomKills(4, 10), "exit_code": -9}, "out_of_memory"),
        ({"kills_after": OomKills(4, 10)}, "out_of_memory"),
        ({"kills_after": OomKills(3, 10), "exit_code": -9}, "out_of_memory"),
        ({"kills_after": OomKills(3, 10)}, "out_of_memory"),
        # The kernel kills with SIGKILL only: another process was the victim.
        ({"kills_after": OomKills(4, 10), "exit_code": -11}, "crashed"),
        ({"kills_after": OomKills(4, 10), "exit_code": 1}, "crashed"),
        ({"exit_code": -9}, "killed"),
        ({"stop_now": True}, "killed"),
        ({"exit_code": -9, "available_bytes": 0.1 * GIB}, "killed"),  # counted, and not by it
        ({"exit_code": -9, "kills_before": OomKills(), "available_bytes": 0.1 * GIB},
         "out_of_memory"),
        ({"exit_code": -9, "kills_before": OomKills()}, "killed"),
        ({"exit_code": -11}, "crashed"),
        ({"exit_code": 1}, "crashed"),
        ({"exit_code": 0}, "vanished"),
        ({}, "vanished"),
        ({"boot_now": "b", "kills_after": OomKills(9, 99), "exit_code": None}, "restarted"),
        ({"boot_then": None, "boot_now": "b"}, "vanished"),
    ],
)  # fmt: skip
def test_the_strongest_evidence_decides(changes, kind):
    assert explain(seen(**changes)).kind == kind


@pytest.mark.parametrize(
    ("phase", "words"),
    [("loading", "while loading the model"), ("first_step", "in the first step"),
     ("eval", "in an evaluation"), ("sampling", "while answering sample prompts"),
     ("saving", "while saving"), ("training", "in training after step 7"), ("", "")],
)  # fmt: skip
def test_every_sentence_names_the_phase_and_what_to_do(phase, words):
    for changes in ({"exit_code": -9}, {"boot_now": "b"}, {"kills_after": OomKills(4, 9)}, {}):
        told = explain(seen(phase=phase, **changes))
        assert words in told.text
        assert "esume" in told.remedy
        assert told.to_dict()["text"].startswith(told.text)


def test_the_last_reading_is_shown_and_certainty_is_not_overstated():
    sure = explain(seen(kills_after=OomKills(4, 10)))
    assert "the system killed the trainer" in sure.text
    assert "6.0 GiB" in sure.text and "2.0 of 8.0 GiB were free" in sure.text
    assert "probably" in explain(seen(kills_after=OomKills(3, 10))).text
    bare = Evidence(kills_before=OomKills(0, 0), kills_after=OomKills(1, 1))
    assert explain(bare).text.endswith("killed the trainer")


@pytest.mark.parametrize("values", [None, [], {"group": "x"}, {"other": 1}, {"system": True}])
def test_counts_from_a_damaged_file_are_unknown(values):
    assert OomKills.from_dict(values) == OomKills()
    assert OomKills.from_dict({"group": 2, "system": 5}) == OomKills(2, 5)
