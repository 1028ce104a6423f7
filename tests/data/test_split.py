"""Who is a member: sides are disjoint, drawn from a secret, kept by pixels, and never empty in silence."""

import dataclasses
import json
import logging
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from library.audit.targets.candidates import find_candidates
from library.data import duplicates
from library.data.duplicates import near_duplicates, warn_of_near_duplicates
from library.data.examples import Example
from library.data.split import SIDES, Split, draw_split
from library.data.split_file import SplitRules, new_secret, open_split, reuse_split, write_split
from library.errors import InputError
from library.options.declarations import Config
from library.rules import pick
from tests.helpers.data_toy import example
from tests.helpers.keys import secret_of, write_secret


def drawn(count: int, inclusion: str = "fixed", seed: int = 3, share: float = 0.5, aux: float = 0.5) -> Split:
    """A split of pictures without groups."""
    return draw_split(
        [example(index) for index in range(count)],
        [],
        nonmember_share=share,
        aux_share=aux,
        inclusion=inclusion,
        secret=secret_of(seed),
    )


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_sides_are_disjoint_and_complete_for_every_size(share: float) -> None:
    for count in range(4, 120):
        split = drawn(count, share=share)
        seen = Counter(example.pixels for example in split.in_order())
        assert len(seen) == count and set(seen.values()) == {1}
        assert all(split.sizes().values())


def test_fixed_inclusion_meets_the_shares() -> None:
    assert drawn(100, share=0.4, aux=0.25).sizes() == dict(zip(SIDES, (15, 45, 10, 30), strict=True))


@pytest.mark.slow
def test_bernoulli_inclusion_is_an_independent_fair_coin() -> None:
    """Over many secrets a picture is a member half of the time, and two pictures agree half of the time."""
    splits = [{example.pixels for example in drawn(40, "bernoulli", seed).members()} for seed in range(400)]
    first, second = example(0).pixels, example(1).pixels
    share = sum(first in members for members in splits) / 400
    agreement = sum((first in members) == (second in members) for members in splits) / 400
    assert abs(share - 0.5) < 0.08 and abs(agreement - 0.5) < 0.08
    assert len({len(members) for members in splits}) > 5  # sizes vary, as coins do


def test_the_draw_depends_on_pixels_and_secret_and_not_on_names_or_order() -> None:
    examples = [example(index) for index in range(50)]
    renamed = [
        replace(example, path=Path(f"/q/{99 - index}.png")) for index, example in reversed(list(enumerate(examples)))
    ]
    keywords = {"nonmember_share": 0.5, "aux_share": 0.5, "inclusion": "bernoulli"}
    first, again, other = (
        draw_split(found, [], secret=secret_of(number), **keywords)
        for found, number in ((examples, 1), (renamed, 1), (examples, 2))
    )
    assert first.hash() == again.hash() != other.hash()


@pytest.mark.parametrize("grouped", [False, True])
def test_pictures_that_come_or_go_move_no_other_picture(grouped: bool) -> None:
    """A side that moved would tell two published versions apart by who changed sides."""
    examples = [example(index, group=f"family {index // 3}" if grouped else "") for index in range(120)]
    keywords = {"nonmember_share": 0.4, "aux_share": 0.5, "inclusion": "bernoulli", "secret": secret_of(1)}
    whole, part = draw_split(examples, [], **keywords), draw_split(examples[30:90][::-1], [], **keywords)
    side_of = {one.pixels: side for side in SIDES for one in whole.sides[side]}
    assert all(side_of[one.pixels] == side for side in SIDES for one in part.sides[side])


def test_a_reused_split_has_its_rows_in_the_order_of_the_drawn_one(tmp_path: Path) -> None:
    """Streams of chance are named by rows: another order would be another run."""
    examples = [example(index * 7919 % 101, group=f"family {index // 3}") for index in range(60)]
    first = draw_split(examples, [], nonmember_share=0.5, aux_share=0.5, inclusion="fixed", secret=secret_of(1))
    write_split(first, tmp_path / "split.json")
    again = reuse_split(tmp_path / "split.json", examples[::-1], secret_of(2))
    assert [one.pixels for one in again.in_order()] == [one.pixels for one in first.in_order()]
    assert again.secret == secret_of(1) and again.key(5) == first.key(5)


