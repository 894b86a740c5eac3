"""The front door: command line, settings with origins, supervisor of processes, demo, doctor."""

VERSION = "0.1.0"
