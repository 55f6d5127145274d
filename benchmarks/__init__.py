"""What `make bench` and `make bench-scale` run."""
