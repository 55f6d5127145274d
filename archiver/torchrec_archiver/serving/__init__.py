"""Archives in a TorchServe of their own, from any folder: started, asked, loaded, stopped.

The data goes: archive → settings and java → frontend → recorded → running; then asking → load →
picture. What starts a server imports no torch, so that it starts at once.
"""

JSON = "application/json"
PROTOBUF = "application/x-protobuf"
