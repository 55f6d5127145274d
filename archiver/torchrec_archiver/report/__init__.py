"""What an archive says of itself, for people: in a terminal, and as one page with pictures.

`words` makes text that harms no reader; `facts` and `sections` say what there is to show, which
`terminal` and `page` lay out; `charts` draws; `times` runs the model. Nothing here knows an archive
but by what `torchrec_handler.archive.read` found.
"""
