"""What a trainer writes: whole lines, never a NaN, a heartbeat, phases that sum up."""

import errno
import json
import math
import os
import signal
import threading

import pytest

from studio.backend.inbox import Inbox
from studio.backend.journal import Journal, Lines
from studio.backend.lease import device_lease, lease_folder
from studio.backend.telemetry import Telemetry
from studio.core.errors import BusyError, StoreError
from studio.core.events import KINDS, read_records
from studio.core.runs import RunPaths
from studio.hardware.nvml import GpuSample
from tests.waiting import wait_until


@pytest.fixture
def paths(tmp_path):
    paths = RunPaths(tmp_path / "run")
    paths.commands.mkdir(parents=True)
    return paths


@pytest.fixture
def journal(paths):
    journal = Journal(paths, 2)
    yield journal
    journal.close()


def read(paths):
    return read_records(paths.metrics).records


def test_numbers_that_json_has_no_word_for_become_null(journal, paths):
    journal.record("step", step=1, loss=math.nan, grad_norm=math.inf, extra={"a": [-math.inf]})
    [record] = read(paths)
    assert (record["loss"], record["grad_norm"], record["extra"]) == (None, None, {"a": [None]})
    assert record["attempt"] == 2
    assert record["t_s"] >= 0
    assert record["time"].endswith("+00:00")


def test_a_torn_line_is_closed_and_not_cut(paths):
    whole, torn = b'{"kind": "step", "step": 1}\n', b'{"kind": "step", "st'
    paths.metrics.write_bytes(whole + torn)
    journal = Journal(paths, 2)
    journal.record("step", step=2)
    journal.close()
    assert paths.metrics.read_bytes().startswith(whole + torn + b"\n")
    batch = read_records(paths.metrics)
    assert [r["step"] for r in batch.records] == [1, 2]
    assert batch.damaged == 1


def test_lines_of_many_threads_do_not_mix(journal, paths):
    def write(thread):
        for i in range(50):
            journal.record("step", step=i, thread=thread, filler="x" * 500)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batch = read_records(paths.metrics)
    assert batch.damaged == 0
    assert len(batch.records) == 200
    for thread in range(4):
        assert [r["step"] for r in batch.records if r["thread"] == thread] == list(range(50))


def test_records_are_synced_at_most_a_second_later(paths, monkeypatch):
    synced = []
    monkeypatch.setattr("studio.backend.journal.sync_file", lambda fd: synced.append(fd))
    lines = Lines(paths.metrics)
    lines.append({"kind": "step"})
    assert synced == []
    lines._synced -= 2
    lines.append({"kind": "step"})
    assert len(synced) == 1
    lines.sync()
    assert len(synced) == 1
    lines.append({"kind": "step"})
    lines.sync()
    assert len(synced) == 2
    lines.append({"kind": "step"})
    lines.close()
    assert len(synced) == 3


def test_a_failed_sync_is_loud(paths, monkeypatch):
    lines = Lines(paths.metrics)
    lines.append({"kind": "step"})

    def fail(fd):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("studio.backend.journal.sync_file", fail)
    with pytest.raises(StoreError, match="metrics.jsonl"):
        lines.sync()


