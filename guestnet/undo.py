"""The one way to take back what was begun."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self


class Undo:
    """A stack of inverses, run last-first unless the block that made them ends well.

    Push the inverse on the line before the effect, and let it do nothing where the effect did not come about::

        with Undo() as undo:
            undo.push(f"macvtap {wanted.name}", delete_if_there, wanted.name)
            links.add(wanted, parent.index)

    The error that ended the block stays the one that is raised. An inverse that fails does not stop the others; each
    failure is added to that error as a note, so that a person sees what is left behind. A signal that ends an inverse
    in its middle (an impatient second Ctrl-C) is such a failure.
    """

    def __init__(self) -> None:
        self._inverses: list[tuple[str, Callable[[], object]]] = []

    def push(self, what: str, inverse: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Remember how to take back the effect that follows; ``what`` names it for a person."""
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
