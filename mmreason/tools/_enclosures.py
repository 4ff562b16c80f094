"""Arithmetic of the calculator: exact fractions, and enclosures of what no fraction is (square roots, pi).

A `Value` is a closed interval with rational ends that holds the number; an exact number has equal ends. Ends of the
others are rounded outwards to 256 bits, so that a digit which is shown is a digit of the number, also after
cancellation (`sqrt(2) - 1.41421356`). Sizes are checked before the work is done: no input is slow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from mmreason.tools.types import ToolError

MAX_DIGITS = 2000
"""Digits that a numerator or a denominator may have."""
MAX_BITS = int(MAX_DIGITS * math.log2(10))
MAX_ROOT = 100
"""The highest root, and so the largest denominator of an exponent."""
_PRECISION = 256


@dataclass(frozen=True, slots=True)
class Value:
    """A number between `low` and `high`, both included; known exactly where they are equal."""

    low: Fraction
    high: Fraction

    @property
    def exact(self) -> bool:
        return self.low == self.high


def exactly(number: int | Fraction) -> Value:
    """A `Value` of one known number. Raises: ToolError (refused) for more than MAX_DIGITS digits."""
    fraction = _checked(Fraction(number))
    return Value(fraction, fraction)


def _decimals(digits: str) -> Value:
    """The enclosure of a positive constant below 10 from its first digits."""
    unit = Fraction(1, 10 ** (len(digits) - 1))
    return Value(int(digits) * unit, (int(digits) + 1) * unit)


PI = _decimals("314159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706")
E = _decimals("271828182845904523536028747135266249775724709369995957496696762772407663035354759457138217852516642")


def add(a: Value, b: Value) -> Value:
    return _enclose(a.low + b.low, a.high + b.high)


def subtract(a: Value, b: Value) -> Value:
    return _enclose(a.low - b.high, a.high - b.low)


def negate(a: Value) -> Value:
    return Value(-a.high, -a.low)


def multiply(a: Value, b: Value) -> Value:
    if a.exact and b.exact:
        return exactly(a.low * b.low)
    corners = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    return _enclose(min(corners), max(corners))


def divide(a: Value, b: Value) -> Value:
    """Raises: ToolError where the divisor is 0, or can't be told from 0."""
    if b.low <= 0 <= b.high:
        raise ToolError("failed", "division by zero" if b.exact else "the divisor can't be told from 0")
    return multiply(a, Value(1 / b.high, 1 / b.low))


def floor_divide(a: Value, b: Value) -> Value:
    return floor(divide(a, b))


def modulo(a: Value, b: Value) -> Value:
    """The remainder with the divisor's sign, as in Python: a - b * floor(a / b)."""
    return subtract(a, multiply(b, floor_divide(a, b)))


def power(base: Value, exponent: Value) -> Value:
    """base ** exponent; 0 ** 0 is 1, as in Python.

    Raises: ToolError for an exponent that isn't a fraction with a denominator up to MAX_ROOT, a negative base under a
        fractional exponent, 0 to a negative power, and a result of more than MAX_DIGITS digits.
    """
    if not exponent.exact:
        raise ToolError("failed", "an exponent must be a whole number or a fraction such as 1/2")
    top, bottom = exponent.low.numerator, exponent.low.denominator
    if bottom != 1:
        if base.low < 0:
            raise ToolError("failed", "a negative number has no fractional power; root(x, n) takes odd roots of it")
        base = root(base, bottom)
    if top < 0:
        base, top = divide(exactly(1), base), -top
    # Checked beforehand: 9**9**9 has 370 million digits. A power has at least n * (bits - 1) bits.
    if base.exact and top * (_bits(base.low) - 1) <= MAX_BITS:
        result = base.low**top
        if _bits(result) <= MAX_BITS:
            return exactly(result)
    if base.exact and base.low.denominator == 1:
        raise _too_large()
    return _enclosed_power(base, top)


def _enclosed_power(base: Value, n: int) -> Value:
    """base**n for n >= 0 by repeated squaring, for 1.004**360 and the like, whose exact value has too many digits."""
    result = exactly(1)
    while n:
        if n & 1:
            result = _narrowed(multiply(result, base))
        n >>= 1
        if n:
            base = _narrowed(multiply(base, base))
    return result


def root(a: Value, degree: int) -> Value:
    """The real root of a degree of 1 to MAX_ROOT, exact where it is rational. Raises: ToolError where there is none."""
    if not 1 <= degree <= MAX_ROOT:
        raise ToolError("refused", f"roots and the denominators of exponents go from 1 to {MAX_ROOT}, not {degree}")
    if a.low < 0:
        if degree % 2 == 0:
            name = "square root" if degree == 2 else f"root of degree {degree}"
            raise ToolError("failed", f"a negative number has no real {name}")
        if a.high > 0:
            raise ToolError("failed", "the number under the root can't be told from 0")
        return negate(root(negate(a), degree))
    return Value(_root(a.low, degree).low, _root(a.high, degree).high)


