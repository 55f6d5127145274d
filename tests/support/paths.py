"""Where the repository is, for tests that read its files or start a process in it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