@pytest.mark.parametrize("inclusion", ["bernoulli", "fixed"])
def test_pictures_of_one_group_stay_together(inclusion: str) -> None:
    examples = [example(index, group=f"family {index // 3}") for index in range(120)]
    split = draw_split(examples, [], nonmember_share=0.5, aux_share=0.5, inclusion=inclusion, secret=secret_of(5))
    for side in SIDES:
        others = {example.group for other in SIDES if other != side for example in split.sides[other]}
        assert not others & {example.group for example in split.sides[side]}


def test_the_same_pixels_on_two_sides_are_an_error_that_names_both_files() -> None:
    outsiders = [example(index) for index in range(100, 110)] + [example(200, pixels=example(0).pixels)]
    with pytest.raises(InputError, match="the same picture is on two sides: '/p/0.png'.*'/p/200.png'"):
        draw_split(
            [example(index) for index in range(10)],
            outsiders,
            nonmember_share=0.5,
            aux_share=0.5,
            inclusion="fixed",
            secret=secret_of(1),
        )


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_pictures_are_refused(count: int) -> None:
    with pytest.raises(InputError, match="cannot fill the four sides"):
        drawn(count)


def test_an_unlucky_coin_that_empties_a_side_is_reported_with_the_way_out() -> None:
    with pytest.raises(InputError, match="no image is left for .* use --inclusion fixed"):
        for seed in range(100):
            drawn(5, "bernoulli", seed)


def test_fewer_non_members_than_the_attacker_needs_are_refused() -> None:
    with pytest.raises(InputError, match="needs 8 images of non-members-aux, the split has 2"):
        drawn(20, share=0.2).require_aux(8)


def test_split_json_is_private_and_holds_no_caption(tmp_path: Path) -> None:
    split = drawn(12)
    write_split(split, tmp_path / "split.json")
    assert os.stat(tmp_path / "split.json").st_mode & 0o777 == 0o600
    text = (tmp_path / "split.json").read_text()
    assert "caption 3" not in text and set(json.loads(text)["images"][0]) >= {"pixels", "path", "side", "group"}


def test_a_reused_split_recognises_pictures_by_pixels(tmp_path: Path) -> None:
    split = drawn(12)
    write_split(split, tmp_path / "split.json")
    moved = [replace(example, path=Path("/elsewhere") / example.path.name) for example in split.in_order()]
    assert reuse_split(tmp_path / "split.json", moved, secret_of(0)).hash() == split.hash()


def test_a_reused_split_keeps_its_groups_whatever_the_folder_says_now(tmp_path: Path) -> None:
    split = drawn(12)
    write_split(split, tmp_path / "split.json")
    regrouped = [replace(one, group="all one") for one in split.in_order()]
    groups = {one.pixels: one.group for one in reuse_split(tmp_path / "split.json", regrouped, secret_of(0)).in_order()}
    assert groups == {one.pixels: one.group for one in split.in_order()}


def test_a_reused_split_names_missing_and_unknown_pictures(tmp_path: Path) -> None:
    write_split(drawn(12), tmp_path / "split.json")
    with pytest.raises(InputError) as caught:
        reuse_split(tmp_path / "split.json", [example(index) for index in range(1, 14)], secret_of(0))
    assert "1 of its 12 images are missing or changed: '0.png'" in str(caught.value)
    assert "2 images of the folders are not in split_file" in str(caught.value)
    assert "split.json': '12.png', '13.png'" in str(caught.value)


def all_pairs(split: Split, most_bits: int) -> list[tuple[str, str]]:
    """The slow twin: every pair of a member and a non-member, one by one, nearest first."""
    members, others = split.members(), split.sides["non-members-aux"] + split.sides["non-members-test"]
    bits = [
        ((one.brightness_signs ^ other.brightness_signs).bit_count(), one.path.name, other.path.name)
        for one in members
        for other in others
    ]
    return [(one, other) for distance, one, other in sorted(bits) if distance <= most_bits]