def absolute(a: Value) -> Value:
    if a.low >= 0:
        return a
    return negate(a) if a.high <= 0 else Value(Fraction(0), max(-a.low, a.high))


def smallest(values: list[Value]) -> Value:
    return Value(min(value.low for value in values), min(value.high for value in values))


def largest(values: list[Value]) -> Value:
    return Value(max(value.low for value in values), max(value.high for value in values))


def floor(a: Value) -> Value:
    return _same(math.floor(a.low), math.floor(a.high))


def ceil(a: Value) -> Value:
    return _same(math.ceil(a.low), math.ceil(a.high))


def rounded(a: Value, places: int) -> Value:
    """Rounded to decimal places, half to even, as Python's `round`."""
    if abs(places) > MAX_DIGITS:
        raise _too_large()
    return _same(round(a.low, places), round(a.high, places))


def factorial(n: int) -> Value:
    """n! for n >= 0."""
    if n < 0:
        raise ToolError("failed", "factorial needs a whole number of at least 0")
    # n! > (n / e)^n; the bound is checked on the logarithm so that n may be anything.
    if n > 3 and n * (n.bit_length() - 1 - math.log2(math.e)) > MAX_BITS:
        raise _too_large()
    return exactly(math.factorial(n))


def falling(n: int, k: int) -> Value:
    """n! / (n - k)! for n, k >= 0: ordered choices of k among n."""
    return _choices(n, k, ordered=True)


def choose(n: int, k: int) -> Value:
    """The binomial coefficient for n, k >= 0; 0 where k > n."""
    return _choices(n, min(k, n - k) if 0 <= k <= n else k, ordered=False)


def _choices(n: int, k: int, *, ordered: bool) -> Value:
    if n < 0 or k < 0:
        raise ToolError("failed", "comb and perm need whole numbers of at least 0")
    if k > n:
        return exactly(0)
    count = 1
    for i in range(k):  # each step at least doubles the count at first, so that the limit ends the loop early
        count *= n - i
        if not ordered:
            count //= i + 1
        if count.bit_length() > MAX_BITS:
            raise _too_large()
    return exactly(count)


# --------------------------------------------------------------------------------------------------------------------


def _bits(fraction: Fraction) -> int:
    return max(fraction.numerator.bit_length(), fraction.denominator.bit_length())


def _too_large() -> ToolError:
    return ToolError("refused", f"a number here has more than {MAX_DIGITS} digits, the most that is computed")


def _checked(fraction: Fraction) -> Fraction:
    if _bits(fraction) > MAX_BITS:
        raise _too_large()
    return fraction


def _enclose(low: Fraction, high: Fraction) -> Value:
    return exactly(low) if low == high else _narrowed(Value(low, high))


def _narrowed(value: Value) -> Value:
    """The value with ends of at most _PRECISION bits."""
    return Value(_checked(_outwards(value.low, math.floor)), _checked(_outwards(value.high, math.ceil)))


def _outwards(end: Fraction, direction: Callable[[Fraction], int]) -> Fraction:
    """`end` with a mantissa of at most _PRECISION bits, rounded by math.floor or math.ceil."""
    shift = _PRECISION - (end.numerator.bit_length() - end.denominator.bit_length())
    scale = Fraction(2) ** shift
    return Fraction(direction(end * scale)) / scale


def _same(low: int | Fraction, high: int | Fraction) -> Value:
    if low != high:
        raise ToolError("failed", "the number is too close to a step of round, floor, ceil, // or % to tell its side")
    return exactly(low)


def _root(number: Fraction, degree: int) -> Value:
    top, bottom = _integer_root(number.numerator, degree), _integer_root(number.denominator, degree)
    if top**degree == number.numerator and bottom**degree == number.denominator:
        return exactly(Fraction(top, bottom))
    size = (number.numerator.bit_length() - number.denominator.bit_length()) // degree
    shift = max(0, _PRECISION - size)
    below = _integer_root((number.numerator << (shift * degree)) // number.denominator, degree)
    return _enclose(Fraction(below, 1 << shift), Fraction(below + 1, 1 << shift))


def _integer_root(number: int, degree: int) -> int:
    """The largest integer whose power of `degree` is at most `number` >= 0, by Newton's method from above."""
    if degree == 1 or number < 2:
        return number
    if degree == 2:
        return math.isqrt(number)
    # The first guess is a float's, a little too large. From 2 ** ceil(bits / degree) the first steps would only take
    # 1/degree of the way each.
    bits = max(number.bit_length() - 64, 0)
    exponent = (bits + math.log2(number >> bits)) / degree
    shift = max(int(exponent) - 40, 0)
    guess = (int(2 ** (exponent - shift) * (1 + 1e-9)) + 2) << shift
    while True:
        lower = ((degree - 1) * guess + number // guess ** (degree - 1)) // degree
        if lower >= guess:
            return guess
        guess = lower
