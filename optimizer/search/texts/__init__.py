"""``optimize`` for models that write text: what is tried, judged on held-out text, and timed writing."""
