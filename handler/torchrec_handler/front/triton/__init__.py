"""Triton's python backend: an archive answered by the engine, one instance a process."""
