"""What a factory's module imports and every worker has: packagers extern it."""

FACTOR = 3.0
