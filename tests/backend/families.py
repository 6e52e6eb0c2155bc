"""Small tokenizers with the chat templates of the families that people finetune.

Each keeps what makes its family difficult: who writes the beginning-of-text token, which token ends
a turn, whether the template marks answers, and how characters outside the vocabulary are spelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CORPUS = [
    "the red cat sleeps in the old house by the river and says yes or no",
    "What is blue? Where does a bird sing? user assistant system model colour",
    "one two three four five six seven eight nine ten, maybe.",
] * 20

CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' }}"
    "{{- m['content'] + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
CHATML_MARKED = (
    "{%- for m in messages %}{%- if m['role'] == 'assistant' %}{{- '<|im_start|>assistant\n' }}"
    "{% generation %}{{- m['content'] + '<|im_end|>' }}{% endgeneration %}{{- '\n' }}{%- else %}"
    "{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{%- if m['role'] == 'assistant' %}{% generation %}{{- m['content'] | trim + '<|eot_id|>' }}"
    "{% endgeneration %}{%- else %}{{- m['content'] | trim + '<|eot_id|>' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{{- raise_exception('System role not supported') }}{%- endif %}{%- for m in messages %}"
    "{%- if m['role'] == 'assistant' %}{{- '<start_of_turn>model\n' }}"
    "{% generation %}{{- m['content'] | trim + '<end_of_turn>' }}{% endgeneration %}{{- '\n' }}"
    "{%- else %}{{- '<start_of_turn>user\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"
)
MISTRAL = (
    "{{- bos_token }}{%- for m in messages %}{%- if m['role'] == 'user' %}"
    "{{- '[INST] ' + m['content'] + ' [/INST]' }}{%- elif m['role'] == 'assistant' %}"
    "{{- ' ' + m['content'] + eos_token }}{%- else %}"
    "{{- raise_exception('Only user and assistant roles are supported!') }}{%- endif %}"
    "{%- endfor %}"
)
PHI = (
    "{%- for m in messages %}{{- '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}"
    "{%- else %}{{- eos_token }}{%- endif %}"
)
# Says nothing about a system message: it is simply not there.
NO_SYSTEM = (
    "{%- for m in messages if m['role'] != 'system' %}"
    "{%- if m['role'] == 'user' %}{{- '<|user|>' + m['content'] + '<|end|>' }}{%- else %}"
    "{{- '<|assistant|>' }}{% generation %}{{- m['content'] + '<|end|>' }}{% endgeneration %}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
# The markers close in front of the token that ends the turn.
MARKED_WITHOUT_END = CHATML_MARKED.replace(
    "m['content'] + '<|im_end|>' }}{% endgeneration %}{{- '\n' }}",
    "m['content'] }}{% endgeneration %}{{- '<|im_end|>\n' }}",
)


@dataclass(frozen=True)
class Family:
    """How to build one tokenizer."""

    template: str | None
    special: tuple[str, ...]
    eos: str | None
    pad: str | None = None
    bos: str | None = None
    adds_bos: bool = False  # the tokenizer itself writes it when asked for special tokens
    pieces: bool = False  # spaces as part of words, unknown characters as bytes

    @property
    def marked(self) -> bool:
        """Whether TRL can learn answers alone with this template."""
        return "{% generation" in (self.template or "")


FAMILIES = {
    "chatml": Family(CHATML_MARKED, ("<|im_start|>", "<|im_end|>", "<|pad|>"), "<|im_end|>",
                     pad="<|pad|>"),
    "llama3": Family(LLAMA3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                              "<|eot_id|>"), "<|eot_id|>", bos="<|begin_of_text|>", adds_bos=True),
    "gemma": Family(GEMMA, ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), "<eos>",
                    pad="<pad>", bos="<bos>", adds_bos=True, pieces=True),
    "mistral": Family(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", pad="</s>", bos="<s>",
                      adds_bos=True, pieces=True),
    "phi": Family(PHI, ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
                  "<|endoftext|>", pad="<|endoftext|>"),
    "no_system": Family(NO_SYSTEM, ("<|user|>", "<|assistant|>", "<|end|>"), "<|end|>"),
    "unmarked": Family(CHATML, ("<|im_start|>", "<|im_end|>", "<|pad|>"), "<|im_end|>",
                       pad="<|pad|>"),
    "no_template": Family(None, ("</s>",), "</s>"),
}  # fmt: skip
BARE = Family(None, (), None)


def build(family: Family, template: str | None = None) -> Any:
    """The tokenizer of a family."""
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    special = [*family.special]
    if family.pieces:
        raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<0x00>"))
        raw.normalizer = normalizers.Replace(" ", "\u2581")
        raw.decoder = decoders.Sequence([
            decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
        ])  # fmt: skip
        special_and_bytes = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(
            vocab_size=700, special_tokens=special_and_bytes, show_progress=False
        )
    else:
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=450, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    raw.train_from_iterator(CORPUS, trainer)
    if family.pieces:
        raw = _without_special_bytes(raw, special)
    if family.adds_bos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, raw.token_to_id(family.bos))]
        )
    named = {"eos_token": family.eos, "pad_token": family.pad, "bos_token": family.bos}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, extra_special_tokens=special,
        **{name: token for name, token in named.items() if token},
    )  # fmt: skip
    tokenizer.chat_template = template or family.template
    return tokenizer


def _without_special_bytes(raw: Any, special: list[str]) -> Any:
    """The trainer makes the byte tokens special; in real vocabularies they are ordinary."""
    import json

    from tokenizers import Tokenizer

    record = json.loads(raw.to_str())
    record["added_tokens"] = [t for t in record["added_tokens"] if t["content"] in special]
    return Tokenizer.from_str(json.dumps(record))
