"""A run that begins with the weights of another: the same numbers, or a refusal that says why."""

import json
import shutil

import pytest
import torch

from studio.backend import training
from studio.core.events import read_records
from tests.backend.tiny import make_rows, records, save_model, tensors, train

SHORT = {"train": {"max_steps": 4, "save_steps": 2, "eval_steps": 2}}


@pytest.fixture
def first(make_run):
    paths = make_run(SHORT)
    assert train(paths)["state"] == "done"
    return paths


def warm(paths, source, **changes):
    """What services.warm_start does to a new run."""
    shutil.copytree(source.adapter, paths.warm_start)
    record = json.loads(paths.run_json.read_text())
    note = json.loads((source.adapter / "lora_studio.json").read_text())
    start = {"run": source.id, "step": note["step"],
             "model_fingerprint": note["model_fingerprint"]}  # fmt: skip
    paths.run_json.write_text(json.dumps({**record, "warm_start": {**start, **changes}}))
    return paths


def test_the_first_evaluation_is_that_of_the_weights_it_began_with(make_run, first):
    second = warm(make_run(SHORT), first)
    train(second)
    best = min(r["eval_loss"] for r in records(first, "eval") if r["step"] > 0)
    begun = next(r["eval_loss"] for r in records(second, "eval") if r["step"] == 0)
    assert begun == pytest.approx(best, abs=1e-6)
    assert not records(second, "warning")


def test_the_weights_are_those_bit_for_bit(make_run, first, monkeypatch):
    seen = {}

    def stop_here(attempt, tokenizer, model, checkpoint):
        seen["model"] = model
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_build", stop_here)
    with pytest.raises(KeyboardInterrupt):
        train(warm(make_run(SHORT), first))
    kept = tensors(first.adapter)
    ours = {n.replace(".default", ""): p for n, p in seen["model"].named_parameters()
            if "lora_" in n}  # fmt: skip
    assert ours.keys() == kept.keys()
    assert all(torch.equal(ours[name], kept[name]) for name in kept)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in ours.values())


def test_a_resume_goes_on_from_its_own_checkpoint(make_run, first):
    values = {"train": {"max_steps": 6, "save_steps": 1, "eval_steps": 100}}
    whole, broken = warm(make_run(values), first), warm(make_run(values), first)
    train(whole)
    train(broken, {(3, 0): "pause"})
    shutil.rmtree(broken.warm_start)  # not needed any more
    assert train(broken)["state"] == "done"
    assert all(
        torch.equal(tensors(whole.adapter)[k], v) for k, v in tensors(broken.adapter).items()
    )


@pytest.mark.parametrize(
    ("lora", "words"),
    [({"r": 8}, "r is 4 there and 8 here"),
     ({"target_modules": ["q_proj"]}, "target_modules are down_proj"),
     ({"use_dora": True}, "use_dora is False there and True here")],
)  # fmt: skip
def test_what_does_not_fit_is_named(make_run, first, lora, words):
    values = {**SHORT, "lora": {"r": 4, "lora_alpha": 8, **lora}}
    error = train(warm(make_run(values), first))["error"]
    assert error["type"] == "ModelError"
    assert words in error["text"]
    assert first.id in error["text"]


def test_another_base_is_refused_by_its_shapes_or_told(make_run, first, tmp_path):
    wider = save_model(tmp_path / "wider", hidden_size=96)
    error = train(warm(make_run(SHORT, model=wider), first))["error"]
    assert "its base model has layers of other shapes" in error["text"]
    like = warm(make_run(SHORT), first, model_fingerprint="0" * 64)
    assert train(like)["state"] == "done"
    assert "another base model" in records(like, "warning")[0]["text"]


def test_another_alpha_is_told(make_run, first):
    paths = warm(make_run({**SHORT, "lora": {"r": 4, "lora_alpha": 16}}), first)
    assert train(paths)["state"] == "done"
    assert "lora.lora_alpha is 16 here and was 8" in records(paths, "warning")[0]["text"]


def test_weights_that_are_not_finite_or_not_lora_are_refused(make_run, first):
    from safetensors.torch import load_file, save_file

    for damage in ("nan", "name", "pickle"):
        paths = warm(make_run(SHORT), first)
        file = paths.warm_start / "adapter_model.safetensors"
        found = load_file(file)
        if damage == "nan":
            next(iter(found.values()))[0] = float("nan")
        elif damage == "name":
            found["lm_head.weight"] = torch.zeros(2, 2)
        save_file(found, file)
        if damage == "pickle":
            file.rename(file.with_suffix(".bin"))
        assert train(paths)["error"]["type"] == "ModelError"


def test_the_refused_resume_names_the_way_out(make_run):
    paths = make_run(SHORT, rows=make_rows(40))
    train(paths, {(3, 0): "pause"})
    run = json.loads(paths.run_json.read_text())
    run["dataset"]["fingerprint"] = "0" * 64
    paths.run_json.write_text(json.dumps(run))
    error = train(paths)["error"]
    assert f"--warm-start {paths.id}@3" in error["text"]
    assert [r for r in read_records(paths.metrics).records if r["kind"] == "step"]
