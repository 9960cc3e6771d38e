"""Text over HTTP: a generator's pieces in an event loop, what was asked in three dialects, and what is answered."""
