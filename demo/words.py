"""The tokenizer: CLIP's byte-pair encoding, its merges learned from the captions of the base."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

VOCABULARY = 2048  # tokens
MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def learn_merges(captions: list[str], count: int) -> list[tuple[str, str]]:
    """At most ``count`` merges that occur at least twice; the captions hold nothing but a-z, 0-9 and spaces."""
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=count + 512, min_frequency=2, end_of_word_suffix=WORD_END, show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [(first, second) for first, second in merges][:count]


def byte_letters() -> list[str]:
    """The 256 printable stand-ins for bytes, in CLIP's order: the printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in printable]
    return letters + [chr(256 + n) for n in range(256 - len(letters))]


def write_tokenizer(captions: list[str], folder: Path) -> None:
    """vocab.json, merges.txt and the two small files that CLIPTokenizer.from_pretrained reads."""
    letters = byte_letters()
    merges = learn_merges(captions, VOCABULARY - 2 * len(letters) - 2)
    tokens = [*letters, *(letter + WORD_END for letter in letters), *(a + b for a, b in merges), START, END]
    unique = list(dict.fromkeys(tokens))
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(unique)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
    settings = special | {"model_max_length": MAX_TOKENS, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    settings |= {"add_prefix_space": False, "errors": "replace"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