class Disk:
    """Makes one call of `os` fail as long as `code` is set; `after` lets so many bytes in first."""

    def __init__(self, monkeypatch, call, code, after=None):
        self.code, self.real = code, getattr(os, call)
        self.after = after
        monkeypatch.setattr(os, call, self)

    def __call__(self, *args, **kwargs):
        if self.code is None:
            return self.real(*args, **kwargs)
        if self.after:
            data, self.after = bytes(args[1])[: self.after], 0
            return self.real(args[0], data)
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("torn", [None, 9])
def test_records_wait_in_memory_while_the_disk_refuses(paths, monkeypatch, call, torn):
    """Torn, refused or not synced: once the disk takes data again each line is there, once."""
    lines = Lines(paths.metrics)
    lines.append({"step": 1})
    lines.sync()
    disk = Disk(monkeypatch, call, errno.ENOSPC, after=torn if call == "write" else None)
    for step in (2, 3):
        lines.append({"step": step})
    with pytest.raises(StoreError, match=r"metrics\.jsonl.* free"):
        lines.sync()
    assert lines.fault is not None
    began = lines.fault.since
    lines.append({"step": 4})
    with pytest.raises(StoreError):
        lines.sync()
    assert lines.fault.since == began
    disk.code = None
    lines.append({"step": 5})
    lines.sync()
    lines.append({"step": 6})
    lines.close()
    assert lines.fault is None
    written = [json.loads(line)["step"] for line in paths.metrics.read_text().splitlines()]
    assert written == [1, 2, 3, 4, 5, 6]


def test_a_deleted_file_is_a_fault_and_not_a_success(paths):
    lines = Lines(paths.metrics)
    lines.append({"step": 1})
    paths.metrics.unlink()
    with pytest.raises(StoreError, match=r"metrics\.jsonl"):
        lines.sync()
    with pytest.raises(StoreError):
        lines.close()


def test_what_waits_is_bounded_and_the_rest_is_counted(paths, monkeypatch):
    monkeypatch.setattr("studio.backend.journal.MAX_WAITING_BYTES", 1000)
    lines = Lines(paths.metrics)
    disk = Disk(monkeypatch, "write", errno.EIO)
    for step in range(100):
        lines.append({"step": step})
    assert len(lines._waiting) <= 1000
    disk.code = None
    lines.sync()
    lines.close()
    kept = len(paths.metrics.read_text().splitlines())
    assert kept + lines.dropped == 100
    assert lines.dropped > 0


def test_a_standing_fault_is_told_once_and_ends(journal, paths, monkeypatch):
    assert journal.standing_fault() is None
    disk = Disk(monkeypatch, "replace", errno.EROFS)
    journal.update(now=True, step=5)
    journal.beat()
    journal.beat()
    assert "read-only" in str(journal.standing_fault())
    assert journal.standing_fault(min_age_s=30) is None
    [warning] = [r for r in read(paths) if r["kind"] == "warning"]
    assert "state.json" in warning["text"]
    disk.code = None
    journal.beat()
    assert journal.standing_fault() is None
    assert json.loads(paths.state_json.read_text())["step"] == 5


def test_phases_nest_and_sum_up_and_name_where_it_failed(journal, paths):
    with pytest.raises(ValueError, match="x"), journal.in_phase("loading"):
        with journal.in_phase("eval", "Evaluating"):
            assert json.loads(paths.state_json.read_text())["message"] == "Evaluating"
        assert journal.phase == "loading"
        raise ValueError("x")
    assert journal.failed_phase == "loading"
    assert journal.phase_seconds["loading"] >= journal.phase_seconds["eval"]
    assert [(r["name"], r["status"]) for r in read(paths)] == [
        ("loading", "begin"), ("eval", "begin"), ("eval", "end"), ("loading", "end"),
    ]  # fmt: skip
    assert {r["kind"] for r in read(paths)} <= set(KINDS)


def test_state_is_not_written_more_than_twice_a_second(journal, paths, monkeypatch):
    writes = []
    monkeypatch.setattr("studio.backend.journal.write_json", lambda *a: writes.append(a))
    journal._written = 0.0
    for step in range(100):
        journal.update(step=step)
    assert len(writes) == 1
    journal.update(now=True, state="running")
    assert len(writes) == 2
    assert writes[-1][1]["step"] == 99


def test_a_warning_is_recorded_once(journal, paths):
    journal.warn("a")
    journal.warn("a")
    journal.warn("b")
    assert [r["text"] for r in read(paths)] == ["a", "b"]


