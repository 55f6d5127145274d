"""Archive folder to predictor, one file a step.

verify → process_group → package → factory → weights → quantize → shard → tables → lower →
signature → fuse → self_test; loader runs them in order.
"""
