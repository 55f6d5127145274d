"""Archives in a TorchServe of their own, from any folder: started, asked, loaded, stopped.

The data goes: archive → samples → settings and java → frontend → running; then load → picture.
Nothing here imports torch, so that a server starts at once.
"""
