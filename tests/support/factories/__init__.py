"""Predict factories that tests package, written as users write them."""