@pytest.mark.parametrize("block", [1, 50, 1 << 20], ids=["a row", "a few rows", "all at once"])
@pytest.mark.parametrize("most_bits", [0, 3, 64])
def test_near_duplicates_in_blocks_are_those_of_the_comparison_of_all_pairs(monkeypatch, block: int, most_bits) -> None:
    """Random hashes around a few centres, one name twice; 64 bits: every pair is near."""
    monkeypatch.setattr(duplicates, "BLOCK", block)
    chance = random.Random(most_bits)
    split = drawn(60)
    centres = [chance.getrandbits(64) for _ in range(8)] + [2**64 - 1]

    def moved(one: Example) -> Example:
        signs = chance.choice(centres) ^ (chance.choice([0, 1, 3]) << chance.randrange(60))
        return replace(one, brightness_signs=signs, path=Path(f"/{signs}/{chance.randrange(50)}.png"))

    split = replace(split, sides={side: [moved(one) for one in some] for side, some in split.sides.items()})
    wanted = all_pairs(split, most_bits)
    found = near_duplicates(split, most_bits, named=7)
    assert found is not None and wanted
    assert (found.count, found.nearest) == (len(wanted), wanted[:7])


def test_thousands_of_like_pictures_are_counted_and_five_pairs_named(caplog: pytest.LogCaptureFixture) -> None:
    """A list of all pairs would hold four million here."""
    examples = [replace(example(index), brightness_signs=7) for index in range(4000)]
    sides = {side: examples[start::4] for start, side in enumerate(SIDES)}
    with caplog.at_level(logging.WARNING, "library"):
        warn_of_near_duplicates(replace(drawn(12), sides=sides))
    assert "4000000 near-duplicate pairs" in caplog.text and "and 3999995 more" in caplog.text
    assert caplog.text.count(" ~ ") == 5 and len(caplog.text) < 500


def test_a_reused_split_is_the_same_split_to_an_audit_though_its_file_differs(tmp_path: Path) -> None:
    """An attack is credited against a defence only if it works on the undefended LoRA of the same sides."""
    examples = [example(index) for index in range(12)]
    first = drawn(12)
    write_split(first, tmp_path / "first.json")
    moved = [replace(one, path=Path("/elsewhere") / one.path.name) for one in examples[::-1]]
    reused = reuse_split(tmp_path / "first.json", moved, secret_of(0))
    write_split(reused, tmp_path / "second.json")
    assert (tmp_path / "first.json").read_bytes() != (tmp_path / "second.json").read_bytes()
    hashes = {find_candidates(tmp_path / name, examples).split_hash for name in ("first.json", "second.json")}
    assert hashes == {first.hash()} == {reused.hash()}


def test_the_sealed_hash_knows_the_split_and_depends_on_its_secret(tmp_path: Path) -> None:
    split = drawn(12)
    write_split(split, tmp_path / "split.json")
    found = find_candidates(tmp_path / "split.json", split.in_order())
    assert found.sealed_hash == split.sealed_hash() != split.hash()
    assert replace(split, secret=secret_of(9)).sealed_hash() != split.sealed_hash()  # who lacks it can check no guess
    assert drawn(12, share=0.3).sealed_hash() != split.sealed_hash()


def test_a_split_file_says_with_which_shares_it_was_drawn_and_old_files_are_still_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = drawn(40, inclusion="bernoulli", share=0.8, aux=0.4)
    write_split(split, tmp_path / "split.json")
    content = json.loads((tmp_path / "split.json").read_text())
    assert content["nonmember_share"] == 0.8 and content["aux_share"] == 0.4
    again = reuse_split(tmp_path / "split.json", split.in_order(), secret_of(0))
    assert (again.nonmember_share, again.aux_share) == (0.8, 0.4)
    del content["nonmember_share"], content["aux_share"], content["secret"]
    content |= {"format": 1, "seed": 3}
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = reuse_split(tmp_path / "old.json", split.in_order(), secret_of(5))
    assert old.nonmember_share is None and old.hash() == split.hash() and old.secret == secret_of(5)
    assert "was written by an earlier version, which drew the sides from its seed" in caplog.text
    caplog.clear()
    assert find_candidates(tmp_path / "old.json", split.in_order()).split_hash == split.hash()
    assert "can find the sides by trying seeds" in caplog.text, "an audit of an old folder says so, too"


