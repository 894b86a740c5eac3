"""What every writer does with records: encode them as one batch, and write that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from bus.ports import BusError
from wire import codec
from wire.account import Increment
from wire.codec import RecordType
from wire.records import Record, SourceRange


class BatchWriter(ABC):
    """Base of writers (`bus.ports.Writer`), which say how one message is written and how they are called."""

    _compress: ClassVar[bool] = True  # False: somebody does it later

    @property
    @abstractmethod
    def _name(self) -> str:
        """As it stands before a message to the user."""

    @abstractmethod
    def write(self, data: bytes) -> int:
        """Append one message; its offset."""

    def write_records(
        self,
        records: Sequence[Record],
        type: RecordType | None = None,
        *,
        first_ns: int = 0,
        last_ns: int = 0,
        sources: tuple[SourceRange, ...] = (),
        increment: Increment | None = None,
    ) -> int:
        """Encode and append one batch; its offset. Raises as `write` does, and BusError for a batch too large."""
        try:
            data = codec.encode(
                records, type, first_ns=first_ns, last_ns=last_ns, sources=sources, increment=increment,
                compress=self._compress,
            )  # fmt: skip
        except codec.CodecError as error:
            raise BusError(f"{self._name}: {error.detail}") from None
        return self.write(data)
