"""Selective sample replay: storage, selectors, removers, limiter and snapshot, joined by a buffer, with a Ray shell round it."""
