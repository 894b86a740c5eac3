"""`livefire`, and `python -m livefire`."""

from __future__ import annotations

import signal


def main() -> None:
    """Until the command line is loaded there is nothing to clean up: Ctrl-C ends the process, without a traceback."""
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:  # ignored stays ignored (nohup)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from livefire import cli

    signal.signal(signal.SIGINT, interrupt)
    cli.main()


if __name__ == "__main__":
    main()
