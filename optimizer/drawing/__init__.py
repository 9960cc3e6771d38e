"""Pages and drawings that load nothing: shared by every report that is one HTML file."""
