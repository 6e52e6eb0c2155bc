r"""Trains the starter model of LoRA Studio from a folder of text.

Owns: the architecture, the optimizers, the schedule and the files that are written. It knows
nothing about the studio and imports nothing from it, so that the model can be rebuilt from this
folder and two public data sets alone.

    python presets/starter/train.py --text ../shared/data --out presets/starter --minutes 68 \
        --workers 2 --threads 1 --compile

FOLDER holds sgd_dialogues.jsonl.gz (one {"messages": [...]} per line, Schema-Guided Dialogue,
CC BY-SA 4.0) and tinyshakespeare.txt (public domain); either may be missing, not both.
With --state FILE the run is saved every few minutes and goes on where it stopped.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from corpus import Documents, read_corpus, train_tokenizer
from torch import multiprocessing, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SAVE_EVERY_S = 300.0

# ---------------------------------------------------------------- model


def build_model(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        intermediate_size=round(args.hidden * 2.75),
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
        use_cache=True,
    )
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.normal_(weight, std=0.02 / math.sqrt(2 * args.layers))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def token_losses(model: nn.Module, ids, mask, positions, labels) -> torch.Tensor:
    """Loss of each label, 0 where it is -100. Every shape is fixed, so that it can be compiled."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden)
    return cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")


def isolate(ids: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Ids, mask, positions and labels of packed rows whose documents do not see each other."""
    ids, numbers = ids.long(), numbers.long()
    mask = (numbers[:, :, None] == numbers[:, None, :]).tril()[:, None]  # (B, 1, T, T)
    counts = torch.arange(ids.shape[1]).expand_as(ids)
    begins = torch.where(numbers.diff(prepend=numbers[:, :1], dim=1) != 0, counts, 0)
    positions = counts - begins.cummax(dim=1).values
    labels = torch.full_like(ids, -100)
    counted = (numbers[:, 1:] == numbers[:, :-1]) & (numbers[:, 1:] > 0)
    labels[:, :-1][counted] = ids[:, 1:][counted]
    return ids, mask, positions, labels


@torch.no_grad()
def held_out_loss(model: nn.Module, rows: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Mean over all tokens of the held-out dialogues, in nats."""
    total, count = 0.0, 0
    for at in range(0, len(rows[0]), 8):
        inputs = isolate(rows[0][at : at + 8], rows[1][at : at + 8])
        total += token_losses(model, *inputs).sum().item()
        count += int((inputs[-1] >= 0).sum())
    return total / count if count else math.nan


def build_optimizers(model: nn.Module, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
    if args.optimizer == "adamw":
        groups = [
            {"params": matrices, "lr": 2e-3, "weight_decay": 0.1},
            {"params": others, "lr": 2e-3, "weight_decay": 0.0},
        ]
        optimizers = [torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)]
    else:
        optimizers = [
            torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def learning_rate_share(done: float, step: int) -> float:
    """Warm-up over 50 steps, constant, then linear to zero over the last half of the budget."""
    return min(1.0, (step + 1) / 50) * min(1.0, max(0.0, 1.0 - done) / 0.5)


# ---------------------------------------------------------------- training


@dataclass
class Progress:
    step: int = 0
    tokens: int = 0
    epoch: int = 0
    row: int = 0
    seconds: float = 0.0


def save_model(model: LlamaForCausalLM, out: Path) -> None:
    """Writes bf16 weights under another name first: a reader never meets half a file."""
    part = out / ".part"
    half = LlamaForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.config.dtype = torch.bfloat16
    half.generation_config = model.generation_config
    half.save_pretrained(part)
    for file in part.iterdir():
        file.chmod(0o644)  # safetensors creates its file for the owner alone
        os.replace(file, out / file.name)
    part.rmdir()


def save_all(model: nn.Module, optimizers: list, progress: Progress, args) -> None:
    save_model(model, args.out)
    if args.state:
        save_state(args.state, model, optimizers, progress)


def save_state(file: Path, model: nn.Module, optimizers: list, progress: Progress) -> None:
    state = {"model": model.state_dict(), "progress": vars(progress)}
    state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
    torch.save(state, file.with_suffix(".part"))
    os.replace(file.with_suffix(".part"), file)


def load_state(file: Path, model: nn.Module, optimizers: list) -> Progress:
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return Progress(**state["progress"])


def fit(model: LlamaForCausalLM, documents: Documents, args: argparse.Namespace) -> dict:
    optimizers = build_optimizers(model, args)
    progress = Progress()
    if args.state and args.state.exists():
        progress = load_state(args.state, model, optimizers)
    rank, workers = (dist.get_rank(), dist.get_world_size()) if args.workers > 1 else (0, 1)
    held_out = documents.pack(documents.held_out)
    rows = documents.epoch(progress.epoch)
    forward = torch.compile(token_losses) if args.compile else token_losses
    begin, saved_at = time.monotonic() - progress.seconds, time.monotonic()
    while (done := share_done(progress, args)) < 1.0:
        if progress.row + args.batch * workers > len(rows[0]):
            progress.epoch, progress.row = progress.epoch + 1, 0
            rows = documents.epoch(progress.epoch)
        first = progress.row + args.batch * rank
        inputs = isolate(*(part[first : first + args.batch] for part in rows))
        share = learning_rate_share(done, progress.step)
        figures = train_step(model, forward, inputs, optimizers, share, begin)
        progress.row += args.batch * workers
        progress.step += 1
        progress.tokens += round(figures.pop("tokens") * workers)
        progress.seconds = figures.pop("seconds")
        if rank == 0 and progress.step % args.log_every == 0:
            report({**vars(progress), **figures, "lr_share": share})
        if rank == 0 and time.monotonic() - saved_at > SAVE_EVERY_S:
            save_all(model, optimizers, progress, args)
            report({"some_held_out": held_out_loss(model, [part[:48] for part in held_out])})
            saved_at = time.monotonic()
    if rank > 0:
        return vars(progress)
    save_all(model, optimizers, progress, args)
    return {**vars(progress), "held_out_loss": held_out_loss(model, held_out)}


def report(figures: dict) -> None:
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps(rounded), flush=True)


def share_done(progress: Progress, args: argparse.Namespace) -> float:
    if args.minutes:
        return progress.seconds / (60 * args.minutes)
    return progress.step / args.steps


def train_step(
    model: nn.Module, forward, inputs: tuple, optimizers: list, share: float, begin: float
) -> dict:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
    labels = inputs[-1]
    loss = forward(model, *inputs).sum() / (labels >= 0).sum()
    loss.backward()
    figures = {"loss": loss.item(), "tokens": float((labels >= 0).sum())}
    figures = average(model, {**figures, "seconds": time.monotonic() - begin})
    figures["grad_norm"] = nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return figures


def average(model: nn.Module, figures: dict[str, float]) -> dict[str, float]:
    """Gradients and figures become their mean over the workers, so that all take equal steps."""
    if not dist.is_initialized():
        return figures
    gradients = [weight.grad for weight in model.parameters()]
    parts = [*(gradient.flatten() for gradient in gradients), torch.tensor([*figures.values()])]
    flat = torch.cat(parts)
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    *means, last = flat.split([len(part) for part in parts])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    return dict(zip(figures, last.tolist(), strict=True))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the starter model from a folder of text.")
    parser.add_argument("--text", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--out", type=Path, required=True, help="where the model is written")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, help="schedule by time instead of by steps")
    parser.add_argument("--workers", type=int, default=1, help="processes that share each step")
    parser.add_argument("--threads", type=int, default=2, help="threads of one worker")
    parser.add_argument("--batch", type=int, default=8, help="sequences of one worker in a step")
    parser.add_argument("--length", type=int, default=512, help="tokens in a sequence")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--entries", type=int, default=4096, help="entries of the tokenizer")
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--state", type=Path, help="file to save to and to resume from")
    parser.add_argument("--compile", action="store_true", help="torch.compile, needs a compiler")
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def work(rank: int, args: argparse.Namespace, meeting: str) -> dict:
    """One worker. They meet through a file and talk over the loopback."""
    torch.set_num_threads(args.threads)
    if args.workers > 1:
        if sys.platform == "linux":  # never listen on a network for two processes of one machine
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=args.workers
        )
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    documents = Documents(tokenizer, read_corpus(args.text), args.length)
    model = build_model(tokenizer, args)
    result = fit(model, documents, args)
    if rank == 0:
        report({"parameters": model.num_parameters(), **result})
    return result


def main(arguments: list[str] | None = None) -> dict:
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.state and args.state.exists()):
        train_tokenizer(read_corpus(args.text), args.entries).save_pretrained(args.out)
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"{folder}/meeting"
        if args.workers == 1:
            return work(0, args, meeting)
        multiprocessing.spawn(work, args=(args, meeting), nprocs=args.workers)
        return {}


if __name__ == "__main__":
    main()
