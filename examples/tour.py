"""A small real piece of work: how often do the primes end in 1, 3, 7, 9, and what follows what?

Run it through a session and watch it as it goes: `remoter batch --start examples/tour.py`; on
another machine: `remoter batch ssh://big examples/tour.py`.
The values of the lines that are only an expression are shown, as at a prompt.
"""

import math
import os
import platform
import time
from collections import Counter
from itertools import pairwise, product

LIMIT = 3_000_000

print(f"Python {platform.python_version()}, process {os.getpid()} on {platform.node()}")


def primes(limit):
    """All primes below the limit, by the sieve of Eratosthenes."""
    sieve = bytearray([1]) * limit
    sieve[:2] = b"\0\0"
    for number in range(2, math.isqrt(limit - 1) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, limit, number)))
    return [number for number in range(limit) if sieve[number]]


started = time.perf_counter()
found = primes(LIMIT)
print(f"{len(found):,} primes below {LIMIT:,}, the last one {found[-1]:,}")

# Each line appears as it is printed, not at the end.
pairs = Counter()
step = len(found) // 8
for part in range(8):
    piece = found[part * step : (part + 1) * step + 1]
    pairs.update((a % 10, b % 10) for a, b in pairwise(piece))
    print(f"  {'#' * (part + 1):<8}  pairs counted: {pairs.total():>7,}")
    time.sleep(0.25)

print("last digit of a prime, and of the one after it, in percent")
print("        " + "".join(f"{after:>7}" for after in (1, 3, 7, 9)))
for before in (1, 3, 7, 9):
    total = sum(pairs[before, after] for after in (1, 3, 7, 9))
    row = "".join(f"{100 * pairs[before, after] / total:7.1f}" for after in (1, 3, 7, 9))
    print(f"  {before} then{row}")

# Chance alone would give 25 in each place, but a prime avoids the digit of the one before it.
rarest = min(product((1, 3, 7, 9), repeat=2), key=pairs.get)
f"rarest: {rarest[1]} after {rarest[0]}, {pairs[rarest]:,} times"

try:
    primes(-1)
except ValueError as error:
    print(f"an error, handled: {error}")

print(
    f"done after {time.perf_counter() - started:.1f} s; `found` and `pairs` are still there: remoter client"
)
