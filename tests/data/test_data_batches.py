"""Rows and batches: who is used how often, in which order, and that membership follows the picture."""

from collections import Counter

import pytest
import torch

from library.data.batches import AuxCycle, MemberBatches, Pictures
from library.data.split import SIDES, draw_split
from library.data.training_set import build_training_set, regularisation_uses
from library.errors import InputError
from library.seeding import stream
from tests.helpers.data_toy import example, pictures
from tests.helpers.keys import key_of, secret_of


def make_pictures(
    count: int, members: int, repeats: int = 1, sizes: tuple[tuple[int, int], ...] = ((16, 16),), **rules: object
) -> Pictures:
    """Pictures without pixels; the first ``members`` are members."""
    return pictures(
        [example(index, repeats=repeats, **rules) for index in range(count)],
        [repeats if index < members else 0 for index in range(count)],
        [index < members for index in range(count)],
        sizes=[sizes[index % len(sizes)] for index in range(count)],
    )


def rows_of(members: MemberBatches, steps: range) -> list[tuple[int, ...]]:
    """Rows of every batch of some steps."""
    return [batch.indices for step in steps for batch in members.of_step(step)]


@pytest.mark.parametrize(("batch_size", "accumulation", "processes"), [(1, 1, 1), (4, 1, 1), (3, 2, 1), (2, 1, 2)])
def test_every_member_is_used_repeats_times_an_epoch_and_no_non_member_ever(
    batch_size, accumulation, processes
) -> None:
    """Exposures over three epochs match the split: method.md section 13, check 7."""
    rows = make_pictures(20, 12, repeats=3, sizes=((16, 16), (32, 16)), batch_size=batch_size)
    counted: Counter[int] = Counter()
    for rank in range(processes):
        members = MemberBatches(rows, accumulation=accumulation, key=key_of(1), rank=rank, processes=processes)
        for step in range(3 * members.steps_per_epoch):
            for batch in members.of_step(step):
                assert batch.is_member.all()
                counted.update(batch.indices)
    assert set(counted) == set(range(12)) and all(count == 9 for count in counted.values())


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_every_process_has_equally_many_batches_even_where_there_are_fewer_than_processes(processes: int) -> None:
    rows = make_pictures(4, 2, batch_size=2)  # one batch an epoch
    dealt = [
        MemberBatches(rows, accumulation=1, key=key_of(1), rank=rank, processes=processes) for rank in range(processes)
    ]
    assert [len(one.of_step(0)) for one in dealt] == [1] * processes


def test_the_order_is_a_function_of_seed_and_epoch_and_can_be_entered_anywhere() -> None:
    rows = make_pictures(20, 10, batch_size=3)
    one, other = (MemberBatches(rows, accumulation=1, key=key_of(1)) for _ in range(2))
    straight = rows_of(one, range(12))
    assert rows_of(other, range(7, 12)) == straight[7:] and rows_of(other, range(0, 7)) == straight[:7]
    assert straight[:4] != straight[4:8]
    assert rows_of(MemberBatches(rows, accumulation=1, key=key_of(2)), range(4)) != straight[:4]


def test_membership_belongs_to_the_picture_whatever_the_order() -> None:
    """R1 of method.md: shuffling, bucketing and re-opening never move a picture to another side."""
    rows = make_pictures(30, 11, sizes=((16, 16), (16, 8), (8, 16)))
    for seed in range(3):
        for batch in rows.batches_by_shape(torch.randperm(30, generator=stream(seed)).tolist(), 4, 0, "look"):
            assert batch.is_member.tolist() == [row < 11 for row in batch.indices]


