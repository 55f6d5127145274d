"""Archive folder to predictor, one file a step.

verify → process_group → package → factory → weights → quantize → shard → tables → lower →
signature; loader runs them in order.
"""
