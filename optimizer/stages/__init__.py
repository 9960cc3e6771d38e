"""One file a stage, each ending in ``STAGE = Stage(...)``; see ``docs/extending.md``."""
