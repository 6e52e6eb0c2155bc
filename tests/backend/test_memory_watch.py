"""Peak memory by phase: the windows, and what a run leaves of them.

torch's CUDA counters are a stand-in here that behaves like the allocator's (peaks that are set back
to what is held now); on a GPU they are torch's own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from studio.backend import memory_record
from studio.backend.journal import Journal
from studio.backend.memory_record import MemoryRecord
from studio.backend.memory_watch import MemoryWatch
from studio.backend.shapes import read_config
from studio.backend.telemetry import Telemetry
from studio.core import kept_profiles
from studio.core.config_io import build_config
from studio.core.fit_constants import CONSTANTS_FILE, to_kept
from studio.core.memory import CPU, MIB, Constants, variant_of
from studio.core.run_memory import (
    EVALUATION,
    FIELDS,
    HOST,
    LOADING,
    PHASES,
    SAMPLING,
    TRAINING,
    read_record,
)
from studio.core.runs import RunPaths, read_json
from tests.backend.tiny import make_rows, train

linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the high-water mark cannot be set back here"
)


class FakeCuda:
    """torch.cuda as far as the watch knows it."""

    def __init__(self) -> None:
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self.resets = 0

    def hold(self, size: int) -> None:
        """So much is allocated now; the reserve only grows."""
        self.allocated = size
        self.reserved = max(self.reserved, size + size // 10)
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def is_initialized(self) -> bool:
        return True

    def max_memory_allocated(self, device: int) -> int:
        return self.peak_allocated

    def max_memory_reserved(self, device: int) -> int:
        return self.peak_reserved

    def reset_peak_memory_stats(self, device: int) -> None:
        self.resets += 1
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=fake))
    return fake


def test_each_phase_has_its_own_peak_of_the_allocator(cuda: FakeCuda, tmp_path: Path) -> None:
    asked = []

    def process_bytes() -> int:
        asked.append(1)
        return cuda.reserved + 500

    watch = MemoryWatch(on_cuda=True, process_bytes=process_bytes, proc=tmp_path / "none")
    watch.torch_is_ready = True
    cuda.hold(1000)
    watch.enter("eval")
    cuda.hold(3000)
    cuda.hold(1000)
    watch.enter("sampling")
    cuda.hold(1100)
    watch.enter("training")
    watch.enter("first_step")  # the same phase of the record: the window goes on
    cuda.hold(9000)
    cuda.hold(2000)
    watch.sample(process=12_000)
    watch.enter("eval")
    cuda.hold(2500)
    found = watch.measured()
    peaks = {phase: values["allocated_bytes"] for phase, values in found.items()}
    assert peaks == {LOADING: 1000, EVALUATION: 3000, SAMPLING: 1100, TRAINING: 9000}
    assert found[TRAINING]["reserved_bytes"] == 9900
    assert found[EVALUATION]["reserved_bytes"] == 9900  # it never gives back
    # A phase shorter than the sampler's interval is asked for at its end, any other is not.
    assert found[LOADING]["nvml_process_bytes"] == 1600
    assert found[TRAINING]["nvml_process_bytes"] == 12_000
    assert len(asked) == 3
    assert cuda.resets == 4


def test_torch_is_not_touched_before_it_is_there(cuda: FakeCuda, tmp_path: Path) -> None:
    cuda.hold(1000)
    watch = MemoryWatch(on_cuda=True, proc=tmp_path)
    watch.enter("eval")
    assert watch.measured()[LOADING]["allocated_bytes"] is None
    on_cpu = MemoryWatch(proc=tmp_path)
    on_cpu.torch_is_ready = True
    on_cpu.enter("eval")
    assert on_cpu.measured()[LOADING]["allocated_bytes"] is None
    assert cuda.resets == 0


@linux
def test_the_kernels_mark_sees_a_peak_between_two_readings() -> None:
    watch = MemoryWatch()
    watch.enter("eval")
    block = bytearray(64 * MIB)
    block[::4096] = b"x" * len(block[::4096])
    del block
    watch.enter("training")
    watch.enter("saving")
    found = {phase: values["rss_bytes"] for phase, values in watch.measured().items()}
    assert found[EVALUATION] > found[TRAINING] + 32 * MIB
    assert watch.peak_rss_bytes == max(found.values())


def test_without_the_kernels_mark_the_sampler_is_believed(tmp_path: Path) -> None:
    watch = MemoryWatch(proc=tmp_path / "none")
    watch.sample(rss=1 << 50)
    watch.enter("eval")
    found = watch.measured()
    assert found[LOADING]["rss_bytes"] == 1 << 50
    assert 0 < found[EVALUATION]["rss_bytes"] < 1 << 40  # a reading at the change of phase


def test_what_follows_the_run_is_not_measured(tmp_path: Path) -> None:
    watch = MemoryWatch(proc=tmp_path / "none")
    watch.stop()
    before = watch.measured()
    watch.sample(rss=1 << 50)
    watch.enter("eval")
    assert watch.measured() == before


def test_the_journal_tells_of_phases_and_an_error_ends_one(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    journal, seen = Journal(paths, 1), []
    journal.on_phase = seen.append
    journal.phase = "training"
    with pytest.raises(ZeroDivisionError), journal.in_phase("eval"):
        raise ZeroDivisionError
    assert seen == ["eval", "training"]
    journal.close()


def test_memory_json_is_written_when_there_is_news_and_waits_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = RunPaths(tmp_path / "gone")
    record = MemoryRecord(paths, "cpu")
    record.watch.sample(rss=1)
    record.write()  # the folder is gone: no error, and no file
    paths.root.mkdir()
    record.write()  # too soon
    assert not paths.memory_json.exists()
    monkeypatch.setattr(memory_record, "WRITE_EVERY_S", 0.0)
    record.watch.enter("eval")
    record.watch.enter("training")
    record.write()
    assert read_record(json.loads(paths.memory_json.read_text())).device == HOST
    paths.memory_json.unlink()
    record.write()  # nothing new
    assert not paths.memory_json.exists()


def test_telemetry_names_the_card_and_feeds_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.backend.test_journal import FakeNvml, gpu

    journal = Journal(RunPaths(tmp_path), 1)
    telemetry = Telemetry(journal, "cuda:0", nvml=FakeNvml([gpu(process_bytes=77)]))
    telemetry.read()
    made = telemetry.memory.to_dict()
    assert made["device"] == {"name": "A", "kind": "cuda:0"}
    assert made["measured"][LOADING]["nvml_process_bytes"] == 77
    telemetry.close()
    journal.close()


def test_a_real_run_leaves_both_sides(make_run) -> None:
    paths = make_run(rows=make_rows(30))
    made = train(paths)["memory"]
    assert set(made["measured"]) == set(PHASES)
    for phase, values in made["measured"].items():
        assert set(values) == set(FIELDS)
        assert values["rss_bytes"] > 50 * MIB, phase
        assert values["allocated_bytes"] is None
    run = read_record(made)
    assert run.is_complete and run.device == HOST and run.predicted.constants == CPU
    names = {part.name for part, _ in run.predicted.items}
    assert {"weights", "adapter", "optimizer", "context"} <= names
    # 16 bytes less or more would be another model: 7,424 numbers of fp32, by peft's own count.
    state = read_json(paths.state_json)
    assert run.predicted.item("adapter") == 4 * state["trainable_params"]
    assert run.predicted.phases["layers"] > 0
    assert read_json(paths.exit_json)["peak_rss_bytes"] >= run.peak_bytes


def test_a_run_that_was_stopped_waits_for_no_count(make_run, monkeypatch) -> None:
    def never(*args: object, **options: object) -> None:
        pytest.fail("counted in a run that was told to end")

    monkeypatch.setattr("studio.backend.profile.measure_size", never)
    made = train(make_run(), {(2, 0): "stop"})["memory"]
    assert made["estimate"] is None
    assert made["no_estimate"] == memory_record.NOT_YET
    assert TRAINING in made["measured"]


def test_a_model_that_cannot_be_counted_fails_no_run(make_run, monkeypatch) -> None:
    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("an operator without a shape")

    monkeypatch.setattr("studio.backend.profile.measure_size", broken)
    result = train(make_run())
    assert (result["state"], result["error"]) == ("done", None)
    assert result["memory"]["estimate"] is None
    assert "cannot be counted" in result["memory"]["no_estimate"]


def test_what_the_page_had_counted_is_used_with_the_fitted_constants(make_run, monkeypatch) -> None:
    """Known without a count, so that a stopped run has it too; about the same as a count."""
    from studio.backend.profile import costs_of, profile_of

    paths = make_run()
    counted = train(paths)["memory"]["estimate"]
    paths = make_run()
    run, workspace = json.loads(paths.run_json.read_text()), paths.root.parents[1]
    model, folder = Path(run["model"]["path"]), workspace / kept_profiles.FOLDER
    folder.mkdir(parents=True)
    key = kept_profiles.model_key((model / "config.json").read_bytes(), run["versions"])
    (folder / f"{key}.json").write_text(json.dumps(profile_of(model).to_dict()))
    variant = variant_of(build_config(run["resolved"]), None)
    file = folder / kept_profiles.costs_file(key, variant)
    file.write_text(json.dumps(costs_of(model, variant).to_dict()))
    fitted = Constants(300 * MIB, 0.1, 0.15, 2.0)
    (workspace / CONSTANTS_FILE).write_text(json.dumps(to_kept({HOST: fitted})))
    made = train(paths, {(2, 0): "stop"})["memory"]
    assert read_record(made).predicted.constants == fitted
    for phase, size in counted["phases"].items():  # far below the sizes that are counted
        assert made["estimate"]["phases"][phase] == pytest.approx(size, abs=MIB)


# peft 0.21 asks transformers 5.23 by the old name; gone when peft uses the new one.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_count_at_one_size_is_what_all_sizes_say(model_folder: Path) -> None:
    """Held against the polynomial at a size that it was fitted to."""
    from studio.backend.profile import measure_costs, measure_size
    from studio.core.step_costs import POINTS, RANKS, Variant

    config, variant = read_config(model_folder), Variant(dtype="float32", padded=True)
    config.num_hidden_layers = 5
    (batch, length), r = POINTS[1], RANKS[0]
    whole = measure_costs(config, variant)
    one = measure_size(config, variant, r=r, step=(batch, length), evaluation=(batch, length))
    for name in ("held", "peak", "forward"):
        size = {"layers": 5, "batch": batch, "length": length, "r": r}
        assert getattr(one, name).bytes_at(**size) == pytest.approx(
            getattr(whole, name).bytes_at(**size), rel=1e-6
        )
