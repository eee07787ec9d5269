"""The lines of the table that a run of the benchmarks prints, and how times are written in it."""

import statistics
import time


def row(what, value, against="", ratio="", wanted=""):
    print(f"| {what} | {value} | {against} | {ratio} | {wanted} |", flush=True)


def milliseconds(seconds):
    return f"{seconds * 1e3:.3g} ms"


def timed(function, count):
    times = []
    for _ in range(count):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
