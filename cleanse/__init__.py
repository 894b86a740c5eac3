"""Raw exchanges become a clean recording: what cannot or must not be fired is left out, the rest named and in order."""
