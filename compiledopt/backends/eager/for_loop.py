"""The for-loop: one tensor after the other. Serves odd layouts."""

from __future__ import annotations

from compiledopt.backends.eager.rows import EagerBatch, Row, bytes_of
from compiledopt.backends.eager.sequence import eager


class ForLoopBatch(EagerBatch):
    """Each parameter by the in-place sequence derived from its program."""

    def room(self, row: Row) -> int:
        temporaries = eager(row.traced.program, foreach=False, compute=row.compute).temporaries
        return temporaries * max(map(bytes_of, row.params), default=0)

    def update(self) -> None:
        for row in self.rows:
            function, columns = eager(row.traced.program, foreach=False, compute=row.compute).function, row.columns
            for tensors in zip(*row.tensors(), strict=True):
                function(columns, *tensors)
