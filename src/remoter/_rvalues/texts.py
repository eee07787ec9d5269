"""The texts in R's serialization, many at once; on the client.

In long vectors only their places are looked for: a text has no NUL in it and what stands before each one has, so
candidates are found by comparing whole blocks, and that they follow one another without a gap proves them right.
"""

from __future__ import annotations

import importlib
import struct
from typing import TYPE_CHECKING, Any, NoReturn

from .._values import ValuesError, afford

if TYPE_CHECKING:
    from collections.abc import Iterable

CHARS = 9
"""R's number of the type of one text."""

UTF8, LATIN1, BYTES, ASCII = 8, 4, 2, 64
"""Its encoding, 12 bits further up in the flag word; none of them: that of the session."""

SHORT = 48
"""Texts up to which a vector is read one by one."""

TEXT_COST = 80


def refuse(why: str) -> NoReturn:
    """The bytes are wrong."""
    raise ValuesError("corrupt", "what the other end says of the value makes no sense", cause=why)


def decode(text: bytes, flags: int, encoding: str) -> str | bytes:
    """The text of a flag word's encoding; what is no text stays bytes, and bytes that are wrong in one come
    as Python has them in names of files.
    """
    levels = flags >> 12
    if flags & 255 != CHARS:
        refuse("a text is none")
    if levels & BYTES:
        return text
    if levels & LATIN1:
        try:
            return text.decode("cp1252")  # as R does
        except UnicodeDecodeError:
            return text.decode("latin-1")
    if levels & (UTF8 | ASCII):
        encoding = "utf-8"
    try:
        return text.decode(encoding, "surrogateescape")
    except (LookupError, UnicodeError):
        return text.decode("ascii", "surrogateescape")


def find_numpy() -> Any:
    """numpy, if it is installed."""
    try:
        return importlib.import_module("numpy")
    except ImportError:
        return None


# --- texts -----------------------------------------------------------------------------------
#
# Each has a flag word and a length before it, so eight bytes of which some are NUL. To take the texts out, those
# are made NUL all, and the whole is decoded and split there; or all NULs are dropped, for Arrow.

BLOCK = 1 << 18  # bytes that are looked at together: they fit into the processor's cache
RECORDS = 1 << 16  # texts that are taken out together
FEW = 64  # texts that have to be found in a block, or it goes one by one for a while
HEADER = 8
_SPLIT = "\0" * HEADER
_PLAIN = tuple(CHARS | levels << 12 for levels in (ASCII, UTF8))
_FLAGS = (*_PLAIN, *(CHARS | levels << 12 for levels in (LATIN1, BYTES)))


