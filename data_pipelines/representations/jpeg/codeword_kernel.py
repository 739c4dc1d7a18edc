"""Reading scans as code words, compiled by numba (the extra [fast]).

`codeword_streams` uses this module where numba is installed, instead of numpy. The results are the
same.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def read_scan(
    raw: np.ndarray,
    codes: np.ndarray,
    tables: np.ndarray,
    amplitudes: np.ndarray,
    first_bits: np.ndarray,
    restart: int,
) -> np.ndarray:
    """Reads a scan; see `codeword_streams._read_scan`.

    Args:
      raw: the scan and a sentinel FF 01, uint8.
      codes, tables: `codes` and `blocks` of `codeword_streams._Tables`.
      amplitudes: letter of so many zero bits, by their number.
      first_bits: bits of the first word of an amplitude, by its bits.
      restart: letter of RST0.

    Returns:
      Letters, uint16 [n].
    """
    end = len(raw) - 2
    letters = np.empty(4 * end + 1, np.uint16)  # no code is shorter than two bits
    count = at = 0
    while True:
        marker = at
        while raw[marker] != 0xFF or raw[marker + 1] == 0:
            marker += 2 if raw[marker] == 0xFF else 1
        begin = count
        right = True
        place, bits, held = at, np.uint64(0), 0
        block = k = 0  # k: 0 before the DC code
        after_run = False
        while right:
            while held <= 48 and place < marker:
                bits = bits << np.uint64(8) | np.uint64(raw[place])
                place += 2 if raw[place] == 0xFF else 1
                held += 8
            bits &= (np.uint64(1) << np.uint64(held)) - np.uint64(1)
            if held < 8 and bits == (np.uint64(1) << np.uint64(held)) - np.uint64(1):
                break  # the end, or padding
            if held >= 16:
                window = bits >> np.uint64(held - 16)
            else:
                window = bits << np.uint64(16 - held)
            entry = codes[((2 * tables[block] + (k > 0)) << 16) + np.int64(window)]
            length, size, advance = entry & 31, entry >> 5 & 15, entry >> 21 & 31
            held -= length + size
            if entry == 0 or held < 0:
                right = False
                break
            value = np.int64(bits >> np.uint64(held)) & ((1 << size) - 1)
            letter = entry >> 9 & 4095
            if entry >> 26 == 0:
                letters[count] = letter + value
                count += 1
            else:
                letters[count] = letter
                second = size - first_bits[size]
                letters[count + 1] = amplitudes[first_bits[size]] + (value >> second)
                count += 2
                if second:
                    letters[count] = amplitudes[second] + (value & ((1 << second) - 1))
                    count += 1
            if k == 0:
                k, after_run = 1, False
            elif advance == 0:
                right = not after_run
                k = 64
            elif advance == 16 and size == 0:
                k, after_run = k + 16, True
                right = k <= 63
            else:
                k, after_run = k + advance, False
                right = k <= 64
            if k == 64:
                k = 0
                block = block + 1 if block + 1 < len(tables) else 0
        if not right:
            count = begin
            for place in range(at, marker):
                letters[count] = raw[place]
                count += 1
        code = raw[marker + 1]
        if marker == end or not (code & 0xF8 == 0xD0 or code == 0xD9):
            for place in range(marker, end):
                letters[count] = raw[place]
                count += 1
            return letters[:count].copy()
        letters[count] = restart + min(code & 15, 8)
        count += 1
        at = marker + 2
