"""Numbers as tables show them."""

from decimal import Decimal


def significant(value: float, digits: int) -> str:
    """Returns a number with so many significant digits, and no power of ten.

    Zeros at the end of a fraction are left out.

    >>> [significant(x, 2) for x in (0.00123, 1.0, 8.96, 19.77, 378.8)]
    ['0.0012', '1', '9', '20', '380']
    >>> significant(6_834.0, 3), significant(8.96, 3)
    ('6830', '8.96')
    """
    return f"{Decimal(f'{value:.{digits}g}'):f}"
