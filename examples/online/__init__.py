"""MovieLens trained while it is served: a delta every second."""
