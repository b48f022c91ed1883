"""Decoders of tokenizer.json as transducers: each token in, what is then certain of the text out.

The stages and their rules are those of the `tokenizers` library (src/decoders), whose decode of a
whole list the tests compare with. The library's own DecodeStream decodes a window of the last
tokens instead: it holds invalid bytes for ever, refuses a run of byte tokens that turns invalid,
and loses what depends on the first token.
"""

from __future__ import annotations

import codecs
import copy
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x([0-9a-fA-F]{2}|\+[0-9a-fA-F])>")
# The most that chained replacements may lengthen a token; those of real tokenizers shorten it.
MOST_GROWTH = 64
MOST_HELD = 64


class Stage(Protocol):
    """One decoder. `joins` says that everything leaves it as one token, in pieces."""

    joins: bool

    def push(self, tokens: list[str]) -> list[str]:
        """What is certain after these tokens, which follow all those before them."""
        ...

    def end(self) -> list[str]:
        """What was held back, now that nothing follows."""
        ...

    def copy(self) -> Stage:
        """The same stage in the same state."""
        ...


class UnsupportedDecoder(ValueError):
    """A decoder, or an order of decoders, that has no stage here. The text names it."""


class PerToken:
    """A decoder that looks at each token alone."""

    joins = False

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change

    def push(self, tokens: list[str]) -> list[str]:
        return [self._change(token) for token in tokens]

    def end(self) -> list[str]:
        return []

    def copy(self) -> PerToken:
        return self


class FirstToken:
    """A decoder that treats the first token of a text differently from all others."""

    joins = False

    def __init__(self, first: Callable[[str], str], later: Callable[[str], str]) -> None:
        self._first, self._later = first, later
        self._begun = False

    def push(self, tokens: list[str]) -> list[str]:
        if self._begun:
            return [self._later(token) for token in tokens]
        if not tokens:
            return tokens
        self._begun = True
        return [self._first(tokens[0]), *(self._later(token) for token in tokens[1:])]

    def end(self) -> list[str]:
        return []

    def copy(self) -> FirstToken:
        return copy.copy(self)


class Fuse:
    """Joins everything into one token."""

    joins = True

    def push(self, tokens: list[str]) -> list[str]:
        return tokens

    def end(self) -> list[str]:
        return []

    def copy(self) -> Fuse:
        return self


class ByteLevel:
    """Characters that stand for bytes, joined and read as UTF-8.

    Only the last bytes can be in doubt: at most three that begin a character. An invalid sequence
    is one U+FFFD as soon as a byte shows it, as in the decode of the whole.
    """

    joins = True

    def __init__(self) -> None:
        self._held = b""

    def push(self, tokens: list[str]) -> list[str]:
        data = self._held + b"".join(map(_bytes_of, tokens))
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._held = data[used:]
        return [text] if text else []

    def end(self) -> list[str]:
        held, self._held = self._held, b""
        return [UNKNOWN] if held else []

    def copy(self) -> ByteLevel:
        return copy.copy(self)


class ByteFallback:
    """Runs of tokens such as <0xE4>: the text they are as a whole, else U+FFFD for each byte.

    What a run is shows at its end alone, so it is held until then, whatever its length.
    """

    joins = False

    def __init__(self) -> None:
        self._run: list[int] = []

    def push(self, tokens: list[str]) -> list[str]:
        certain = []
        for token in tokens:
            if len(token) == 6 and (byte := _BYTE_TOKEN.fullmatch(token)):
                self._run.append(int(byte[1], 16))
                continue
            if self._run:
                certain += self.end()
            certain.append(token)
        return certain

    def end(self) -> list[str]:
        run, self._run = bytes(self._run), []
        if not run:
            return []
        try:
            return [run.decode()]
        except UnicodeDecodeError:
            return [UNKNOWN] * len(run)

    def copy(self) -> ByteFallback:
        other = ByteFallback()
        other._run = self._run.copy()
        return other


class Suffix:
    """BPEDecoder: a suffix is a space, and nothing in the last token."""

    joins = False

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held: str | None = None

    def push(self, tokens: list[str]) -> list[str]:
        certain = []
        for token in tokens:
            if self._held is not None:
                certain.append(self._held.replace(self._suffix, " "))
            start = token.find(self._suffix) if self._suffix else 0
            certain.append(token if start < 0 else token[:start])
            self._held = None if start < 0 else token[start:]
        return certain

    def end(self) -> list[str]:
        held, self._held = self._held, None
        return [] if held is None else [held.replace(self._suffix, "")]

    def copy(self) -> Suffix:
        return copy.copy(self)


class StripWhole:
    """Strip behind a stage that joins: at the two ends of the text."""

    joins = True

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content, self._left, self._stop = content, start, stop
        self._tail = ""

    def push(self, tokens: list[str]) -> list[str]:
        text = "".join(tokens)
        while self._left and text:
            if text[0] != self._content:
                self._left = 0
                break
            text, self._left = text[1:], self._left - 1
        if not self._stop:
            return [text] if text else []
        text = self._tail + text
        certain = text.rstrip(self._content)
        certain = max(certain, text[: len(text) - self._stop], key=len)
        self._tail = text[len(certain) :]
        return [certain] if certain else []

    def end(self) -> list[str]:
        self._tail = ""
        return []

    def copy(self) -> StripWhole:
        return copy.copy(self)


