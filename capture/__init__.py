"""Packets, files of packets, or byte streams of a proxy -> exchanges."""
