"""Find integrals that are equal as functions, however they are written, by keys made from their values.

index = Index()
index.add(fingerprints(data), "first")
index.find(fingerprints(other))  # "first", or None if no integral in the index equals it
"""

from hashlib import sha256
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ladder_lite.verify.rules.validity import POINTS, Data, bounds_of, sampled

# Width of a grid cell, relative to a value: far above most rounding, far below any real difference.
_CELL: Final = 1e-10
# Values below this size have cells of constant width instead. Terms that cancel leave noise of the size of the terms.
_SMALL: Final = 1e-2
_SMALL_RATIO: Final = 1e-4  # the same for normalized values

_REAL: Final = 1e-9  # imaginary part that a real value may have from rounding, relative to its size
_MIN_REAL: Final = 4  # a function that is real at this many of twelve points is compared only where it is real
# Shifts of the two keys' grids, in cells. Without one, whole numbers and zeros would lie on the edges of cells.
_SHIFTS: Final = np.array([[0.25], [0.75]])
_LARGEST: Final = 1e300  # stands for an infinite bound
_MIN_INFORMATIVE: Final = 4  # of twelve values, neither undefined nor in the cell of 0
# Cell numbers that no value reaches: a value up to 1e308 has a number below 1e13.
_UNDEFINED: Final = np.iinfo(np.int64).min
_NOT_REAL: Final = _UNDEFINED + 1
_IS_NEAR: Final = np.abs(POINTS.real).reshape(2, -1) < 1
_Numbers = NDArray[np.complex128]
Keys = tuple[str, ...]
Label = TypeVar("Label")


def fingerprints(data: Data, up_to_factor: bool = False) -> Keys:
    """Return two keys of an integral. Equal integrals share at least one key, different integrals share none.

    A key is a hash of the values at twelve points and of the bounds, rounded to a grid. The points where the function
    is undefined or not real are part of it. Integrals that double precision cannot tell apart, such as those of
    (x+2)**2015/10**999 and zero, have equal keys. With `up_to_factor`, an integrand equals its multiples.

    Raises ExpressionError if the integrand cannot be read, and ValueError if a bound is invalid.
    """
    # Two keys, because equal values can differ by rounding and fall into neighbouring cells. The grid of the second key
    # is shifted by half a cell and its points are others, so the same accident rarely happens in both.
    function, values = sampled(data)
    sets = values.reshape(2, -1)
    if up_to_factor:
        sets = np.stack([_normalized(of_set, is_near) for of_set, is_near in zip(sets, _IS_NEAR, strict=True)])
    rows = _cells(sets, _SMALL_RATIO if up_to_factor else _SMALL, function.is_complex)
    informative = ((rows[:, : sets.shape[1]] > _NOT_REAL) & (rows[:, : sets.shape[1]] != 0)).sum(axis=1)
    if informative.min() < _MIN_INFORMATIVE:  # powers like (x+2)**2015: both keys take all 24 points
        rows = np.hstack([rows, rows[::-1]])
    if (bounds := bounds_of(data)) is not None:
        # Bounds are rounded to the same grids: "0.5" and "1/2" are equal.
        ends = np.clip([bounds, bounds], -_LARGEST, _LARGEST).astype(np.complex128)
        rows = np.hstack([rows, _cells(ends, _SMALL, False)])
    # The leading byte keeps the first key of one integral from matching the second key of another.
    first, second = (sha256(bytes([number]) + row.tobytes()).hexdigest()[:16] for number, row in enumerate(rows))
    return first, second


class Index(Generic[Label]):
    """Labels of problems by their keys. A lookup takes constant time."""

    def __init__(self) -> None:
        self._labels: dict[str, Label] = {}

    def add(self, keys: Keys, label: Label) -> None:
        """Add a problem by its keys. If an equal one was added before, that one keeps its label."""
        for key in keys:
            self._labels.setdefault(key, label)

    def find(self, keys: Keys) -> Label | None:
        """Return the label of a problem that shares a key, or None."""
        return next((self._labels[key] for key in keys if key in self._labels), None)


def _normalized(values: _Numbers, is_near: NDArray[np.bool_]) -> _Numbers:
    """Divide values by the first nonzero one near the origin, preferably a real one. `is_near`: points near 0."""
    size = np.abs(values)
    usable = np.isfinite(size) & (size > 0)
    if (usable & is_near).any():
        usable &= is_near
    # A function that is zero up to rounding has no factor to divide by.
    if not usable.any() or size[usable].max() < _CELL * _SMALL:
        return values
    usable &= size > 1e-6 * size[usable].max()  # what is smaller may be noise
    real = usable & (np.abs(values.imag) <= _REAL * size)
    chosen = real if real.any() else usable
    with np.errstate(all="ignore"):
        normalized: _Numbers = values / values[np.flatnonzero(chosen)[0]]
        return normalized


def _cells(values: _Numbers, small: float, is_complex: bool) -> NDArray[np.int64]:
    """Return the numbers of the cells of complex values, shape (2, n) -> (2, 2 n): real parts, then imaginary parts.

    Each row has a grid of its own. Cells are proportional to the size of a value, and of constant width below `small`.
    """
    # Without a constant I, conjugates count as equal, because the sign of an imaginary part depends on the branch: for
    # x > 0, 1/sqrt(-x) and sqrt(-1/x) are conjugates.
    imaginary = values.imag if is_complex else np.abs(values.imag)
    with np.errstate(all="ignore"):
        size = np.abs(values)
        # log1p(s/small)/s is about 1/small for a small size s, and log(s/small)/s for a large one.
        scaling = np.where(size > 0, np.log1p(size / small) / (size * _CELL), 0)
        parts = np.floor(np.stack([values.real, imaginary]) * scaling + _SHIFTS)
        # The inner np.where keeps inf and nan from the cast to integers, which would be undefined behaviour.
        finite = np.isfinite(parts)
        cells = np.where(finite, np.where(finite, parts, 0).astype(np.int64), _UNDEFINED)
        real = finite.all(axis=0) & (np.abs(values.imag) <= _REAL * (size + small))
    # If the function is real at enough points, its complex values elsewhere depend on the branch and are not compared.
    not_real = ~real & finite.all(axis=0) & (real.sum(axis=1) >= _MIN_REAL)[:, None]
    return np.hstack([np.where(not_real, _NOT_REAL, part) for part in cells])
