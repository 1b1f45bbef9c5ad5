"""Benchmarks: claims that anyone can run again."""
