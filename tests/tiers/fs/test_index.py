"""What a tier knows without looking."""

from __future__ import annotations

from asyncoffload.keys import group_of, make_key
from asyncoffload.tiers.fs import index as index_module
from asyncoffload.tiers.fs.index import BlockIndex

A, B, C = (make_key(name, group) for group, name in enumerate((b"a", b"b", b"c")))


def make_index() -> BlockIndex:
    return BlockIndex(lambda key: 100 * (1 + group_of(key)), miss_seconds=2.0)


def test_counts_blocks_and_bytes() -> None:
    index = make_index()
    assert index.add([A, B]) == [A, B]
    assert index.add([B, C]) == [C]
    assert (len(index), index.nbytes) == (3, 600)
    assert index.remove([A, C]) == [A, C]
    assert index.remove([A]) == []
    assert (len(index), index.nbytes) == (1, 200)
    assert B in index
    assert A not in index


def test_a_miss_is_believed_for_a_moment() -> None:
    index = make_index()
    assert index.unknown([A, B], now=10.0) == [A, B]
    index.missed([A], now=10.0)
    assert index.unknown([A, B], now=11.9) == [B]
    assert index.unknown([A, B], now=12.0) == [A, B]


def test_what_is_added_is_no_miss_and_not_unknown() -> None:
    index = make_index()
    index.missed([A], now=10.0)
    index.add([A])
    assert index.unknown([A], now=10.0) == []
    index.remove([A])
    assert index.unknown([A], now=10.0) == [A]


def test_clear_forgets_misses_too() -> None:
    index = make_index()
    index.add([A])
    index.missed([B], now=10.0)
    assert index.clear() == [A]
    assert (len(index), index.nbytes) == (0, 0)
    assert index.unknown([A, B], now=10.0) == [A, B]


def test_a_look_at_the_disk_knows_what_came_and_left_meanwhile() -> None:
    index = make_index()
    index.add([B])
    with index.look() as look, index.look() as other:
        index.add([A])
        index.remove([C])
        look.found([B, C])
        assert look.missed([A, B]) == [B]
        assert other.left == {B, C}
    assert A in index
    assert C not in index
    with index.look() as look:
        look.found([C])
    assert C in index
    assert index.known(b"a"[0]) == [A]
    assert index.known(b"b"[0]) == []


def test_what_a_look_found_does_not_count_as_having_come() -> None:
    index = make_index()
    with index.look() as earlier, index.look() as later:
        earlier.found([A])
        assert later.missed([A]) == [A]


def test_misses_are_bounded() -> None:
    index = make_index()
    keys = [make_key(number.to_bytes(4, "big")) for number in range(index_module.MAX_MISSES + 5)]
    index.missed(keys, now=0.0)
    assert index.unknown(keys, now=1.0) == keys[:5]
