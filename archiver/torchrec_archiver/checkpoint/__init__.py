"""A checkpoint as a training job left it: a module a format, `names` finds the model in it."""