def test_aux_cycles_are_endless_reshuffled_and_never_repeat_a_stale_batch() -> None:
    cycle = AuxCycle(list(range(100, 107)), 1, "members-aux")
    taken = [row for start in range(0, 28, 4) for row in cycle.take(start, 4)]
    rounds = [taken[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(one) == list(range(100, 107)) for one in rounds) and len({tuple(one) for one in rounds}) > 1


def two_datasets() -> Pictures:
    """Dataset 0 at 16 px with batches of 2, dataset 1 at 32 px with batches of 3; each of 8 pictures lies in both."""
    examples = [
        example(index, repeats=1 + dataset, dataset=dataset, batch_size=2 + dataset)
        for dataset in (0, 1)
        for index in range(8)
    ]
    members = [one.brightness_signs < 5 for one in examples]
    return pictures(
        examples,
        [one.repeats if member else 0 for one, member in zip(examples, members, strict=True)],
        members,
        sizes=[(16, 16)] * 8 + [(32, 32)] * 8,
    )


def test_a_batch_never_mixes_datasets_and_each_dataset_has_its_batch_size_and_repeats() -> None:
    rows = two_datasets()
    members = MemberBatches(rows, accumulation=1, key=key_of(3))
    assert members.steps_per_epoch == 3 + 4  # 5 uses in batches of 2, 10 uses in batches of 3
    counted: Counter[int] = Counter()
    for batch in members.epoch_indices(0):
        datasets = {rows.examples[row].subset.dataset for row in batch}
        assert len(datasets) == 1 and len(batch) <= 2 + datasets.pop()
        counted.update(batch)
    assert counted == {**dict.fromkeys(range(5), 1), **dict.fromkeys(range(8, 13), 2)}


def test_membership_follows_the_picture_through_datasets_repeats_resolutions_and_shuffling() -> None:
    """A picture at two resolutions is a member in both or in none, in training batches and in the attacker's."""
    rows = two_datasets()
    members = MemberBatches(rows, accumulation=1, key=key_of(3))
    for step in range(3 * members.steps_per_epoch):
        for batch in members.of_step(step):
            assert batch.is_member.all() and all(rows.examples[row].brightness_signs < 5 for row in batch.indices)
            assert (
                batch.mean.float().mean(dim=(1, 2, 3)) == torch.tensor(batch.indices)
            ).all()  # the row's own latents
    for batch in rows.batches_by_shape(list(range(16)), 4, 0, "attack"):
        assert batch.is_member.tolist() == [rows.examples[row].brightness_signs < 5 for row in batch.indices]


def test_exposures_count_a_picture_once_however_many_datasets_use_it() -> None:
    assert two_datasets().training_set.member_uses() == [3] * 5


def test_the_same_picture_in_two_datasets_lands_on_one_side() -> None:
    twice = [example(index, dataset=dataset) for dataset in (0, 1) for index in range(40)]
    for seed in range(5):
        sides = draw_split(twice, [], nonmember_share=0.5, aux_share=0.5, inclusion="bernoulli", secret=secret_of(seed))
        side_of = dict(zip((one.pixels for one in sides.in_order()), sides.sides_in_order(), strict=True))
        assert all(side_of[one.pixels] == side for one, side in
                   zip(sides.in_order(), sides.sides_in_order(), strict=True))  # fmt: skip


def test_one_picture_in_two_groups_is_an_error_that_names_both_files() -> None:
    pair = [example(1, group="a"), example(2, group="b", pixels=example(1).pixels)]
    with pytest.raises(InputError, match="the same picture has two groups: '/p/1.png' and '/p/2.png'"):
        draw_split(pair, [], nonmember_share=0.5, aux_share=0.5, inclusion="fixed", secret=secret_of(1))


@pytest.mark.parametrize(
    ("repeats", "member_repeats", "uses"),
    [((1, 1), (3, 4), [4, 3]), ((2, 3), (9,), [4, 5]), ((5, 5), (3,), [3, 0]), ((1, 1, 1), (1, 1), [1, 1, 0])],
)
def test_regularisation_is_repeated_or_cut_to_the_uses_of_the_members(repeats, member_repeats, uses) -> None:
    public = [example(100 + place, repeats=times) for place, times in enumerate(repeats)]
    members = [example(place, repeats=times) for place, times in enumerate(member_repeats)]
    assert regularisation_uses(public, members) == uses and sum(uses) == sum(member_repeats)


def test_regularisation_of_a_dataset_without_members_is_refused() -> None:
    with pytest.raises(InputError, match=r"datasets\[1\] has regularisation images but no members"):
        regularisation_uses([example(100, dataset=1)], [example(1, dataset=0)])


def test_regularisation_images_are_in_training_batches_alone_and_never_members() -> None:
    """They carry prior_loss_weight, lie on no side, and are no exposure of anybody."""
    rules = {"resolution": "16", "batch_size": 2}
    sides = draw_split([example(index, repeats=2, **rules) for index in range(16)], [], nonmember_share=0.5,
                       aux_share=0.5, inclusion="fixed", secret=secret_of(1))  # fmt: skip
    training_set = build_training_set(sides, [example(100 + index, **rules) for index in range(3)], 0.25, 8)
    public = [row for row, one in enumerate(training_set.examples) if one.brightness_signs >= 100]
    assert public == [12, 13, 14] and sum(training_set.uses[row] for row in public) == 16 == sum(
        training_set.member_uses()
    )
    rows = pictures(training_set.examples, training_set.uses, training_set.is_member, weights=training_set.weights)
    members, seen = MemberBatches(rows, accumulation=1, key=key_of(1)), 0
    for step in range(members.steps_per_epoch):
        for batch in members.of_step(step):
            for place, row in enumerate(batch.indices):
                assert bool(batch.is_member[place]) != (row in public)
                assert float(batch.weights[place]) == (0.25 if row in public else 1.0)
                seen += row in public
    assert seen == 16
    assert not set(public) & {
        row for side in SIDES[:3] for row in sides.indices(side)
    }  # the fourth is not trained with


def test_half_of_all_uses_are_mirrored_and_plain_looks_never_are() -> None:
    flipped = pictures([example(1), example(2)], [1, 1], [True, True], mirrored=True)
    signs = [float(flipped.batch([1], step, "members").mean.mean()) for step in range(400)]
    assert set(signs) == {-1.0, 1.0} and abs(sum(signs)) < 60  # 3 standard deviations of 400 fair coins
    assert float(flipped.batch([1], 7, "members").mean.mean()) == signs[7]
    assert all(float(flipped.plain_batches([1], 8)[0].mean.mean()) == 1.0 for _ in range(20))


def test_plain_batches_have_whole_captions_with_prefix_and_suffix() -> None:
    random = {"shuffle_caption": True, "caption_dropout_rate": 1.0, "caption_prefix": "pre", "caption_suffix": "post"}
    rows = pictures([example(3, **random)], [1], [True])
    assert not rows.static_captions
    used, plain = rows.batch([0], 0, "members").tokens, rows.plain_batches([0], 4)[0].tokens
    assert used.sum() == 0 and bytes(plain[0, 0].tolist()).rstrip(b"\0") == b"pre caption 3 post"


def test_captions_are_static_where_every_use_gives_the_same_tokens() -> None:
    static = pictures([example(3, caption_prefix="pre", keep_tokens=2)], [1], [True])
    assert static.static_captions and torch.equal(static.batch([0], 0, "a").tokens, static.batch([0], 9, "b").tokens)
    for rules in ({"shuffle_caption": True}, {"caption_dropout_every_n_epochs": 2}, {"token_warmup_step": 0.5}):
        assert not pictures([example(1), example(3, **rules)], [1, 1], [True, True]).static_captions
