"""Real models, each with its factory, that the README and the tests serve."""
