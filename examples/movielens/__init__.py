"""A TorchRec DLRM on MovieLens-100k that says whether a user will rate a movie 4 or 5."""
