"""Faster ways to compute what a module computes, one file a kernel, chosen by `registry`."""
