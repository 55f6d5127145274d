"""What every tier needs of its process."""

import os

import torch

# Tests run beside a server and each other on two cores.
torch.set_num_threads(1)
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
