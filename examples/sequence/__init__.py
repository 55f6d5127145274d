"""Which movie a MovieLens user rates next, told by the sequence of those rated before."""
