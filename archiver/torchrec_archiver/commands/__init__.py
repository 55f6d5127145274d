"""The commands, a module each with `HELP`, `EXAMPLES`, `add(parser)` and `run(options)`.

`add` gives the parser its options; `run` prints and returns the exit status, and what it calls
raises. What takes long to import is imported in `run`, so that `--help` does not wait for it.
`EXAMPLES` are lines of shell, which the help shows below the options.
"""
