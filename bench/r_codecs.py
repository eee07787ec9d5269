"""rdata and rpy2 at work, in a process of their own under the Python that has them; `r_peers.py` asks on stdin.

    python r_codecs.py rdata FILE.rds
    python r_codecs.py rpy2 "R CODE THAT MAKES x"

The first line of the answers, all JSON, says which version it is, or why there is none; then one for each
`pull` (R's data frame becomes one of pandas) and `push` (and back).
"""

import json
import os
import sys
import time
from importlib.metadata import version


class Rdata:
    """A file that R's `saveRDS` wrote, not compressed; what R needs to write and to read it is not counted."""

    def __init__(self, path):
        import rdata

        self.rdata, self.path = rdata, path

    def pull(self):
        self.value = self.rdata.read_rds(self.path)

    def push(self):
        self.rdata.write_rds(f"{self.path}.back", self.value, compression=None)


class Rpy2:
    """R in this process."""

    def __init__(self, code):
        from rpy2 import robjects
        from rpy2.robjects import pandas2ri

        self.r, self.rules = robjects, robjects.default_converter + pandas2ri.converter
        robjects.r(code)

    def pull(self):
        with self.rules.context():
            self.value = self.r.globalenv["x"]

    def push(self):
        with self.rules.context():
            self.r.globalenv["y"] = self.value


def timed(function):
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main():
    kind, argument = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what R prints is not an answer

    def answer(**words):
        print(json.dumps(words), file=answers, flush=True)

    try:
        codec = {"rdata": Rdata, "rpy2": Rpy2}[kind](argument)
        answer(version=version("rpy2-rinterface" if kind == "rpy2" else kind))
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")
        return
    for line in sys.stdin:
        try:
            seconds = timed(getattr(codec, line.strip()))
            answer(seconds=seconds, shape=list(codec.value.shape))
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
