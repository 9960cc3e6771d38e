"""What dynamic and static quantization share: preparing a graph, choosing nodes, and holding the result to its promise."""
