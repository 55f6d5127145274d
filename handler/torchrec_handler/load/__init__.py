"""Archive folder to predictor, one file a step.

requirements → process → package → factory → weights → quantize → shard → dense → signature →
self_test; loader runs them in order.
"""
