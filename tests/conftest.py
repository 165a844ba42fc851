"""One thread, fixed seeds and no network for every test."""

import os
import random
import socket

import numpy as np
import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():  # then Triton runs GPU kernels with NumPy; it looks once, here
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(1)  # two test workers on two cores; and one thread adds in one order
# The same examples on every run, and no deadline: the first call of a Numba function compiles it.
settings.register_profile("quantlab", deadline=None, derandomize=True, database=None)
settings.load_profile("quantlab")

HERE = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - third parties draw from the global generator
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Refuse every connection that would leave this machine."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != getattr(socket, "AF_UNIX", None) and address[0] not in HERE:
            raise OSError(f"a test tried to reach {address[0]}; tests run offline")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
