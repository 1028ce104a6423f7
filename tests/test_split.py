"""Who is a member: sides are disjoint, drawn from the seed, kept by pixels, and never empty in silence."""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from library.audit.candidate_pictures import find_cast
from library.check import InputError
from library.data.duplicates import near_duplicates
from library.data.split import SIDES, Split, draw_split, reuse_split, write_split
from tests.data_toy import example


def drawn(count: int, inclusion: str = "fixed", seed: int = 3, share: float = 0.5, aux: float = 0.5) -> Split:
    """A split of pictures without groups."""
    return draw_split(
        [example(index) for index in range(count)],
        [],
        nonmember_share=share,
        aux_share=aux,
        inclusion=inclusion,
        seed=seed,
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


def test_bernoulli_inclusion_is_an_independent_fair_coin() -> None:
    """Over many seeds a picture is a member half of the time, and two pictures agree half of the time."""
    splits = [{example.pixels for example in drawn(40, "bernoulli", seed).members()} for seed in range(400)]
    first, second = example(0).pixels, example(1).pixels
    share = sum(first in members for members in splits) / 400
    agreement = sum((first in members) == (second in members) for members in splits) / 400
    assert abs(share - 0.5) < 0.08 and abs(agreement - 0.5) < 0.08
    assert len({len(members) for members in splits}) > 5  # sizes vary, as coins do


def test_the_draw_depends_on_pixels_and_seed_and_not_on_names_or_order() -> None:
    examples = [example(index) for index in range(50)]
    renamed = [
        replace(example, path=Path(f"/q/{99 - index}.png")) for index, example in reversed(list(enumerate(examples)))
    ]
    keywords = {"nonmember_share": 0.5, "aux_share": 0.5, "inclusion": "bernoulli"}
    assert draw_split(examples, [], seed=1, **keywords).hash() == draw_split(renamed, [], seed=1, **keywords).hash()
    assert draw_split(examples, [], seed=1, **keywords).hash() != draw_split(examples, [], seed=2, **keywords).hash()


@pytest.mark.parametrize("inclusion", ["bernoulli", "fixed"])
def test_pictures_of_one_group_stay_together(inclusion: str) -> None:
    examples = [example(index, group=f"family {index // 3}") for index in range(120)]
    split = draw_split(examples, [], nonmember_share=0.5, aux_share=0.5, inclusion=inclusion, seed=5)
    for side in SIDES:
        others = {example.group for other in SIDES if other != side for example in split.sides[other]}
        assert not others & {example.group for example in split.sides[side]}


def test_the_same_pixels_on_two_sides_are_an_error_that_names_both_files() -> None:
    outsiders = [example(index) for index in range(100, 110)] + [example(200, pixels=example(0).pixels)]
    with pytest.raises(InputError, match="the same picture lies on two sides: '/p/0.png'.*'/p/200.png'"):
        draw_split(
            [example(index) for index in range(10)],
            outsiders,
            nonmember_share=0.5,
            aux_share=0.5,
            inclusion="fixed",
            seed=1,
        )


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_pictures_are_refused(count: int) -> None:
    with pytest.raises(InputError, match="cannot fill the four sides"):
        drawn(count)


def test_an_unlucky_coin_that_empties_a_side_is_reported_with_the_way_out() -> None:
    with pytest.raises(InputError, match="nothing is left for .* use --inclusion fixed"):
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
    assert reuse_split(tmp_path / "split.json", moved).hash() == split.hash()


def test_a_reused_split_keeps_its_groups_whatever_the_folder_says_now(tmp_path: Path) -> None:
    split = drawn(12)
    write_split(split, tmp_path / "split.json")
    regrouped = [replace(one, group="all one") for one in split.in_order()]
    groups = {one.pixels: one.group for one in reuse_split(tmp_path / "split.json", regrouped).in_order()}
    assert groups == {one.pixels: one.group for one in split.in_order()}


def test_a_reused_split_names_missing_and_unknown_pictures(tmp_path: Path) -> None:
    write_split(drawn(12), tmp_path / "split.json")
    with pytest.raises(InputError) as caught:
        reuse_split(tmp_path / "split.json", [example(index) for index in range(1, 14)])
    assert "1 of its 12 images are missing or changed: '0.png'" in str(caught.value)
    assert "does not know 2 images of the folders: '12.png', '13.png'" in str(caught.value)


def test_near_duplicates_across_sides_are_found() -> None:
    split = drawn(40)  # brightness_signs = index: 40 pictures in 6 bits are all near
    members = {example.path.name for example in split.members()}
    pairs = near_duplicates(split, most_bits=1)
    assert pairs and all((left in members) and (right not in members) for left, right in pairs)
    assert all(bin(int(left[:-4]) ^ int(right[:-4])).count("1") <= 1 for left, right in pairs)


def test_a_reused_split_is_the_same_split_to_an_audit_though_its_file_differs(tmp_path: Path) -> None:
    """An attack is credited against a defence only if it works on the undefended LoRA of the same sides."""
    examples = [example(index) for index in range(12)]
    first = drawn(12)
    write_split(first, tmp_path / "first.json")
    reused = reuse_split(tmp_path / "first.json", examples[::-1])
    write_split(reused, tmp_path / "second.json")
    assert (tmp_path / "first.json").read_bytes() != (tmp_path / "second.json").read_bytes()
    hashes = {find_cast(tmp_path / name, examples).split_hash for name in ("first.json", "second.json")}
    assert hashes == {first.hash()} == {reused.hash()}


def test_a_split_file_says_with_which_shares_it_was_drawn_and_old_files_are_still_read(tmp_path: Path) -> None:
    split = drawn(40, inclusion="bernoulli", share=0.8, aux=0.4)
    write_split(split, tmp_path / "split.json")
    content = json.loads((tmp_path / "split.json").read_text())
    assert content["nonmember_share"] == 0.8 and content["aux_share"] == 0.4
    again = reuse_split(tmp_path / "split.json", split.in_order())
    assert (again.nonmember_share, again.aux_share) == (0.8, 0.4)
    del content["nonmember_share"], content["aux_share"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = reuse_split(tmp_path / "old.json", split.in_order())
    assert old.nonmember_share is None and old.hash() == split.hash()
