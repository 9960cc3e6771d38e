"""One file a task, each ending in ``TASK = Task(...)``; see ``docs/extending.md``."""
