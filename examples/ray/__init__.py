"""The same engine behind Ray Serve."""
