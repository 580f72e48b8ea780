"""What belongs together is in one split, and what the source fixed stays as it is."""

import pytest

from components.data.splits import Conflict, Draw, Photo, connected, own_split, settle

DRAW = Draw(0, {"test": 0.2, "val": 0.1})


def key_of(split: str, start: int = 0) -> str:
    """Returns a key that is drawn for `split`."""
    return next(str(number) for number in range(start, start + 1000) if DRAW(str(number)) == split)


def test_links_join_rows():
    assert connected([(4, 1), (2, 3), (1, 5), (6, 6)]) == [[1, 4, 5], [2, 3]]
    assert connected([]) == []
    assert connected((row, row + 1) for row in range(5000)) == [list(range(5001))]


def test_drawn_photos_that_are_near_get_one_split_and_the_others_keep_theirs():
    keys = [key_of(split) for split in ("test", "val", "train")]
    photos = [Photo(None, key) for key in (*keys, "other")]
    splits, left_out = settle(photos, [(0, 1), (1, 2)], DRAW)
    assert splits[:3] == [DRAW(min(keys))] * 3
    assert splits[3] == own_split(photos[3], DRAW)
    assert not left_out


def test_no_split_grows_because_photos_are_near():
    """If a group went to the first split of its members, groups of ten would be in test in 9 of 10 cases."""
    photos = [Photo(None, f"{group} {member}") for group in range(600) for member in range(10)]
    pairs = [(row, row + 1) for row in range(len(photos) - 1) if (row + 1) % 10]
    splits, _ = settle(photos, pairs, DRAW)
    assert all(len(set(splits[start : start + 10])) == 1 for start in range(0, len(photos), 10))
    assert 0.15 < splits.count("test") / len(splits) < 0.25
    assert 0.06 < splits.count("val") / len(splits) < 0.14


def test_a_group_is_drawn_by_its_name_whatever_else_is_in_it():
    one = [Photo(None, key, "burst 7") for key in "abc"]
    more = [*one, *(Photo(None, key, "burst 7") for key in "defgh"), Photo(None, "alone")]
    (split,) = set(settle(one, [], DRAW)[0])
    assert set(settle(more, [], DRAW)[0][:-1]) == {split} == {DRAW("burst 7")}


@pytest.mark.parametrize("grouped", [False, True])
def test_a_photo_of_a_later_split_is_left_out_where_the_source_fixed_both(grouped):
    group = "g" if grouped else None
    photos = [Photo("test", "a", group), Photo("val", "b", group), Photo("train", "c", group), Photo("train", "d")]
    pairs = [] if grouped else [(0, 1), (0, 2)]
    splits, left_out = settle(photos, pairs, Draw(0, {}))
    assert left_out == {1: Conflict(0, grouped=grouped), 2: Conflict(0, grouped=grouped)}
    assert splits[0] == "test"
    assert splits[3] == "train"


def test_a_photo_near_to_one_that_is_left_out_stays():
    photos = [Photo("test", "a"), Photo("train", "b"), Photo("train", "c")]
    splits, left_out = settle(photos, [(0, 1), (1, 2)], Draw(0, {}))
    assert left_out.keys() == {1}
    assert splits[2] == "train"


def test_a_photo_without_a_split_joins_one_that_has_one_and_separates_no_others():
    photos = [Photo("test", "a"), Photo(None, "b"), Photo("train", "c")]
    splits, left_out = settle(photos, [(0, 1), (1, 2)], Draw(0, {"val": 0.5}))
    assert splits[:2] == ["test", "test"]
    assert left_out == {2: Conflict(0, grouped=False)}  # near to b, which is in test
