"""Run on a host of the lab: one process that carries out many of guestnet's commands, a line of words on stdin each.

It answers each with a line: a JSON list of the exit status and of what the command said. A process for each would
take most of the time where there is no hardware that helps.
"""

import contextlib
import io
import json
import shlex
import sys

from guestnet import cli


def main():
    for line in sys.stdin:
        sys.argv = ["guestnet", *shlex.split(line)]
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                cli.main()
            status = 0
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        print(json.dumps([status, said.getvalue()]), flush=True)


main()
