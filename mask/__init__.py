"""What must never be written: secrets are taken out of every exchange before its first write."""
