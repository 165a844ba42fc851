"""Threads: shared, borrowed only when free, and safe to call from anywhere."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import quantlab as ql
from quantlab.kernels import cpu, threads
from quantlab.kernels.tiles import Tiles


@pytest.fixture
def wide():
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    tiles = Tiles.of(ql.rtn(weight, ql.Scheme(4, 32)).pack())
    x = torch.randn(4, 1024, generator=torch.Generator().manual_seed(1))
    yield x, tiles
    threads.set_threads(None)


def test_the_setting_follows_torch_until_it_is_set():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert threads.threads() == 1
        threads.set_threads(2)
        assert threads.threads() == min(2, os.cpu_count() or 1)
        threads.set_threads(None)
        assert threads.threads() == 1
    finally:
        torch.set_num_threads(before)
        threads.set_threads(None)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_no_other_number_of_threads_is_taken(count):
    with pytest.raises(ValueError, match="pass a positive integer"):
        threads.set_threads(count)


@pytest.mark.parametrize("activation_bits", [8, 16])
def test_two_threads_give_the_same_bits_as_one(wide, activation_bits):
    x, tiles = wide
    results = []
    for count in (1, 2):
        threads.set_threads(count)
        results.append(cpu.matmul(x, tiles, activation_bits))
    assert torch.equal(*results)


def test_eight_python_threads_at_once_give_the_same_bits(wide):
    x, tiles = wide
    threads.set_threads(2)
    wanted = {bits: cpu.matmul(x, tiles, bits) for bits in (8, 16)}
    start = threading.Barrier(8)

    def work(number):
        start.wait(timeout=60)
        bits = 8 if number % 2 else 16
        return all(torch.equal(cpu.matmul(x, tiles, bits), wanted[bits]) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_a_pool_in_use_is_not_waited_for():
    with threads.borrowed(2) as first, threads.borrowed(2) as second:
        assert (first, second) == (2, 1)
    with threads.borrowed(2) as again:
        assert again == 2


def test_the_pool_is_given_back_after_an_error():
    with pytest.raises(KeyError), threads.borrowed(2):
        raise KeyError
    with threads.borrowed(2) as again:
        assert again == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_computes_on_one_thread(wide):
    x, tiles = wide
    threads.set_threads(2)
    wanted = cpu.matmul(x, tiles, 8)
    child = os.fork()
    if child == 0:  # no assert here: pytest must not run twice
        right = threads.threads() == 1 and torch.equal(cpu.matmul(x, tiles, 8), wanted)
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
