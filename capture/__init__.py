"""Packets, files of packets, or byte streams of a proxy -> exchanges."""

from wire.compiled import choose

choose(__path__)
