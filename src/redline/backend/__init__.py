"""What runs inside Triton's Python backend. A release carries a copy of it, so it imports nothing that is not copied."""
