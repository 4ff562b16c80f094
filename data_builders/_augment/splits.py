"""Splits that keep families together: a variant never lies in another split than what it was made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from mmreason.types import ConfigError, DataError, Example


def split_by_parent(
    rows: Iterable[Example],
    shares: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
    assigned: Mapping[str, str] | None = None,
) -> dict[str, list[Example]]:
    """Rows by split; all rows of a family, a parent with its children and theirs, lie in the same one.

    A row's parent is `meta["parent"]`, an id; where the parent isn't among the rows, its id still joins its children,
    and so does `meta["root"]`, the first ancestor. Which split a family gets follows from the seed and the first
    ancestor's id alone, so that a set that grows keeps its splits.

    Args:
        shares: split -> share of the families (default: train 0.9, test 0.1).
        assigned: id -> split of rows that are split already; their families follow them.

    Returns: each split's rows in their order; splits without a row are empty lists.
    Raises: ConfigError for shares that are none; DataError where parents go in a circle, or where two members of a
        family are assigned to different splits.
    """
    given = {"train": 0.9, "test": 0.1} if shares is None else dict(shares)
    if not given or min(given.values()) < 0 or sum(given.values()) <= 0:
        raise ConfigError(f"shares: {given} are no shares; give numbers above 0, such as {{train: 0.9, test: 0.1}}")
    rows = list(rows)
    parents: dict[str, str] = {}
    for row in rows:
        meta = row.get("meta") or {}
        above = meta.get("parent") or meta.get("root")
        if above is not None and above != row["id"]:
            parents[row["id"]] = str(above)
    fixed = _of_families(parents, assigned or {})
    known = [*given, *(split for split in fixed.values() if split not in given)]
    split_rows: dict[str, list[Example]] = {name: [] for name in dict.fromkeys(known)}
    roots: dict[str, str] = {}
    for row in rows:
        family = _root(row["id"], parents, roots)
        split_rows[fixed.get(family) or _drawn(family, given, seed)].append(row)
    return split_rows


def family_of(example: Example) -> str:
    """The id of a row's first ancestor, as far as the row itself knows it: what its children's `meta["root"]` is."""
    meta = example.get("meta") or {}
    return str(meta.get("root") or meta.get("parent") or example["id"])


def _of_families(parents: Mapping[str, str], assigned: Mapping[str, str]) -> dict[str, str]:
    """Family -> the split that one of its members has."""
    fixed: dict[str, str] = {}
    by: dict[str, str] = {}
    roots: dict[str, str] = {}
    for name, split in assigned.items():
        family = _root(name, parents, roots)
        if fixed.setdefault(family, split) != split:
            raise DataError(
                f"{name} is assigned to {split!r} and {by[family]}, of the same family, to {fixed[family]!r}",
                row=name,
                reason="split",
            )
        by.setdefault(family, name)
    return fixed


def _root(name: str, parents: Mapping[str, str], roots: dict[str, str]) -> str:
    path = [name]
    while path[-1] in parents and path[-1] not in roots:
        above = parents[path[-1]]
        if above in path:
            raise DataError(f"row {name}: its parents go in a circle, {' → '.join([*path, above])}", row=name)
        path.append(above)
    root = roots.get(path[-1], path[-1])
    roots.update(dict.fromkeys(path, root))
    return root


def _drawn(family: str, shares: Mapping[str, float], seed: int) -> str:
    """By the family's own hash, which no other row moves."""
    digest = hashlib.sha256(f"{seed}\0{family}".encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64 * sum(shares.values())
    for name, share in shares.items():
        place -= share
        if place < 0:
            return name
    return list(shares)[-1]
