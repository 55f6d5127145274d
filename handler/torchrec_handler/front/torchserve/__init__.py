"""TorchServe: `worker` is the class that it loads, `reader` reads its socket."""
