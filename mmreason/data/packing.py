"""Which rows share one sequence, so that little of it is empty."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence

from mmreason.types import ConfigError


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of row indices by best-fit decreasing: the longest row first, each into the fullest bin that takes it.

    At most 11/9 of the fewest possible bins, plus 4 (Johnson et al., "Worst-case performance bounds for simple
    one-dimensional packing algorithms", SIAM J. Comput. 3, 1974). The result depends on nothing but the arguments: of
    equally long rows the first comes first, of equally full bins the oldest. A search for each row among the different
    free lengths, of which there are at most `capacity`: O(n log n).

    Args:
        lengths: (N,) tokens of each row, at least 1.
        capacity: tokens of a bin.

    Returns: bins in the order in which they were opened, rows in the order in which they were put in.
    Raises: ConfigError naming the first row that is longer than a bin, or empty.
    """
    bins: list[list[int]] = []
    spaces: list[int] = []  # the different free lengths of open bins, ascending
    open_bins: dict[int, list[int]] = {}  # free length -> heap of bins
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        length = int(lengths[row])
        if not 0 < length <= capacity:
            raise ConfigError(f"row {row} has {length} tokens: it can't be packed into {capacity}; raise max_length")
        place = bisect_left(spaces, length)
        if place == len(spaces):
            bins.append([row])
            _open(len(bins) - 1, capacity - length, spaces, open_bins)
            continue
        space = spaces[place]
        found = heapq.heappop(open_bins[space])
        if not open_bins[space]:
            del open_bins[space], spaces[place]
        bins[found].append(row)
        _open(found, space - length, spaces, open_bins)
    return bins


def _open(which: int, space: int, spaces: list[int], open_bins: dict[int, list[int]]) -> None:
    if space == 0:
        return
    if space not in open_bins:
        insort(spaces, space)
        open_bins[space] = []
    heapq.heappush(open_bins[space], which)
