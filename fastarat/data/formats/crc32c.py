"""CRC-32C (Castagnoli's polynomial; RFC 3720, appendix B.4), fast enough in NumPy for what is about to be decoded.

The state of a CRC is linear in the message, once its first state is put into the message's first four bytes. So a long
message is cut into lanes that are taken at once, a byte of each at a time, and neighbours are then joined: the left
one's state, after as many zero bytes as the right one is long, plus the right one's. Zero bytes in front of a message
change nothing.
"""

from functools import cache

import numpy as np

LANE = 32
"""bytes; a power of 2"""
POLYNOMIAL = 0x82F63B78
SHORT = 96 * LANE
"""bytes below which lanes are not worth their overhead"""


def crc32c(content: bytes) -> int:
    """The checksum of `content`, in 0 … 2**32 − 1."""
    if len(content) < SHORT:
        numbers, state = _numbers(), 0xFFFFFFFF
        for byte in content:
            state = numbers[(state ^ byte) & 0xFF] ^ state >> 8
        return state ^ 0xFFFFFFFF
    table = states_of_bytes(POLYNOMIAL)
    padding = -len(content) % LANE
    message = np.concatenate([np.zeros(padding, np.uint8), np.frombuffer(content, np.uint8)])
    message[padding : padding + 4] ^= 0xFF
    states = np.zeros(len(message) // LANE, np.uint32)
    for column in np.ascontiguousarray(message.reshape(-1, LANE).T):
        states = table[states.astype(np.uint8) ^ column] ^ states >> 8
    return _joined(states, LANE) ^ 0xFFFFFFFF


def _joined(states: np.ndarray, length: int) -> int:
    """The state of the whole message from those of its parts, each of `length` bytes."""
    while len(states) > 1:
        states = np.concatenate([np.zeros(len(states) % 2, np.uint32), states])
        states = _after(states[::2], _zeros(length)) ^ states[1::2]
        length *= 2
    return int(states[0])


def _after(states: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """States after the zero bytes that `zeros` stands for: what becomes of each of their four bytes, added up."""
    first, second, third, fourth = (zeros[i][states >> 8 * i & 0xFF] for i in range(4))
    return first ^ second ^ third ^ fourth


@cache
def _zeros(count: int) -> np.ndarray:
    """uint32 [4, 256]: the state after `count` zero bytes, a power of 2, from one in which only byte i is not zero."""
    if count == 1:
        states = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
        return states_of_bytes(POLYNOMIAL)[states & 0xFF] ^ states >> 8
    half = _zeros(count // 2)
    return _after(half, half)


@cache
def states_of_bytes(polynomial: int) -> np.ndarray:
    """uint32 [256]: the state of a CRC after one byte. `polynomial`: its lowest power first."""
    states = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        states = states >> 1 ^ (states & 1) * np.uint32(polynomial)
    return states


@cache
def _numbers() -> tuple[int, ...]:
    """The same as Python's numbers, which are faster one by one."""
    return tuple(states_of_bytes(POLYNOMIAL).tolist())
