"""What one stage writes and the next reads: records, JSON Lines, indexed tokens, manifests, atomic publishing."""
