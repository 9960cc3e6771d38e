"""The forms of routes that are too long to stand beside them: V2's, those of text, those of tasks."""
