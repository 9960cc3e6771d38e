"""The command line: the only place that knows typer or rich, or prints."""
