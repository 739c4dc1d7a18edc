"""An arithmetic coder: symbols and their probabilities to bytes, and back; `archive` uses it.

A range coder with carries (Martin, "Range encoding", 1979) in integer arithmetic. Probabilities are
converted to integer frequencies first; a decoder with bit-identical probabilities restores the
symbols. A stream takes less than two bytes more than the information in its symbols.
"""

from __future__ import annotations

import numpy as np

PRECISION = 30  # bits of the sum of all frequencies
TOTAL = 1 << PRECISION
_BITS = 56  # of the coder's register
_TOP = 1 << _BITS
_MIN_RANGE = 1 << (_BITS - 8)  # lower bound of the range: a frequency of one has at least 2**18


class CodingError(ValueError):
    """A stream or an archive that was not written with these probabilities."""


def cumulative_frequencies(logits_BxV: np.ndarray) -> np.ndarray:
    """Logits [B, V] -> interval boundaries of the symbols, int64 [B, V + 1], from 0 to TOTAL.

    Every symbol gets a frequency of one plus its share of the rest, rounded down; the most likely
    symbol gets the remainder. Deterministic in the bits of the logits. Costs less than V / TOTAL
    nats per symbol. Raises CodingError for logits that are not finite.
    """
    logits = np.asarray(logits_BxV, np.float64)
    if not np.isfinite(logits).all():
        raise CodingError("the model's logits are not finite; check the checkpoint")
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    symbols = logits.shape[1]
    frequencies = 1 + np.floor(weights * (TOTAL - 2 * symbols)).astype(np.int64)
    best = weights.argmax(axis=1)
    frequencies[np.arange(len(logits)), best] += TOTAL - frequencies.sum(axis=1)
    starts = np.zeros((len(logits), symbols + 1), np.int64)
    np.cumsum(frequencies, axis=1, out=starts[:, 1:])
    return starts


class Encoder:
    """Symbols -> bytes."""

    def __init__(self) -> None:
        self._low, self._range = 0, _TOP
        self._bytes = bytearray()

    def write(self, start: int, end: int) -> None:
        """Writes the symbol of an interval, 0 <= start < end <= TOTAL."""
        step = self._range >> PRECISION
        self._low += start * step
        self._range = (end - start) * step
        self._carry()
        while self._range < _MIN_RANGE:
            self._bytes.append(self._low >> (_BITS - 8))
            self._low = (self._low & (_MIN_RANGE - 1)) << 8
            self._range <<= 8

    def finish(self) -> bytes:
        """The whole stream: the shortest in the last interval, implicitly followed by zeros."""
        for kept in range(_BITS // 8 + 1):
            unit = 1 << (_BITS - 8 * kept)
            value = -(-self._low // unit) * unit
            if value < self._low + self._range:
                break
        self._low = value
        self._carry()
        self._bytes += self._low.to_bytes(_BITS // 8, "big")
        return bytes(self._bytes.rstrip(b"\x00"))

    def _carry(self) -> None:
        if self._low < _TOP:
            return
        self._low -= _TOP
        index = len(self._bytes) - 1
        while self._bytes[index] == 0xFF:
            self._bytes[index] = 0
            index -= 1
        self._bytes[index] += 1


class Decoder:
    """Bytes -> symbols, given the same intervals in the same order."""

    def __init__(self, stream: bytes):
        self._stream, self._position = stream, _BITS // 8
        self._offset = int.from_bytes(
            stream[: self._position].ljust(self._position, b"\x00"), "big"
        )
        self._range = _TOP

    def read(self, starts_V: np.ndarray) -> int:
        """Reads the next symbol, given the interval boundaries, int64 [V + 1].

        Raises CodingError if the stream does not match the intervals.
        """
        step = self._range >> PRECISION
        target = self._offset // step
        if target >= TOTAL:
            raise CodingError("the stream is damaged, or was written with another model")
        symbol = int(np.searchsorted(starts_V, target, side="right")) - 1
        start, end = int(starts_V[symbol]), int(starts_V[symbol + 1])
        self._offset -= start * step
        self._range = (end - start) * step
        while self._range < _MIN_RANGE:
            following = self._stream[self._position] if self._position < len(self._stream) else 0
            self._offset = (self._offset << 8) | following
            self._range <<= 8
            self._position += 1
        return symbol
