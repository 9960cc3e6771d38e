"""Training models that their int8 graphs answer like: fake quantization, the loop, and the way back into a graph."""
