"""What travels between stages: records, codec, ids, topics, accounts, sketch, configuration text."""

from wire.compiled import choose

choose(__path__)
