"""Hadamard matrices are what they claim to be, and the transform multiplies by them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_rotation import kronecker, legendre, paley_twelve, sylvester, transform

from quantlab.hadamard import (
    butterflies,
    hadamard_matrix,
    hadamard_transform,
    is_prime,
    residues,
    seed_of,
    split,
)

ORDERS = [n for n in range(1, 301) if seed_of(n)]


def eye(size):
    return torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 32, 128])
def test_powers_of_two_give_sylvester_s_matrix(size):
    assert torch.equal(hadamard_matrix(size), sylvester(size))


def test_order_12_is_paley_s_matrix_of_the_squares_modulo_11():
    assert torch.equal(hadamard_matrix(12), paley_twelve())


def test_768_is_the_product_of_12_and_64():
    assert split(768) == 12
    assert torch.equal(hadamard_matrix(768), kronecker(paley_twelve(), sylvester(64)))


@pytest.mark.parametrize("size", ORDERS)
def test_every_order_gives_ones_and_orthogonal_rows(size):
    H = hadamard_matrix(size)
    assert H.shape == (size, size)
    assert torch.equal(H.abs(), torch.ones_like(H))
    assert torch.equal(H @ H.T, size * eye(size))


def test_the_orders_up_to_100_are_the_multiples_of_four_but_two():
    # 52 and 92 need prime powers (25) or other constructions than Paley's for a prime.
    assert [n for n in ORDERS if n <= 100] == [
        1,
        2,
        *(n for n in range(4, 101, 4) if n not in (52, 92, 100)),
    ]


@pytest.mark.parametrize("size", [1, 2, 12, 16, 20, 28, 36, 48, 96])
def test_the_transform_equals_the_slow_product(size):
    x = torch.randn(3, size, dtype=torch.float64)
    assert torch.allclose(hadamard_transform(x), transform(x, hadamard_matrix(size)), atol=1e-12)


@given(st.sampled_from([n for n in ORDERS if n <= 128]), st.integers(0, 2**20))
def test_the_inverse_gives_the_vector_back_and_lengths_stay(size, seed):
    x = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = hadamard_transform(x)
    assert torch.allclose(hadamard_transform(y, inverse=True), x, atol=1e-12)
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), atol=1e-12)


@pytest.mark.parametrize("size", [768, 2048, 4864, 14336])
def test_a_long_vector_keeps_its_length_and_its_dtype(size):
    x = torch.randn(2, 3, size)
    y = hadamard_transform(x)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)


def test_a_lone_outlier_is_shared_out_evenly():
    spike = torch.zeros(768, dtype=torch.float64)
    spike[417] = 768**0.5
    assert torch.allclose(hadamard_transform(spike).abs(), torch.ones(768).double(), atol=1e-12)


def test_gradients_pass_as_the_inverse_transform():
    x = torch.randn(12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(12, dtype=torch.float64)
    (hadamard_transform(x) * weight).sum().backward()
    assert torch.allclose(x.grad, hadamard_transform(weight, inverse=True), atol=1e-12)


def test_the_input_is_not_changed():
    x = torch.arange(8.0)
    hadamard_transform(x)
    butterflies(x)
    assert torch.equal(x, torch.arange(8.0))


@pytest.mark.parametrize("prime", [3, 5, 7, 11, 13, 17, 19, 23])
def test_residues_follow_euler_s_criterion(prime):
    Q = residues(prime)
    for i in range(prime):
        for j in range(prime):
            assert Q[i, j] == legendre(i - j, prime)


def test_primes_are_primes():
    sieve = [n for n in range(200) if n > 1 and all(n % d for d in range(2, n))]
    assert [n for n in range(200) if is_prime(n)] == sieve


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (52, r"no Hadamard matrix of order 52 is known here; the nearest are 48, 56"),
        (3, r"order 3 is known here; the nearest are 2, 4"),
        (0, r"order is 0; an order is a positive integer"),
        (2.0, r"order is 2\.0; an order is a positive integer"),
    ],
)
def test_an_order_without_a_matrix_is_refused_and_names_its_neighbors(size, message):
    with pytest.raises(ValueError, match=message):
        hadamard_matrix(size)
