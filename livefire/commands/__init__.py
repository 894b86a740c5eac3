"""One command a module, each with `command`; the list is `livefire.cli.COMMANDS`."""
