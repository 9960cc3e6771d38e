"""What both quantizations share: preparing a graph, choosing nodes, and holding the result to its promise."""