def rules(**changed: object) -> SplitRules:
    """As the doors make them."""
    return pick(dataclasses.replace(Config(), inclusion="fixed", **changed), SplitRules)  # type: ignore[arg-type]


def test_a_secret_file_repeats_a_draw_and_without_one_every_draw_is_new(tmp_path: Path) -> None:
    examples = [example(index) for index in range(60)]
    given = rules(split_secret_file=str(write_secret(tmp_path, 3)))
    assert open_split(given, examples, [], new_secret()).hash() == open_split(given, examples, [], new_secret()).hash()
    fresh = [open_split(rules(), examples, [], new_secret()) for _ in range(2)]
    assert fresh[0].hash() != fresh[1].hash() and len({one.secret for one in fresh}) == 2
    assert all(len(one.secret) >= 16 for one in fresh) and fresh[0].secret.hex() not in repr(fresh[0])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("ab" * 15, r"must hold at least 32 hexadecimal digits \(128 bits\), got 30.*openssl rand -hex 32"),
        ("", "must hold at least 32 hexadecimal digits"),
        ("my secret", "must hold only hexadecimal digits"),
        ("\u00e4" * 40, "must hold only hexadecimal digits"),
        (None, "is not a file: there is nothing of this name; write one with: openssl"),
    ],
)
def test_a_secret_that_is_none_is_refused(tmp_path: Path, content: str | None, fault: str) -> None:
    file = tmp_path / "secret.hex"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=f"split_secret_file '{file}' {fault}"):
        open_split(rules(split_secret_file=str(file)), [example(index) for index in range(9)], [], new_secret())


def test_a_split_file_and_a_secret_file_together_are_refused(tmp_path: Path) -> None:
    write_split(drawn(12), tmp_path / "split.json")
    both = rules(split_file=str(tmp_path / "split.json"), split_secret_file=str(write_secret(tmp_path)))
    with pytest.raises(InputError, match="a split file has its own secret; give one of them"):
        open_split(both, [example(index) for index in range(12)], [], new_secret())


def test_a_resumed_run_goes_on_with_its_own_split_and_refuses_another_secret(tmp_path: Path) -> None:
    state, examples = tmp_path / "run" / "state" / "last-state", [example(index) for index in range(12)]
    state.mkdir(parents=True)
    with pytest.raises(InputError, match="only it states the members"):
        open_split(rules(resume=str(state)), examples, [], new_secret())
    split = drawn(12)
    write_split(split, tmp_path / "run" / "split.json")
    resumed = open_split(rules(resume=str(state)), examples, [], new_secret())
    assert resumed.hash() == split.hash() and resumed.secret == split.secret
    other = rules(resume=str(state), split_secret_file=str(write_secret(tmp_path, 99)))
    with pytest.raises(InputError, match="is not the secret of"):
        open_split(other, examples, [], new_secret())


@pytest.mark.parametrize("name", ["split.json", "secret.hex"])
def test_a_file_that_others_may_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    write_split(drawn(12), tmp_path / "split.json")
    write_secret(tmp_path)
    option = {"split.json": "split_file", "secret.hex": "split_secret_file"}[name]
    chosen = rules(**{option: str(tmp_path / name)})
    examples = [example(index) for index in range(12)]
    open_split(chosen, examples, [], new_secret())
    assert "others may read it" not in caplog.text
    (tmp_path / name).chmod(0o640)
    open_split(chosen, examples, [], new_secret())
    assert "others may read it; protect it with chmod 600" in caplog.text


@pytest.mark.parametrize("secret", ["ab" * 15, "zz" * 32, 7, None])
def test_a_split_file_whose_secret_is_none_is_refused(tmp_path: Path, secret: object) -> None:
    write_split(drawn(12), tmp_path / "split.json")
    content = json.loads((tmp_path / "split.json").read_text()) | {"secret": secret}
    (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is not a split.json of this suite"):
        reuse_split(tmp_path / "split.json", [example(index) for index in range(12)], new_secret())
