"""Captions: each step of the pipeline alone, then their order; weights in A1111's syntax."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from library.data.captions import (
    Moment,
    affixed,
    caption_parts,
    choose_wildcards,
    is_static,
    kept_tags,
    plain_caption,
    training_caption,
    warmed_up_parts,
    with_secondary_separator,
)
from library.data.folders import caption_lines, pictures_in
from library.diffusion.model_files import load_model
from library.diffusion.text import encode_text, parse_weights, tokenize, tokenize_weighted
from library.seeding import stream
from tests.helpers.data_toy import caption_rules

LATE = Moment(step=10**6, epoch=1, total_steps=10**6)


def uses(caption: str, moment: Moment = LATE, count: int = 300, **rules: object) -> Counter[str]:
    """How often each text comes out of many uses."""
    made = caption_rules(**rules)
    return Counter(training_caption(caption, made, moment, stream(1, index)) for index in range(count))


def test_a_caption_without_rules_stays_as_it_is() -> None:
    assert uses("a,b ,  c (x)") == {"a,b ,  c (x)": 300}


def test_prefix_and_suffix_stand_around_every_line() -> None:
    assert affixed("cat", caption_rules(caption_prefix="sks", caption_suffix="photo")) == "sks cat photo"
    assert affixed("a\nb", caption_rules(caption_prefix="sks", enable_wildcard=True)) == "sks a\nsks b"


def test_whole_captions_are_dropped_at_their_rate() -> None:
    counts = uses("cat", caption_dropout_rate=0.3, caption_prefix="sks", count=1000)
    assert set(counts) == {"sks cat", ""} and abs(counts[""] - 300) < 60  # 4 standard deviations


def test_every_nth_epoch_goes_without_captions() -> None:
    empty = [uses("cat", Moment(0, epoch, 9), 1, caption_dropout_every_n_epochs=3)[""] for epoch in range(1, 8)]
    assert empty == [0, 0, 1, 0, 0, 1, 0]


def test_wildcards_draw_one_alternative_evenly_and_double_braces_are_plain() -> None:
    counts = uses("a {red|blue|{pale|deep} green} {{x|y}} {one}", enable_wildcard=True, count=900)
    assert set(counts) == {f"a {colour} {{x|y}} one" for colour in ("red", "blue", "pale green", "deep green")}
    assert abs(counts["a red {x|y} one"] - 300) < 60
    assert uses("{red|blue}") == {"{red|blue}": 300}


def test_one_line_of_several_is_drawn_with_wildcards_and_the_first_is_taken_without() -> None:
    assert set(uses("one\ntwo", enable_wildcard=True)) == {"one", "two"}
    assert choose_wildcards("one\n{a|b}", caption_rules(enable_wildcard=True), None) == "one"


def test_keep_tokens_and_its_separator_cut_a_caption_into_head_flexible_parts_and_tail() -> None:
    assert caption_parts("a, b,, c", caption_rules(keep_tokens=1)) == (["a"], ["b", "c"], [])
    cut = caption_rules(keep_tokens_separator="|||", keep_tokens=5)
    assert caption_parts("a, b ||| c, d ||| e", cut) == (["a", "b"], ["c", "d"], ["e"])
    assert caption_parts("a ||| c, d", cut) == (["a"], ["c", "d"], [])
    assert caption_parts("a, b", cut) == (["a", "b"], [], [])  # keep_tokens where the separator is missing


def test_the_separator_of_kept_tokens_never_reaches_the_model() -> None:
    assert uses("a ||| c, d", keep_tokens_separator="|||") == {"a, c, d": 300}


@pytest.mark.parametrize(
    ("step", "length", "count"),
    [(0, 10, 2), (4, 10, 4), (5, 10, 5), (9, 10, 7), (10, 10, 8), (19, 0.1, 7), (20, 0.1, 8)],
)
def test_token_warm_up_grows_in_even_steps(step: int, length: float, count: int) -> None:
    """8 parts, at least 2: floor(step * 6 / 10) + 2; a length below 1 is a share of 200 steps, i.e. 20."""
    rules = caption_rules(token_warmup_step=length, token_warmup_min=2)
    assert warmed_up_parts(8, rules, Moment(step, 1, 200)) == count


def test_token_warm_up_never_shows_more_parts_than_there_are() -> None:
    assert warmed_up_parts(1, caption_rules(token_warmup_step=10, token_warmup_min=5), Moment(0, 1, 200)) == 1


def test_shuffling_reaches_every_order_and_leaves_kept_tokens_in_front() -> None:
    counts = uses("a, b, c, d", shuffle_caption=True, keep_tokens=1, count=600)
    assert len(counts) == 6 and all(text.startswith("a, ") for text in counts) and min(counts.values()) > 60


def test_tags_are_dropped_one_by_one_and_kept_tokens_never() -> None:
    assert kept_tags(["a", "b"], 0.0, stream(1)) == ["a", "b"] and kept_tags(["a", "b"], 1.0, stream(1)) == []
    counts = uses("a, b, c", caption_tag_dropout_rate=0.5, keep_tokens=1, count=800)
    assert set(counts) == {"a", "a, b", "a, c", "a, b, c"} and all(abs(n - 200) < 60 for n in counts.values())


def test_parts_held_together_by_the_secondary_separator_move_as_one() -> None:
    rules = {"secondary_separator": ";;;", "shuffle_caption": True}
    assert set(uses("a;;;b, c", **rules)) == {"a,b, c", "c, a,b"}
    assert with_secondary_separator("a;;;b", caption_rules(secondary_separator=";;;")) == "a,b"


def test_the_steps_come_in_kohyas_order() -> None:
    """Prefix before the cut (it is kept), wildcards before the split, warm-up before shuffle, separators last."""
    rules = {
        "caption_prefix": "sks,", "enable_wildcard": True, "keep_tokens": 1, "token_warmup_step": 100,
        "token_warmup_min": 2, "shuffle_caption": True, "secondary_separator": ";",
    }  # fmt: skip
    counts = uses("{x, y|z, y}, b;c, never", Moment(0, 1, 100), **rules)
    assert set(counts) == {"sks, x, y", "sks, y, x", "sks, z, y", "sks, y, z"}
    assert set(uses("a", Moment(0, 2, 9), caption_prefix="sks", caption_dropout_every_n_epochs=2)) == {""}


def test_a_use_depends_on_its_stream_alone() -> None:
    rules = caption_rules(shuffle_caption=True, caption_dropout_rate=0.2, caption_tag_dropout_rate=0.2)
    once, again = ([training_caption("a, b, c", rules, LATE, stream(4, step)) for step in range(50)] for _ in range(2))
    assert once == again


def test_plain_captions_are_whole_and_take_the_first_of_every_choice() -> None:
    rules = caption_rules(
        caption_prefix="sks", enable_wildcard=True, shuffle_caption=True, caption_dropout_rate=1.0,
        caption_tag_dropout_rate=1.0, token_warmup_step=50, keep_tokens_separator="|||", secondary_separator=";",
    )  # fmt: skip
    assert plain_caption("{a|b} ||| c, d;e\nsecond", rules) == "sks a, c, d,e"
    assert plain_caption("a,b", caption_rules()) == "a,b"


def test_captions_are_static_only_where_no_draw_changes_them() -> None:
    assert is_static("a, b", caption_rules(keep_tokens=1, caption_prefix="x", enable_wildcard=True))
    assert not is_static("{a|b}", caption_rules(enable_wildcard=True)) and is_static("{a|b}", caption_rules())
    assert not is_static("a\nb", caption_rules(enable_wildcard=True))
    assert not is_static("a", caption_rules(caption_dropout_rate=0.1))


@pytest.mark.parametrize(
    ("caption", "stretches"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (cat) b", [("a ", 1.0), ("cat", 1.1), (" b", 1.0)]),
        ("[cat]", [("cat", 1 / 1.1)]),
        ("(a:1.3)(b: .5)", [("a", 1.3), ("b", 0.5)]),
        ("((a) b:2)", [("a", 2.2), (" b", 2.0)]),
        ("(a", [("a", 1.1)]),
        (r"\(a\) b) c:d", [("(a) b) c:d", 1.0)]),
        ("[a:1.5)", [("a:1.5)", 1 / 1.1)]),
        ("3:4 (x:y)", [("3:4 ", 1.0), ("x:y", 1.1)]),
        ("", []),
    ],
)
def test_weights_are_read_as_a1111_reads_them(caption: str, stretches: list[tuple[str, float]]) -> None:
    read = parse_weights(caption)
    assert [text for text, _ in read] == [text for text, _ in stretches]
    assert [weight for _, weight in read] == pytest.approx([weight for _, weight in stretches])


def test_weights_stand_at_the_tokens_of_their_words_and_multiply_the_hidden_states(model_folder) -> None:
    model = load_model(str(model_folder))
    tokens, weights = tokenize_weighted(model.tokenizer, ["ab (cd:1.5) e", "plain"], 75)
    assert torch.equal(tokens, tokenize(model.tokenizer, ["ab cd e", "plain"], 75))
    assert weights.shape == (2, 1, 77) and weights[0, 0, :7].tolist() == [1, 1, 1, 1.5, 1.5, 1, 1]
    assert (weights[1] == 1).all() and (weights[0, 0, 6:] == 1).all()
    with torch.no_grad():
        plain = encode_text(model.text_encoder, tokens, 1)
        weighted = encode_text(model.text_encoder, tokens, 1, weights)
    assert torch.allclose(weighted, plain * weights[:, 0, :, None]) and torch.equal(weighted[1], plain[1])


def test_weights_of_long_captions_follow_their_pieces(model_folder) -> None:
    model = load_model(str(model_folder))
    caption = "a " * 80 + "(b:0.5) " + "c " * 200
    tokens, weights = tokenize_weighted(model.tokenizer, [caption], 150)
    assert torch.equal(tokens, tokenize(model.tokenizer, ["a " * 80 + "b " + "c " * 200], 150))
    place = (weights == 0.5).nonzero().tolist()
    assert place == [[0, 1, 6]]  # 80 tokens: 75 in the first piece, 5 in the second behind its start token
    with torch.no_grad():
        plain, weighted = (encode_text(model.text_encoder, tokens, 1, one) for one in (None, weights))
    changed = (plain != weighted).any(dim=-1)[0].nonzero().flatten().tolist()
    assert changed == [81] and plain.shape == (1, 152, 16)


def test_a_separator_of_ones_own_stays_between_shuffled_parts() -> None:
    for text in uses("a, b; c; d", count=20, caption_separator=";", shuffle_caption=True):
        assert sorted(text.split("; ")) == ["a, b", "c", "d"]


def test_hidden_files_are_no_pictures_and_a_blank_first_line_is_no_caption(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".b.png"):
        (tmp_path / name).touch()
    assert [path.name for path in pictures_in(tmp_path)] == ["a.png"]
    assert caption_lines("\n  \n a cat \nsecond", False) == "a cat" and caption_lines("\n\n", False) == ""
