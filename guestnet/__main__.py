"""``python -m guestnet`` is the same command as ``guestnet``."""

import sys

from guestnet.cli import main

sys.exit(main())
