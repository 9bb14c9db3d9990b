"""Which candidate to try next and which one wins. Knows nothing of how a candidate is built or measured."""
