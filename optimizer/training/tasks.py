"""What can be trained; known without torch."""

from __future__ import annotations

__all__ = ["TASKS"]

#: Task → the role of the column that says what is right.
TASKS = {
    "text-classification": "label",
    "token-classification": "tags",
    "image-classification": "label",
    "feature-extraction": "score",
}
