"""R's values in Python, and back: reader and writer of R's own serialization; on the client.

From the bytes upwards: `texts` (many strings at once), `stream` (a tree of nodes), `compact` (vectors that R
writes in a shorter form), `arrays`, `kinds`, `times`, `frames` and `columns` (what nodes are in Python, by
library), `formats` (other forms of what came), `writer` and `reader`. Nothing of what comes is evaluated, and no library is loaded before it is needed.
"""

from .kinds import RDict, RList, RValue, RVector, plain
from .reader import is_code, read, write
from .stream import LEAD

__all__ = ["LEAD", "RDict", "RList", "RValue", "RVector", "is_code", "plain", "read", "write"]
