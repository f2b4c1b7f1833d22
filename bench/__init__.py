"""Measurements that back the claims: what a limited request costs, and whether the count is exact.

python -m bench tax      # CPU a request: no limiter, stock slowapi, ours
python -m bench exact    # many requests through many processes: exactly the limit is admitted
"""
