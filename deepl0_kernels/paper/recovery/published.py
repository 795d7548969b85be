"""NMSE that others published for this benchmark, in dB.

By the logs that the authors of NA-ALISTA (Behrens, Sauder, Jung 2021) ship beside their code: 250
measurements, 50 nonzeros, a matrix of their own and one seed; for each K of SHOWN a network,
trained for 100 + 20 K epochs of 50,000 signals. As in their figures, the least of all epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .protocol import SHOWN

# Of 500, 1,000 and 2,000 unknowns, after each K of SHOWN.
_SIZES = (500, 1000, 2000)
_Values = tuple[float, float, float, float]
_LOGS: Mapping[str, Mapping[str, tuple[_Values, _Values, _Values]]] = {
    "nmse": {
        "ISTA": (
            (-2.78, -4.15, -5.11, -5.77),
            (-1.72, -2.62, -3.31, -3.91),
            (-1.00, -1.51, -1.94, -2.31),
        ),
        "FISTA": (
            (-3.53, -6.01, -7.37, -7.63),
            (-2.18, -3.98, -5.56, -6.70),
            (-1.25, -2.31, -3.40, -4.47),
        ),
        "ALISTA": (
            (-17.48, -32.42, -37.77, -39.07),
            (-11.53, -24.11, -30.77, -33.55),
            (-7.44, -15.74, -21.70, -25.18),
        ),
        "ALISTA-AT": (
            (-17.32, -32.89, -39.76, -41.97),
            (-11.42, -23.59, -30.79, -34.51),
            (-7.37, -15.66, -21.52, -26.08),
        ),
        "AGLISTA": (
            (-18.65, -33.00, -39.23, -41.35),
            (-12.17, -25.52, -32.80, -35.48),
            (-7.49, -15.92, -21.20, -25.61),
        ),
        "NA-ALISTA": (
            (-17.70, -34.24, -40.77, -42.19),
            (-11.42, -26.36, -35.74, -39.13),
            (-7.51, -17.81, -27.10, -32.50),
        ),
    },
    "nmse20": {
        "ISTA": (
            (-2.76, -4.12, -5.05, -5.72),
            (-1.71, -2.59, -3.29, -3.86),
            (-0.99, -1.50, -1.92, -2.28),
        ),
        "FISTA": (
            (-3.50, -5.96, -7.28, -7.55),
            (-2.16, -3.93, -5.48, -6.61),
            (-1.24, -2.29, -3.35, -4.36),
        ),
        "ALISTA": (
            (-15.30, -20.28, -20.92, -21.08),
            (-10.70, -18.35, -19.79, -20.55),
            (-7.08, -13.38, -16.46, -17.79),
        ),
        "ALISTA-AT": (
            (-15.17, -20.25, -21.33, -21.80),
            (-10.58, -18.00, -19.63, -20.66),
            (-7.01, -12.92, -16.24, -17.87),
        ),
        "AGLISTA": (
            (-15.55, -20.57, -21.20, -21.37),
            (-11.10, -18.61, -20.24, -20.89),
            (-7.07, -13.42, -16.20, -17.74),
        ),
        "NA-ALISTA": (
            (-15.37, -20.80, -21.47, -21.64),
            (-10.65, -18.99, -20.92, -21.33),
            (-7.12, -14.80, -18.70, -20.16),
        ),
    },
}


def published(table: str) -> dict[str, Sequence[float]]:
    """Of each method what a table has, one size after another."""
    return {
        method: [value for size in sizes for value in size]
        for method, sizes in _LOGS.get(table, {}).items()
    }


def places(p: int) -> Sequence[int | None]:
    """Where among these those of p after each K of SHOWN stand; None for a size without."""
    if p not in _SIZES:
        return [None] * len(SHOWN)
    begin = _SIZES.index(p) * len(SHOWN)
    return range(begin, begin + len(SHOWN))
