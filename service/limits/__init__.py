"""The limiter: what a request is charged, and by whom it is decided. Start at `limiter.py`."""
