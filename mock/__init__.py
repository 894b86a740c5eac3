"""Recorded answers of third parties, served to stress traffic."""
