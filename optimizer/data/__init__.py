"""Rows from files, and rows into a model's inputs, without torch."""
