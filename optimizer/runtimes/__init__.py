"""One file a runtime, each ending in ``RUNTIME = Runtime(...)``; see ``docs/extending.md``."""
