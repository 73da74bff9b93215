"""What is done, step by step, for whoever follows: `guestnet --verbose` does, and else nobody."""

from collections.abc import Callable

_followers: list[Callable[[str], None]] = []


def follow(say: Callable[[str], None]) -> None:
    """Hear of every step from now on."""
    _followers.append(say)


def leave() -> None:
    """Nobody follows any more."""
    _followers.clear()


def tell(text: Callable[[], str]) -> None:
    """A step that is about to be taken; where its words take time to make, they are made only if somebody follows."""
    for say in _followers:
        say(text())