class Texts:
    """A long vector of texts where it came. `starts` and `lengths` say where each is; a missing one has length -1.
    `odd` are those that are neither ASCII nor UTF-8.
    """

    def __init__(self, data: memoryview, position: int, count: int, is_big: bool, encoding: str) -> None:
        self.data, self.encoding, self.is_big = data, encoding, is_big
        self.numpy = find_numpy()
        self.start = self.end = position
        self._found: list[tuple[Any, Any, Any]] = []
        afford(count * 24, "so many texts")
        self._find(count)
        columns = zip(*self._found, strict=True)
        self.starts, self.lengths, flags = map(self.numpy.concatenate, columns)
        self._found.clear()
        self.is_missing = self.lengths == -1
        self.odd = self.numpy.flatnonzero((flags != _PLAIN[0]) & (flags != _PLAIN[1]) & ~self.is_missing)
        self._odd_flags = flags[self.odd]

    def __len__(self) -> int:
        return len(self.starts)

    def _find(self, missing: int) -> None:
        memory = self.numpy.frombuffer(self.data, self.numpy.uint8)
        while missing:
            found = self._look(memory[self.end : self.end + min(BLOCK, FEW * missing)], missing)
            if found is None:
                found = self._step(min(missing, 16 * FEW))
            missing -= len(found[0])
            self._found.append(found)

    def _step(self, count: int) -> tuple[Any, Any, Any]:
        """The next ones, one by one."""
        read = struct.Struct(">ii" if self.is_big else "<ii").unpack_from
        starts, lengths, words = [], [], []
        position, data, limit = self.end, self.data, len(self.data)
        for _ in range(count):
            flags, length = read(data, position)
            position += HEADER
            starts.append(position)
            lengths.append(length)
            words.append(flags)
            position += max(length, 0)
            if flags & 255 != CHARS or length < -1 or position > limit:
                refuse("a text is none, or ends too late")
        self.end = position
        integers = self.numpy.int64
        return tuple(self.numpy.array(column, integers) for column in (starts, lengths, words))

    def _words(self, block: Any) -> Any:
        """Flag word and length as one number, if a text began at that byte."""
        dtype = ">i8" if self.is_big else "<i8"
        return self.numpy.ndarray((len(block) - 7,), dtype, buffer=block.data, strides=(1,))

    def _look(self, block: Any, most: int) -> tuple[Any, Any, Any] | None:
        """All that are found in a block; None: too few."""
        numpy = self.numpy
        if len(block) < 2 * HEADER:
            return None
        words = self._words(block)
        places, lengths, flags = self._candidates(block, words)
        expected = numpy.concatenate([[0], places + HEADER + lengths])
        gaps = places - expected[:-1]
        count = _first((gaps < 0) | (gaps & 7 != 0), numpy)
        # what stands between two has to be missing texts
        skipped = gaps[:count] >> 3
        missing, owners = self._missing(expected[:count], skipped)
        is_wrong = words[missing] != self._no_text
        if is_wrong.any():
            count = int(owners[is_wrong.argmax()])
            skipped, missing = skipped[:count], missing[owners < count]
        behind = int(expected[count])
        tail = words[behind::HEADER]
        tail = _first(tail != self._no_text, numpy)
        missing = numpy.append(missing, behind + HEADER * numpy.arange(tail))
        return self._merge(places[:count], lengths[:count], flags[:count], skipped, missing, most)

    def _candidates(self, block: Any, words: Any) -> tuple[Any, Any, Any]:
        """Where a text seems to begin, its length and its flag word."""
        numpy, count = self.numpy, len(words)
        first, last = (3, 0) if self.is_big else (0, 3)
        seems = block[first : count + first] == CHARS
        seems &= block[last : count + last] == 0
        places = numpy.flatnonzero(seems)
        here = words[places]
        high, low = here >> 32, here & 0xFFFFFFFF
        flags, lengths = (high, low) if self.is_big else (low, high)
        seems = (flags == _FLAGS[0]) | (flags == _FLAGS[1]) | (flags == _FLAGS[2]) | (flags == _FLAGS[3])
        seems &= (lengths >= 0) & (lengths <= len(self.data))
        return places[seems], lengths[seems], flags[seems]

    @property
    def _no_text(self) -> int:
        return CHARS << 32 | 0xFFFFFFFF if self.is_big else CHARS | -1 << 32

    def _missing(self, expected: Any, skipped: Any) -> tuple[Any, Any]:
        """Where missing texts have to be, and before which text each of them is."""
        numpy = self.numpy
        owners = numpy.repeat(numpy.arange(len(skipped)), skipped)
        before = (numpy.cumsum(skipped) - skipped)[owners]
        return expected[owners] + HEADER * (numpy.arange(len(owners)) - before), owners

    def _merge(
        self, places: Any, lengths: Any, flags: Any, skipped: Any, missing: Any, most: int
    ) -> tuple[Any, Any, Any] | None:
        numpy = self.numpy
        if len(missing):
            found = len(places) + len(missing)
            order = numpy.arange(len(places)) + numpy.cumsum(skipped)
            all_lengths, all_flags = numpy.full(found, -1), numpy.full(found, CHARS)
            all_lengths[order], all_flags[order] = lengths, flags
            starts = numpy.concatenate([places, missing])
            starts.sort(kind="stable")
            places, lengths, flags = starts, all_lengths, all_flags
        if len(places) < min(FEW, most):
            return None
        starts, lengths, flags = places[:most] + (self.end + HEADER), lengths[:most], flags[:most]
        self.end = int(starts[-1] + max(lengths[-1], 0))
        if self.end > len(self.data):
            refuse("a text ends too late")
        return starts, lengths, flags

    def _blocks(self) -> Iterable[tuple[int, bytearray]]:
        """Some of them at a time, with NULs before each."""
        for low in range(0, len(self), RECORDS):
            high = min(low + RECORDS, len(self))
            first = int(self.starts[low]) - HEADER
            block = bytearray(self.data[first : int(self.starts[high - 1] + max(self.lengths[high - 1], 0))])
            words = self._words(self.numpy.frombuffer(block, self.numpy.uint8))
            words[self.starts[low:high] - (HEADER + first)] = 0
            del words
            yield high - low, block

    def tolist(self) -> list[str | bytes | None]:
        """As Python has them."""
        afford(len(self) * TEXT_COST + self.end - self.start, "so many texts")
        texts: list[Any] = []
        for count, block in self._blocks():
            found = block.decode("utf-8", "surrogateescape").split(_SPLIT)
            if len(found) != count + 1:
                refuse("a text contains NUL")
            texts += found[1:]
        if _repeat(texts):
            known: dict[Any, Any] = {}
            texts = list(map(known.setdefault, texts, texts))
        for place in self.numpy.flatnonzero(self.is_missing).tolist():
            texts[place] = None
        for place, flags in zip(self.odd.tolist(), self._odd_flags.tolist(), strict=True):
            start = int(self.starts[place])
            text = bytes(self.data[start : start + int(self.lengths[place])])
            texts[place] = decode(text, flags, self.encoding)
        return texts

    def joined(self) -> tuple[Any, bytes] | None:
        """Offsets and all bytes of them; None: some are neither ASCII nor UTF-8."""
        if len(self.odd):
            return None
        numpy = self.numpy
        afford(len(self) * 8 + self.end - self.start, "so many texts")
        offsets = numpy.zeros(len(self) + 1, numpy.int64)
        numpy.cumsum(numpy.maximum(self.lengths, 0), out=offsets[1:])
        data = b"".join([block.translate(None, b"\0") for _, block in self._blocks()])
        if len(data) != offsets[-1]:
            refuse("a text contains NUL")
        return offsets, data


