"""The servers that people write or take today, around the same file: what ``ml-opt serve`` is measured beside."""
