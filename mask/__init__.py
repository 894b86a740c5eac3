"""What must never be written: secrets are taken out of every exchange before its first write."""

from wire.compiled import choose

choose(__path__)
