"""How a caption changes each time it is used, step by step in kohya's order."""

import math
import re
from dataclasses import dataclass

import torch

from library.data.subset_rules import CaptionRules

WILDCARD = re.compile(r"\{([^{}]+)\}")
OPEN, CLOSE = "\ue000", "\ue001"  # private characters that replace {{ and }} while wildcards are read


@dataclass(frozen=True)
class Moment:
    """When a caption is used."""

    step: int  # optimizer step, counted from 0
    epoch: int  # counted from 1
    total_steps: int  # of the run


def training_caption(caption: str, rules: CaptionRules, moment: Moment, generator: torch.Generator) -> str:
    """One use of a caption: prefix and suffix, dropout, wildcards, parts, warm-up, shuffle, tag dropout, join.

    Args:
        caption: as written; several lines where ``enable_wildcard`` reads them all.
        generator: draws in this fixed order, and only for rules that are on.
    """
    if is_dropped(rules, moment.epoch, generator):
        return ""
    chosen = choose_wildcards(affixed(caption, rules), rules, generator)
    if not has_flexible_parts(rules):
        return rejoined(chosen, rules)
    head, flexible, tail = caption_parts(chosen, rules)
    flexible = flexible[: warmed_up_parts(len(flexible), rules, moment)]
    if rules.shuffle_caption:
        flexible = [flexible[index] for index in torch.randperm(len(flexible), generator=generator).tolist()]
    flexible = kept_tags(flexible, rules.caption_tag_dropout_rate, generator)
    return with_secondary_separator(_joint(rules).join(head + flexible + tail), rules)


def plain_caption(caption: str, rules: CaptionRules) -> str:
    """The complete caption with prefix and suffix, its first line and the first alternatives, without random draws."""
    return rejoined(choose_wildcards(affixed(caption, rules), rules, None), rules)


def is_static(caption: str, rules: CaptionRules) -> bool:
    """Whether the caption has the same text at every use."""
    drops = rules.caption_dropout_rate > 0 or rules.caption_dropout_every_n_epochs > 0
    chooses = rules.enable_wildcard and ("\n" in caption or WILDCARD.search(affixed(caption, rules)) is not None)
    return not (drops or chooses or has_flexible_parts(rules))


def affixed(caption: str, rules: CaptionRules) -> str:
    """The caption with prefix and suffix on every line, since each line is a separate caption."""
    lines = caption.split("\n") if rules.enable_wildcard else caption.split("\n")[:1]
    ends = (rules.caption_prefix, rules.caption_suffix)
    return "\n".join(" ".join(part for part in (ends[0], line, ends[1]) if part) for line in lines)


def is_dropped(rules: CaptionRules, epoch: int, generator: torch.Generator) -> bool:
    """Whether this use has an empty caption: at random, or because it is an n-th epoch."""
    by_chance = rules.caption_dropout_rate > 0 and _coin(generator) < rules.caption_dropout_rate
    every = rules.caption_dropout_every_n_epochs
    return by_chance or (every > 0 and epoch % every == 0)


def choose_wildcards(caption: str, rules: CaptionRules, generator: torch.Generator | None) -> str:
    """One line of several and one of ``{a|b}``, innermost braces first; ``{{`` and ``}}`` are plain braces.

    Args:
        generator: None selects the first line and alternatives.
    """
    if not rules.enable_wildcard:
        return caption
    lines = caption.split("\n")
    text = lines[_choice(len(lines), generator)].replace("{{", OPEN).replace("}}", CLOSE)
    while match := WILDCARD.search(text):
        options = match[1].split("|")
        text = text[: match.start()] + options[_choice(len(options), generator)] + text[match.end() :]
    return text.replace(OPEN, "{").replace(CLOSE, "}")


def has_flexible_parts(rules: CaptionRules) -> bool:
    """Whether a rule changes the parts of a caption."""
    return rules.shuffle_caption or rules.caption_tag_dropout_rate > 0 or rules.token_warmup_step > 0


def caption_parts(caption: str, rules: CaptionRules) -> tuple[list[str], list[str], list[str]]:
    """Fixed head, flexible parts and fixed tail, divided by keep_tokens_separator, else after keep_tokens."""
    cut = rules.keep_tokens_separator
    if cut and cut in caption:
        head, flexible, *tail = (_split(piece, rules) for piece in caption.split(cut, 2))
        return head, flexible, tail[0] if tail else []
    parts = _split(caption, rules)
    return parts[: rules.keep_tokens], parts[rules.keep_tokens :], []


def warmed_up_parts(count: int, rules: CaptionRules, moment: Moment) -> int:
    """How many of ``count`` flexible parts are used: the warm-up increases them evenly from token_warmup_min to all."""
    length = rules.token_warmup_step
    warmup = math.floor(length * moment.total_steps) if length < 1 else length
    if moment.step >= warmup:
        return count
    least = min(rules.token_warmup_min, count)
    return least + math.floor(moment.step * (count - least) / warmup)


def kept_tags(parts: list[str], rate: float, generator: torch.Generator) -> list[str]:
    """The parts that remain after an independent draw for each."""
    if rate <= 0:
        return parts
    coins = torch.rand(len(parts), generator=generator).tolist()
    return [part for part, coin in zip(parts, coins, strict=True) if coin >= rate]


def rejoined(caption: str, rules: CaptionRules) -> str:
    """A caption with unchanged parts, without its separator marks."""
    if rules.keep_tokens_separator and rules.keep_tokens_separator in caption:
        head, flexible, tail = caption_parts(caption, rules)
        caption = _joint(rules).join(head + flexible + tail)
    return with_secondary_separator(caption, rules)


def with_secondary_separator(caption: str, rules: CaptionRules) -> str:
    """Replace the secondary separator, which kept parts together, by the caption separator."""
    if not rules.secondary_separator:
        return caption
    return caption.replace(rules.secondary_separator, rules.caption_separator)


def _joint(rules: CaptionRules) -> str:
    """What stands between two parts: the separator with one space behind it, ", " for kohya's default."""
    return f"{rules.caption_separator.strip()} " if rules.caption_separator.strip() else rules.caption_separator


def _split(text: str, rules: CaptionRules) -> list[str]:
    return [part.strip() for part in text.split(rules.caption_separator) if part.strip()]


def _coin(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _choice(count: int, generator: torch.Generator | None) -> int:
    return 0 if generator is None or count == 1 else int(torch.randint(count, (), generator=generator))
