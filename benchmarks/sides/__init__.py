"""The sides of a line of `benchmarks.peers`."""