@pytest.mark.parametrize(
    ("verbs", "end", "at_once"),
    [
        ([], None, False),
        (["save"], None, False),
        (["pause"], "paused", False),
        (["stop"], "stopped", False),
        (["pause", "stop"], "paused", False),
        (["pause", "stop_now"], "stopped", True),
        (["unknown"], None, False),
    ],
)
def test_orders(paths, verbs, end, at_once):
    for number, verb in enumerate(verbs):
        (paths.commands / f"{number:04d}-{verb}.json").write_text("{}")
    inbox = Inbox(paths)
    assert inbox.poll() is (end is not None)
    assert (inbox.end_state, inbox.at_once) == (end, at_once)
    assert inbox.take_save() is ("save" in verbs)
    assert inbox.take_save() is False
    acks = {p.stem for p in paths.commands.glob("*.ack")}
    assert acks == {f"{n:04d}-{v}" for n, v in enumerate(verbs) if v != "unknown"}


def test_a_signal_only_sets_a_flag(paths):
    inbox, before = Inbox(paths), signal.getsignal(signal.SIGTERM)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        inbox.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: inbox._terminated.is_set())
        assert inbox.end_state is None
        assert inbox.poll()
        assert inbox.end_state == "stopped"
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert signal.getsignal(signal.SIGTERM) == before


class FakeNvml:
    note = None

    def __init__(self, samples):
        self.samples = samples

    def sample(self, which=0, pid=None):
        return self.samples.pop(0) if len(self.samples) > 1 else self.samples[0]

    def close(self):
        pass


def gpu(**changes):
    values = {"index": 0, "uuid": "GPU-1", "name": "A", "used_bytes": 5, "total_bytes": 10,
              "process_bytes": 3, "utilisation_pct": 50.0, "temperature_c": 40.0, "power_w": 90.0,
              "compute_capability": (8, 9)}  # fmt: skip
    return GpuSample(**{**values, **changes})


def test_telemetry_reads_the_gpu_and_goes_on_without(journal, paths):
    nvml = FakeNvml([gpu(), gpu(process_bytes=None, temperature_c=None), None])
    telemetry = Telemetry(journal, "cuda:0", nvml=nvml, interval_s=0.01)
    telemetry.start()
    wait_until(lambda: sum(r["kind"] == "device" for r in read(paths)) >= 3)
    telemetry.close()
    telemetry.close()
    first, second, third = read(paths)[:3]
    assert (first["device_used_bytes"], first["process_bytes"]) == (5, 3)
    assert "process_bytes" not in second
    assert "temperature_c" not in second
    assert "device_used_bytes" not in third
    assert third["rss_bytes"] > 0
    assert telemetry.peak_vram_bytes == 3
    assert telemetry.peak_rss_bytes >= first["rss_bytes"]
    assert json.loads(paths.state_json.read_text())["time"]


def test_telemetry_follows_the_gpu_by_its_uuid_if_nvml_knows_it(journal):
    class Asked(FakeNvml):
        def sample(self, which=0, pid=None):
            self.which = which
            return None if which == "GPU-other" else gpu()

    nvml = Asked([])
    telemetry = Telemetry(journal, "cuda:1", nvml=nvml)
    for uuid, expected in (("GPU-other", 1), ("GPU-1", "GPU-1")):
        telemetry.follow(uuid)
        telemetry.read()
        assert nvml.which == expected


def test_device_lease_names_the_holder():
    with device_lease("cpu", "run A", timeout_s=0.1):
        with (
            pytest.raises(BusyError, match=rf"in use by run A \(process {os.getpid()}\)"),
            device_lease("cpu", "run B", timeout_s=0.1),
        ):
            pytest.fail("two hold one device")
        with device_lease("mps", "run B", timeout_s=0.1):
            assert (lease_folder() / "cpu.lock").exists()
    with device_lease("cpu", "run C", timeout_s=0.1):
        assert json.loads((lease_folder() / "cpu.json").read_text())["holder"] == "run C"
