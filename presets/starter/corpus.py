"""Text, tokenizer and packed sequences of the starter model.

Owns: which documents are read, how they are rendered as chats, how they become token ids and how
the ids are laid out in sequences. It knows nothing about the model or its training.
"""

import gzip
import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import own_text
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

IM_START, IM_END, DOC_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|pad|>"
HELD_OUT_SHARE = 0.02  # of the dialogues, chosen by position, never trained on
SYSTEM_SHARE = 0.25  # of the service dialogues get a system prompt, another one each epoch
SHAKESPEARE_SHARE = 0.3  # of the play's passages are read in one epoch
OWN_REPEATS = 2  # our own chats are few: they are read this often in one epoch
OPEN_ROWS = 64  # sequences that are filled at the same time when documents are packed

# Every newline is a token of its own and a digit never merges with another one: the tokens of a
# message do not depend on its neighbours, and numbers can be copied digit by digit.
SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}|\n| ?[^\s\p{L}\p{N}]+|[^\S\n]+(?!\S)|[^\S\n]+"
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message['role'] == 'assistant' %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{% generation %}{{- message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{- '\\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def render(messages: list[dict]) -> str:
    """The chat template in Python; a test holds the two equal."""
    return "".join(f"{IM_START}{m['role']}\n{m['content']}{IM_END}\n" for m in messages)


# ---------------------------------------------------------------- text


@dataclass
class Corpus:
    """Documents as text, before the tokenizer exists."""

    dialogues: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    plays: list[str] = field(default_factory=list)


def read_corpus(folder: Path) -> Corpus:
    corpus = Corpus(own=[render(chat) for chat in own_text.chats()])
    dialogues = folder / "sgd_dialogues.jsonl.gz"
    if dialogues.exists():
        every = round(1 / HELD_OUT_SHARE)
        with gzip.open(dialogues, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                text = render(json.loads(line)["messages"])
                (corpus.held_out if number % every == 7 else corpus.dialogues).append(text)
    plays = folder / "tinyshakespeare.txt"
    if plays.exists():
        corpus.plays = passages(plays.read_text(encoding="utf-8"))
        corpus.own += [render(chat) for chat in own_text.play_chats(corpus.plays)]
    if not corpus.dialogues and not corpus.plays:
        raise SystemExit(f"{folder}: neither {dialogues.name} nor {plays.name} is there")
    return corpus


def passages(text: str, size_chars: int = 1200) -> list[str]:
    """Whole speeches, joined to passages of about one screen."""
    found, current = [], ""
    for speech in text.split("\n\n"):
        current += speech.strip() + "\n\n"
        if len(current) >= size_chars:
            found.append(current.strip())
            current = ""
    return [*found, current.strip()] if current.strip() else found


def train_tokenizer(corpus: Corpus, entries: int) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=[IM_START, IM_END, DOC_END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plays = corpus.plays[:: max(1, round(1 / SHAKESPEARE_SHARE))]
    texts = corpus.dialogues + corpus.own + plays
    for marker in (IM_START, IM_END):  # markers are special tokens, not text to learn merges from
        texts = [text.replace(marker, "") for text in texts]
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=IM_END,
        pad_token=PAD,
        additional_special_tokens=[IM_START, DOC_END],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


# ---------------------------------------------------------------- sequences


@dataclass
class Documents:
    """The corpus as token ids; rows() deals out one epoch of packed sequences."""

    tokenizer: PreTrainedTokenizerFast
    corpus: Corpus
    length: int

    def __post_init__(self) -> None:
        ids = self.tokenizer.convert_tokens_to_ids
        self.im_start, self.doc_end, self.pad = ids(IM_START), ids(DOC_END), ids(PAD)
        self.user = self._encode(["user"])[0][0]
        self.dialogues = self._encode(self.corpus.dialogues)
        self.own = self._encode(self.corpus.own)
        self.plays = self._encode(self.corpus.plays)
        self.held_out = self._encode(self.corpus.held_out)
        self.systems = self._encode(
            [render([{"role": "system", "content": text}]) for text in own_text.SERVICE_SYSTEMS]
        )

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def pieces(self, document: list[int]) -> list[list[int]]:
        """A document that is too long goes on in a new sequence, at the start of a user turn."""
        found, rest = [], document + [self.doc_end]
        while len(rest) > self.length:
            cut = self.length
            for at in range(self.length - 1, self.length // 2, -1):
                if rest[at] == self.im_start and rest[at + 1] == self.user:
                    cut = at
                    break
            found.append(rest[:cut])
            rest = rest[cut:]
        return [*found, rest]

    def epoch(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = random.Random(f"epoch {number}")
        chosen = self.own * OWN_REPEATS
        for dialogue in self.dialogues:
            with_system = self.systems and rng.random() < SYSTEM_SHARE
            chosen.append(rng.choice(self.systems) + dialogue if with_system else dialogue)
        chosen += rng.sample(self.plays, math.ceil(len(self.plays) * SHAKESPEARE_SHARE))
        rng.shuffle(chosen)
        return self.pack(chosen)

    def pack(self, documents: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Best fit into open rows. Returns ids and, for each token, its document's number."""
        closed, open_rows, room = [], [], []
        for piece in (piece for document in documents for piece in self.pieces(document)):
            fits = [r for r, left in enumerate(room) if left >= len(piece)]
            if fits:
                best = min(fits, key=room.__getitem__)
                open_rows[best].append(piece)
                room[best] -= len(piece)
            else:
                open_rows.append([piece])
                room.append(self.length - len(piece))
            if len(room) > OPEN_ROWS:
                fullest = min(range(len(room)), key=room.__getitem__)
                closed.append(open_rows.pop(fullest))
                room.pop(fullest)
        rows = closed + open_rows
        ids = torch.full((len(rows), self.length), self.pad, dtype=torch.int32)
        numbers = torch.zeros((len(rows), self.length), dtype=torch.int16)
        for r, row in enumerate(rows):
            flat = [token for piece in row for token in piece]
            owners = [n for n, piece in enumerate(row, start=1) for _ in piece]
            ids[r, : len(flat)] = torch.tensor(flat, dtype=torch.int32)
            numbers[r, : len(flat)] = torch.tensor(owners, dtype=torch.int16)
        return ids, numbers
