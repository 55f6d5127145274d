"""Faster ways to compute what a module computes, one file a kind, chosen by `registry`."""
