"""Measuring speed and memory in isolated, interleaved processes."""
