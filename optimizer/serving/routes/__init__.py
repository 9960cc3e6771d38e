"""One file a family of routes, each ending in ``ROUTES = (...)``; :mod:`optimizer.serving.app` puts them together."""