def stages(decoder: dict[str, Any] | None) -> list[Stage]:
    """The stages of a decoder of tokenizer.json; raises UnsupportedDecoder naming what has none."""
    if decoder is None:
        return [FirstToken(lambda token: token, lambda token: " " + token)]
    found: list[Stage] = []
    growth = 1.0
    for each in _flat(decoder):
        joined = bool(found) and found[-1].joins
        if each["type"] == "Replace":
            pattern, content = _replacement(each)
            growth *= max(1.0, len(content.encode()) / len(pattern.encode()))
            if growth > MOST_GROWTH:
                raise UnsupportedDecoder(f"Replace makes a token {growth:.0f} times as long")
            if joined and len(pattern) > 1:
                raise UnsupportedDecoder(f"Replace {pattern!r} behind a decoder that joins tokens")
        found.append(_stage(each, joined))
        if joined and not found[-1].joins:
            found.append(Fuse())
    return found


def _flat(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [each for inner in decoder["decoders"] for each in _flat(inner)]


def _stage(decoder: dict[str, Any], joined: bool) -> Stage:
    match decoder["type"]:
        case "ByteLevel" if not joined:
            return ByteLevel()
        case "ByteFallback" if not joined:
            return ByteFallback()
        case "Fuse":
            return Fuse()
        case "Replace":
            pattern, content = _replacement(decoder)
            return PerToken(lambda token: token.replace(pattern, content))
        case "Strip":
            cut = (decoder["content"], decoder["start"], decoder["stop"])
            return StripWhole(*cut) if joined else PerToken(lambda token: _strip(token, *cut))
        case "Metaspace" if not joined:
            mark = decoder["replacement"]
            drops = decoder.get("prepend_scheme", "always") != "never"
            return FirstToken(
                lambda token: token.replace(mark, "" if drops else " "),
                lambda token: token.replace(mark, " "),
            )
        case "WordPiece" if not joined:
            tidy = clean_up if decoder["cleanup"] else str
            prefix = decoder["prefix"]
            return FirstToken(tidy, lambda token: tidy(_continued(token, prefix)))
        case "BPEDecoder" if not joined:
            return Suffix(decoder["suffix"])
        case other:
            where = " behind a decoder that joins tokens" if joined else ""
            raise UnsupportedDecoder(f"{other}{where}")


def _replacement(decoder: dict[str, Any]) -> tuple[str, str]:
    pattern = decoder["pattern"].get("String")
    if not pattern:
        raise UnsupportedDecoder(f"Replace with the pattern {decoder['pattern']}")
    return pattern, decoder["content"]


def _strip(token: str, content: str, start: int, stop: int) -> str:
    left = 0
    while left < min(start, len(token)) and token[left] == content:
        left += 1
    right = len(token)
    while right > left and len(token) - right < stop and token[right - 1] == content:
        right -= 1
    return token[left:right]


def _continued(token: str, prefix: str) -> str:
    return token[len(prefix) :] if token.startswith(prefix) else " " + token


def clean_up(text: str, replacements: Sequence[tuple[str, str]] = ()) -> str:
    """Undo the spaces that word pieces leave before punctuation and English contractions."""
    for found, better in replacements or WORD_PIECE_CLEAN_UP:
        text = text.replace(found, better)
    return text


# Both lists as their libraries have them, in their order.
TRANSFORMERS_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
WORD_PIECE_CLEAN_UP = (
    *TRANSFORMERS_CLEAN_UP[:7],
    (" do not", " don't"),
    *TRANSFORMERS_CLEAN_UP[7:],
)


class CleanUp:
    """clean_up_tokenization_spaces of tokenizer_config.json, over the text as it comes.

    What it replaces begins with a space and has four characters at most, so that text with three
    other characters behind it is certain. A long run of spaces is let out at MOST_HELD.
    """

    joins = True

    def __init__(self) -> None:
        self._held = ""

    def push(self, tokens: list[str]) -> list[str]:
        text = self._held + "".join(tokens)
        cut = len(text)
        while (space := text.rfind(" ", max(0, cut - 3), cut)) >= 0 and cut > len(text) - MOST_HELD:
            cut = space
        self._held = text[cut:]
        return [clean_up(text[:cut], TRANSFORMERS_CLEAN_UP)] if cut else []

    def end(self) -> list[str]:
        held, self._held = self._held, ""
        return [clean_up(held, TRANSFORMERS_CLEAN_UP)] if held else []

    def copy(self) -> CleanUp:
        return copy.copy(self)


def _byte_characters() -> dict[str, int]:
    """GPT-2's printable character of each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_characters()


@lru_cache(maxsize=1 << 16)
def _bytes_of(token: str) -> bytes:
    """The bytes that a token stands for; its own UTF-8 when a character stands for none."""
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()
