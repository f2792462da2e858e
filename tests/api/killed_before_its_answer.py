"""`virtha server` that is killed when a keyed request was carried out and its answer is to be kept.

    python killed_before_its_answer.py PYTHON -m virtha.cli.main WORDS…

As a prefix of those words, which it carries out in this process.
"""

import os
import signal
import sys
from typing import NoReturn

from virtha.cli.main import main
from virtha.control import keyed_requests


async def die(*_: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody survives that")


if __name__ == "__main__":
    keyed_requests.save_kept_answer = die
    sys.exit(main(sys.argv[4:]))
