"""Benchmarks of speed and memory, and the study of samples in `fidelity`.

`make bench` runs them. Where another tool is compared, both are measured in the same run.
"""
