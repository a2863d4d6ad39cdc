import numpy as np
import pytest

from ladder_lite.verify.numerics.quadrature import NODES, between_nodes


def test_integrals_between_nodes() -> None:
    half, middle = np.array([1.0, 0.5]), np.array([0.3, 2.0])
    x = middle[:, None] + half[:, None] * NODES
    integrals, size = between_nodes(np.exp(x), half)
    assert np.allclose(integrals, np.diff(np.exp(x), axis=1), rtol=1e-12, atol=1e-15)
    assert size == pytest.approx(np.exp([1.3, 2.5]))
    with np.errstate(divide="ignore"):
        integrals, _ = between_nodes(1 / x, half)
    assert np.isnan(integrals).all(axis=1).tolist() == [True, False]  # there is a pole in the first panel
