"""Arrays on disk: written whole or not at all, hashed, refused when damaged.

    arrays        trees of arrays: their names, whether they agree, where they go
    sidecar       the digests beside a step, and whether it is as it was written
    stored        a saved step, read
    checkpoint    a run's checkpoints
    weights       parameters alone
"""
