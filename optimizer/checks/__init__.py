"""One file a check, each ending in ``CHECK = Check(...)``: commands that answer with a report."""