def _first(found: Any, numpy: Any) -> int:
    """The place of the first that is true; behind all, if none is."""
    place = int(found.argmax()) if len(found) else 0
    return place if len(found) and found[place] else len(found)


def _repeat(texts: list[Any]) -> bool:
    """Whether there seem to be few different texts, by a sample from all over."""
    if len(texts) < 1000:
        return False
    sample = [texts[place * 2654435761 % len(texts)] for place in range(500)]
    return len(set(sample)) * 4 < len(sample)


class Records:
    """Texts as they are written: how many, and the bytes of all."""

    def __init__(self, count: int, pieces: list[Any]) -> None:
        self.count, self.pieces = count, pieces


def encode_texts(texts: list[Any]) -> Records:
    """Texts in R's form: `str`, None, or `bytes` for those that R is to take as no text in any encoding."""
    numpy = find_numpy() if len(texts) > SHORT else None
    pieces: list[Any] = []
    for low in range(0, len(texts), RECORDS):
        some = texts[low : low + RECORDS]
        piece = None if numpy is None else _encode_many(some, numpy)
        pieces.append(b"".join(map(encode_text, some)) if piece is None else piece)
    return Records(len(texts), pieces)


def _encode_many(texts: list[Any], numpy: Any) -> Any:
    """The records of many texts; None: they have to be looked at one by one."""
    kinds = set(map(type, texts))
    if not kinds <= {str, type(None)}:
        return None
    plain = texts if kinds == {str} else [text or "" for text in texts]
    try:
        block = numpy.array(bytearray(_SPLIT.join(["", *plain]).encode()), numpy.uint8)
    except UnicodeEncodeError:
        return None
    zeros = numpy.flatnonzero(block == 0)
    if len(zeros) != HEADER * len(texts):
        return None
    heads = zeros[::HEADER]
    lengths = numpy.diff(heads, append=len(block)) - HEADER
    words = lengths << 32 | _PLAIN[0 if bool((block < 128).all()) else 1]
    if type(None) in kinds:
        words[[text is None for text in texts]] = CHARS | -1 << 32
    numpy.ndarray((len(block) - 7,), "<i8", buffer=block.data, strides=(1,))[heads] = words
    return block


def encode_text(text: str | bytes | None) -> bytes:
    """One text with what stands before it."""
    if text is None:
        return struct.pack("<ii", CHARS, -1)
    levels, encoded = (BYTES, text) if isinstance(text, bytes) else _encode(text)
    if b"\0" in encoded:
        raise ValuesError("kind", "R has no texts with NUL in them", hints=("send it as `bytes`",))
    if len(encoded) >= 1 << 31:
        raise ValuesError("kind", "R has no texts of more than 2 GiB")
    return struct.pack("<ii", CHARS | levels << 12, len(encoded)) + encoded


def _encode(text: str) -> tuple[int, bytes]:
    """Which encoding it is in, and its bytes."""
    if text.isascii():
        return ASCII, text.encode()
    try:
        return UTF8, text.encode()
    except UnicodeEncodeError:  # R had it as bytes that are wrong in its encoding
        try:
            return 0, text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise ValuesError("kind", "a text with half a character does not cross to R") from None
