"""Block keys: a content hash followed by the index of the KV-cache group.

An :data:`OffloadKey` is plain ``bytes``, so it hashes and compares at C speed. Namespaces are folded into the key
where keys enter the system (:func:`scoped`); below that point no part of the framework knows of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NewType, cast

from asyncoffload.errors import InvalidArgument

OffloadKey = NewType("OffloadKey", bytes)

GROUP_BYTES = 4
MAX_HASH_BYTES = 64


def make_key(block_hash: bytes, group: int = 0) -> OffloadKey:
    """Join a block hash (1 to 64 bytes) and a KV-cache group index into a key.

    Raises:
        InvalidArgument: the hash is not ``bytes`` of 1 to 64 bytes, or the group does not fit four bytes.
    """
    if not isinstance(block_hash, bytes) or not 1 <= len(block_hash) <= MAX_HASH_BYTES:
        raise InvalidArgument(f"a block hash is 1 to {MAX_HASH_BYTES} bytes, got {block_hash!r}")
    if not 0 <= group < 1 << (8 * GROUP_BYTES):
        raise InvalidArgument(f"a group index is between 0 and 2**32 - 1, got {group}")
    return OffloadKey(block_hash + group.to_bytes(GROUP_BYTES, "big"))


def block_hash_of(key: OffloadKey) -> bytes:
    """The hash part of a key."""
    return key[:-GROUP_BYTES]


def group_of(key: OffloadKey) -> int:
    """The KV-cache group index of a key."""
    return int.from_bytes(key[-GROUP_BYTES:], "big")


def scoped(namespace: str | bytes, key: OffloadKey) -> OffloadKey:
    """Fold a namespace into a key, so that two namespaces can never share a block.

    The hash part becomes a BLAKE2b digest of the original hash, keyed by the namespace; the group index is kept.
    An empty namespace leaves the key as it is.
    """
    if not namespace:
        return key
    name = namespace.encode() if isinstance(namespace, str) else namespace
    fold = blake2b(digest_size=32, key=blake2b(name, digest_size=32).digest())
    fold.update(key[:-GROUP_BYTES])
    return OffloadKey(fold.digest() + key[-GROUP_BYTES:])


def keys_within(namespace: str, keys: Sequence[OffloadKey]) -> Sequence[OffloadKey]:
    """The keys, checked, with a namespace folded in.

    Raises:
        InvalidArgument: keys are malformed.
    """
    keys = checked_keys(keys)
    return [scoped(namespace, key) for key in keys] if namespace else keys


def checked_keys(keys: Iterable[bytes]) -> Sequence[OffloadKey]:
    """The keys as a sequence, after making sure that each is a key and none appears twice.

    Raises:
        InvalidArgument: a key is not ``bytes``, is too short or too long, or appears twice.
    """
    batch = cast("Sequence[OffloadKey]", keys if isinstance(keys, (list, tuple)) else tuple(keys))
    if list(map(type, batch)).count(bytes) != len(batch):
        index, wrong = next((i, k) for i, k in enumerate(batch) if type(k) is not bytes)
        raise InvalidArgument(
            f"key {index} is {type(wrong).__name__} {wrong!r}, not bytes: build keys with keys.make_key(hash, group)"
        )
    sizes = set(map(len, batch))
    if sizes and (min(sizes) <= GROUP_BYTES or max(sizes) > MAX_HASH_BYTES + GROUP_BYTES):
        wrong = next(k for k in batch if not GROUP_BYTES < len(k) <= MAX_HASH_BYTES + GROUP_BYTES)
        raise InvalidArgument(
            f"key {wrong.hex()} has {len(wrong)} bytes; a key is a hash of 1 to {MAX_HASH_BYTES} bytes "
            f"and {GROUP_BYTES} bytes of group index: build it with keys.make_key(hash, group)"
        )
    if len(set(batch)) != len(batch):
        seen: set[bytes] = set()
        twice = next(k for k in batch if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise InvalidArgument(f"key {twice.hex()} appears twice in one call: pass each block once")
    return batch
