"""What a model takes and gives, found by asking it.

`inputs` (and which ids `reach` the tables), then `outputs`: what is `told`, what `counts` show,
what changes `together`; `recorded` holds a worker's model to what the build saw.
"""
