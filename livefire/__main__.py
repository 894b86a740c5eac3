"""`livefire`, and `python -m livefire`."""

from livefire.cli import main

if __name__ == "__main__":
    main()
