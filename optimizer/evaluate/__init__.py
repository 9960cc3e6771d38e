"""Whether two models answer alike."""
