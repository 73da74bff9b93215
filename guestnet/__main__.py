"""Where the program begins: `guestnet` and `python3 -m guestnet`."""

import gc


def main() -> None:
    """Run the command line; exits with the command's status."""
    gc.disable()  # a command is over before a collection would pay: a tenth of its time goes into them otherwise
    from guestnet.cli import main as run

    run()


if __name__ == "__main__":
    main()
