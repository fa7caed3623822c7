"""Benchmarks: each script prints what it measured beside the bar of the design, ratios from interleaved runs."""
