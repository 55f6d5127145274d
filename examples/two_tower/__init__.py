"""User and item towers on MovieLens-100k, whose embeddings are served and searched."""
