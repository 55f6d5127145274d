"""What a model takes and gives, found by asking it.

`inputs` (what calls have `shown`, and which ids `reach` the tables), then `outputs`: what is
`told`, what `counts` show, what changes `together`; `recorded` holds a worker's model to what the
build saw.
"""
