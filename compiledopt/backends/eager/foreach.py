"""foreach: the sequence derived from the program, on lists, in chunks so that temporaries stay small."""

from __future__ import annotations

from itertools import pairwise

from compiledopt.backends.eager.rows import LIMIT, EagerBatch, Row, bytes_of, cut
from compiledopt.backends.eager.sequence import eager

# On the CPU a list is a loop anyway, and what stays in the cache is faster: 27 ms with LIMIT and 13 ms with this one for
# AdamW on 20 tensors of 1M.
CPU_LIMIT = 4 * 2**20


class ForeachBatch(EagerBatch):
    executor = "foreach"

    def room(self, row: Row) -> int:
        temporaries = eager(row.traced.program, foreach=True, compute=row.compute).temporaries
        chunks = pairwise(self._bounds(row, temporaries))
        return temporaries * max((sum(map(bytes_of, row.params[begin:end])) for begin, end in chunks), default=0)

    def update(self) -> None:
        for row in self.rows:
            sequence = eager(row.traced.program, foreach=True, compute=row.compute)
            bounds, lists = self._bounds(row, sequence.temporaries), row.tensors()
            for begin, end in pairwise(bounds):
                whole = end - begin == len(row.params)
                sequence.function(row.columns, *(lists if whole else [tensors[begin:end] for tensors in lists]))

    def _bounds(self, row: Row, temporaries: int) -> list[int]:
        if temporaries not in row.bounds:
            limit = CPU_LIMIT if row.params[0].device.type == "cpu" else LIMIT
            row.bounds[temporaries] = cut(row.params, temporaries, limit)
        return row.bounds[temporaries]
