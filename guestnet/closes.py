"""What is open until the end of its block."""

from types import TracebackType
from typing import Self


class Closes:
    """A context manager that calls its own ``close`` at the end of the block, however that ends."""

    def close(self) -> None:
        """Let go of what it owns; doing so twice is no harm."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
