"""What a running service shows and what to do about it: scrape, burn rate, decide. Knows nothing of how it is served."""
