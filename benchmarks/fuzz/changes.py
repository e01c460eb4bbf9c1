"""Changes of files, as accidents and attackers make them, for hypothesis to draw from."""

from __future__ import annotations

__all__ = ["changed"]

import re

from hypothesis import strategies as st

HEAD = 600
"""The first bytes of a file, where headers are, are changed as often as all the others."""

WORDS = [
    b"", b"0", b"-1", b"1", b"2", b"32767", b"65536", b"2147483648", b"9223372036854775808",
    b"1e400", b"-0.0", b"nan", b"NaN", b"inf", b"Infinity", b"null", b"true", b"\"a\"", b"{}",
    b"[]", b"[NaN, NaN, NaN]", b"[" * 3000, b"{\"a\":" * 3000, b"9" * 5000, b"/etc/passwd",
    b"../../x", b"/dev/zero", b"LIST", b"%03d.raw 1 3 1", b"=1+1", b"\x1b[2J", b"\xe2\x80\xae",
    b"\xff\xfe", b"x" * 300, b"a\nb", b"\0",
]  # fmt: skip
"""The words that take the place of others."""

NUMBERS = [
    *(number.to_bytes(2, "little", signed=True) for number in (-32768, -1, 0, 1, 7, 32767)),
    *(number.to_bytes(4, "little", signed=True) for number in (-(2**31), -1, 0, 2**31 - 1)),
    b"\x00\x00\x80\x7f",
    b"\x00\x00\xc0\x7f",
    b"\xff" * 8,
]
"""The integers of 2, 4 and 8 bytes, infinity and NaN that take the place of others."""


@st.composite
def changed(draw: st.DrawFn, content: bytes) -> bytes:
    """Draws a file that differs from a whole one in one to three places.

    Arguments:
        draw: What hypothesis draws by.
        content: The whole file.
    """
    for _ in range(draw(st.integers(1, 3))):
        content = draw(st.sampled_from([_flip, _number, _word, _cut, _repeat, _end]))(
            draw, content
        )
    return content


def _place(draw: st.DrawFn, content: bytes) -> int:
    last = max(0, len(content) - 1)
    return draw(st.one_of(st.integers(0, min(last, HEAD)), st.integers(0, last)))


def _flip(draw: st.DrawFn, content: bytes) -> bytes:
    place = _place(draw, content)
    if not content:
        return content
    return (
        content[:place]
        + bytes([content[place] ^ 1 << draw(st.integers(0, 7))])
        + content[place + 1 :]
    )


def _number(draw: st.DrawFn, content: bytes) -> bytes:
    place, number = _place(draw, content), draw(st.sampled_from(NUMBERS))
    return content[:place] + number + content[place + len(number) :]


def _word(draw: st.DrawFn, content: bytes) -> bytes:
    """Another word, in the first part of a file that is text there."""
    found = [match.span() for match in re.finditer(rb"[\w.+-]+", content[: 8 * HEAD])]
    if not found:
        return content
    start, end = draw(st.sampled_from(found))
    return content[:start] + draw(st.sampled_from(WORDS)) + content[end:]


def _cut(draw: st.DrawFn, content: bytes) -> bytes:
    start = _place(draw, content)
    return content[:start] + content[start + draw(st.integers(1, 64)) :]


def _repeat(draw: st.DrawFn, content: bytes) -> bytes:
    start = _place(draw, content)
    part = content[start : start + draw(st.integers(1, 64))]
    return content[:start] + part * draw(st.integers(2, 9)) + content[start + len(part) :]


def _end(draw: st.DrawFn, content: bytes) -> bytes:
    return content[: _place(draw, content)]
