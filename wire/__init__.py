"""What travels between stages: records, codec, ids, topics, accounts, sketch, configuration text."""
