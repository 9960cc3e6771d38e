"""Every way to write a report: one file a format, each ending in ``FORMAT = Format(...)``."""
