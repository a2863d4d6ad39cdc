"""Which integrals are equal as functions, however they are written: keys of their values, and an index of these.

index = Index()
index.add(fingerprints(data), "first")
index.find(fingerprints(other))  # "first", None if it equals none
"""

from hashlib import sha256
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ladder_lite.verify.rules.validity import POINTS, Data, bounds_of, sampled

_CELL: Final = 1e-10
"""Equal values may differ by this much of their size: far above most rounding, far below any real difference."""

_SMALL: Final = 1e-2
_SMALL_RATIO: Final = 1e-4
"""Below this size, by this much of it: what cancels to zero leaves noise of the size of its terms."""

_REAL: Final = 1e-9  # the imaginary part that a real value may have by rounding, of its size
_MIN_REAL: Final = 4  # points out of twelve at which a function has to be real to be compared there alone
_SHIFTS: Final = np.array([[0.25], [0.75]])  # off the edges, on which whole numbers and zeros would lie
_LARGEST: Final = 1e300  # stands for an infinite bound
_MIN_TELLING: Final = 4  # values out of twelve that are neither undefined nor nothing
_UNDEFINED: Final = np.iinfo(np.int64).min
_NOT_REAL: Final = _UNDEFINED + 1
_NEAR: Final = np.abs(POINTS.real).reshape(2, -1) < 1
_Numbers = NDArray[np.complex128]
Keys = tuple[str, str]
Label = TypeVar("Label")


def fingerprints(data: Data, up_to_factor: bool = False) -> Keys:
    """Two keys of an integral, of which equal ones share at least one, and different ones none.

    Each holds the values at twelve points and the bounds by their values, rounded on a grid of its own, half a cell
    from the other's: where rounding parts equal values on one grid, or terms cancel to noise at one point, the other
    key stands. Where a function is undefined, or real elsewhere only, counts too; of one that is hardly real at any
    point, and holds no I, conjugate values are equal. With `up_to_factor` an integrand equals its multiples. What no
    value in double precision tells apart, as (x+2)**2015/10**999 and zero, is equal. Raises ExpressionError and
    ValueError for what is no integral.
    """
    function, values = sampled(data)
    sets = values.reshape(2, -1)
    if up_to_factor:
        sets = np.stack([_normalized(of_set, near) for of_set, near in zip(sets, _NEAR, strict=True)])
    rows = _cells(sets, _SMALL_RATIO if up_to_factor else _SMALL, function.is_complex)
    telling = ((rows[:, : sets.shape[1]] > _NOT_REAL) & (rows[:, : sets.shape[1]] != 0)).sum(axis=1)
    if telling.min() < _MIN_TELLING:  # powers like (x+2)**2015: both keys hold all points
        rows = np.hstack([rows, rows[::-1]])
    if (bounds := bounds_of(data)) is not None:
        ends = np.clip([bounds, bounds], -_LARGEST, _LARGEST).astype(np.complex128)
        rows = np.hstack([rows, _cells(ends, _SMALL, False)])
    first, second = (sha256(bytes([number]) + row.tobytes()).hexdigest()[:16] for number, row in enumerate(rows))
    return first, second


class Index(Generic[Label]):
    """The labels of integrals by their keys; finding one takes the same time however many there are."""

    def __init__(self) -> None:
        self._labels: dict[str, Label] = {}

    def add(self, keys: Keys, label: Label) -> None:
        """Keep a label for the integral of these keys; an equal one that came first keeps its own."""
        for key in keys:
            self._labels.setdefault(key, label)

    def find(self, keys: Keys) -> Label | None:
        """The label of the integral that shares a key, None if there is none."""
        return next((self._labels[key] for key in keys if key in self._labels), None)


def _normalized(values: _Numbers, near: NDArray[np.bool_]) -> _Numbers:
    """The values divided by the first one close to the origin that is no zero; by a real one if there is any."""
    size = np.abs(values)
    usable = np.isfinite(size) & (size > 0)
    if (usable & near).any():
        usable &= near
    if not usable.any() or size[usable].max() < _CELL * _SMALL:
        return values
    usable &= size > 1e-6 * size[usable].max()  # what is smaller may be noise
    real = usable & (np.abs(values.imag) <= _REAL * size)
    chosen = real if real.any() else usable
    with np.errstate(all="ignore"):
        normalized: _Numbers = values / values[np.flatnonzero(chosen)[0]]
        return normalized


def _cells(values: _Numbers, small: float, is_complex: bool) -> NDArray[np.int64]:
    """The numbers of the cells that the values lie in, those of the second row on the shifted grid.

    The grid is even in the logarithm of the size, so that it has no edges at decades, and in the size itself below
    `small`. The imaginary part counts without its sign, so that conjugates are equal, unless `is_complex`.
    """
    imaginary = values.imag if is_complex else np.abs(values.imag)
    with np.errstate(all="ignore"):
        size = np.abs(values)
        stretch = np.where(size > 0, np.log1p(size / small) / (size * _CELL), 0)
        parts = np.floor(np.stack([values.real, imaginary]) * stretch + _SHIFTS)
        finite = np.isfinite(parts)
        cells = np.where(finite, np.where(finite, parts, 0).astype(np.int64), _UNDEFINED)
        real = finite.all(axis=0) & (np.abs(values.imag) <= _REAL * (size + small))
    one_sided = ~real & finite.all(axis=0) & (real.sum(axis=1) >= _MIN_REAL)[:, None]
    return np.hstack([np.where(one_sided, _NOT_REAL, part) for part in cells])
