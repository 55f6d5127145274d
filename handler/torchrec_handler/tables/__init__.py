"""What is known of TorchRec's embedding collections: where they are, their rows, their lookups."""
