"""The problems that the benchmarks solve."""
