"""Where the program begins: `guestnet` and `python3 -m guestnet`."""

import gc
import os


def main() -> None:
    """Run the command line; exits with the command's status."""
    gc.disable()  # a command is over before a collection would pay: a tenth of its time goes into them otherwise
    from guestnet.cli import main as run

    try:
        run()
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        os._exit(end.code)  # what it wrote is flushed; taking the interpreter down by pieces would be another tenth


if __name__ == "__main__":
    main()
