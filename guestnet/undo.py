"""The one way to take back what was begun."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self


class Undo:
    """A stack of inverses, run last-first unless the block that made them ends well.

    Register the inverse on the line after the effect::

        with Undo() as undo:
            links.add(wanted)
            undo.push(f"delete {wanted.name}", links.delete, wanted.name)

    The error that ended the block stays the one that is raised. An inverse that fails does not stop the others; each
    failure is added to that error as a note, so that a person sees what is left behind. A signal that ends an inverse
    in its middle (an impatient second Ctrl-C) is such a failure.
    """

    def __init__(self) -> None:
        self._inverses: list[tuple[str, Callable[[], object]]] = []

    def push(self, what: str, inverse: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Remember how to take back the effect just made; ``what`` names the inverse for a person."""
        self._inverses.append((what, lambda: inverse(*args, **kwargs)))

    def drop(self) -> None:
        """Forget the inverse pushed last: its effect was refused, so what it would take back is not ours."""
        self._inverses.pop()

    def keep(self) -> None:
        """Accept everything done so far: nothing pushed until now will be taken back."""
        self._inverses.clear()

    def run(self) -> list[str]:
        """Take everything back now; give one line for each inverse that failed."""
        failures = []
        while self._inverses:
            what, inverse = self._inverses.pop()
            try:
                inverse()
            except BaseException as error:  # every inverse gets its turn, whatever the one before it met
                failures.append(f"not undone: {what}: {str(error) or type(error).__name__}")
        return failures

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.keep()
            return
        for failure in self.run():
            error.add_note(failure)
