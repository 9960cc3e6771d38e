"""Personal data in text that has a form: email, phone, SSN, payment card, IBAN, IP address.

What can be checked is checked (Luhn for cards, mod 97 for IBANs, the ranges of area numbers, octets and brands), and a
number that is a version, a section or a price by the words before it is none. Names, addresses and what has no form are
not looked for: that takes a model, and belongs before this server.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

from optimizer.serving.guard.ibans import IBAN_LENGTHS

__all__ = ["CONTEXT", "Found", "Personal", "in_run", "luhn"]

#: Characters before a match that decide whether it is one ("version 1.2.3.4", "SSN: 123456789").
CONTEXT = 48


class Personal(StrEnum):
    """A sort of personal data."""

    EMAIL = "email"
    IBAN = "iban"
    CARD = "card"
    SSN = "ssn"
    IP = "ip"
    PHONE = "phone"


@dataclass(frozen=True)
class Found:
    """One piece of personal data: what it is, and where (``start`` is in, ``end`` is not)."""

    kind: Personal
    start: int
    end: int


_EMAIL = re.compile(
    r"(?<![\w.%+'-])[A-Za-z0-9_%+][\w.%+'-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}(?P<top>[A-Za-z]{2,24})(?![\w-]|:[A-Za-z~/])",
    re.ASCII,
)
#: ``icon@2x.png`` is a picture for a fine screen.
_PICTURES = {"png", "jpg", "jpeg", "gif", "webp", "svg"}

_IBAN = re.compile(r"(?<![A-Za-z0-9])(?P<country>[A-Za-z]{2})\d{2}(?=[ \xa0-]?[A-Za-z0-9])")

_GROUP = re.compile(r"(?<![A-Za-z0-9_.])\d{4,19}(?![A-Za-z0-9_])")
_SHAPES = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 4, 4, 4, 2), (6, 13)}
#: First digits and lengths of the brands in use. Visa's 13 digits are gone, and would be a tenth of all EAN codes.
_BRANDS = (
    (re.compile(r"4"), {16, 19}),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), {16}),
    (re.compile(r"3[47]"), {15}),
    (re.compile(r"6011|64[4-9]|65"), {16, 19}),
    (re.compile(r"35(?:2[89]|[3-8])"), {16, 19}),
    (re.compile(r"30[0-5]|36|3[89]"), {14}),
    (re.compile(r"62"), {16, 17, 18, 19}),
    (re.compile(r"5018|5020|5038|5893|6304|6759|676[1-3]"), {16, 17, 18, 19}),
)

_SSN = re.compile(
    r"(?<![\w.-])(?<!\d )(?!000|666|9)\d{3}(?P<sep>[- ]?)(?!00)\d{2}(?P=sep)(?!0000)\d{4}(?![\w]|[-.]\w)", re.ASCII
)
_SSN_WORDS = re.compile(r"(?:\bssn\b|social.security)[^\d\n]{0,24}\Z", re.IGNORECASE)

_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"(?<![\w.-])(?<![A-Za-z]/)(?:{_OCTET}\.){{3}}{_OCTET}(?!\w|\.\w|-[A-Za-z])", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4})?(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])", re.ASCII)
_NO_ADDRESS = re.compile(
    r"(?:\b(?:v|ver|version|versions|release|rel|rev|revision|build|firmware|fw|driver|chapter|section|sec|clause|"
    r"article|figure|fig|table|step|oid|item|paragraph)\b[.:]?\s*(?:is|to|was|no\.?|number)?\s*[:=#]?\s*|[§^]\s*|"
    r"[~<>=!]=\s*)\Z",
    re.IGNORECASE,
)

_SEP = r"[ \xa0.\-]"
_PHONES = (
    # E.164: + and a country, in groups or in one piece.
    re.compile(rf"(?<![\w+.])\+[1-9](?:[ \xa0.\-/()]{{0,2}}\d){{7,14}}(?<!\D\d)(?!\w|{_SEP}?\d)", re.ASCII),
    re.compile(rf"(?<![\w.+-])(?<!\d )00[1-9]\d{{0,2}}(?:{_SEP}\d{{1,8}}){{2,5}}(?!\w|{_SEP}?\d)", re.ASCII),
    # North America: (555) 234-5678, 555-234-5678, 1-555-234-5678. With spaces alone it is a row of numbers, unless a
    # word before it says what it is.
    re.compile(
        rf"(?<![\w.+-])(?<!\d )(?:1{_SEP})?"
        rf"(?:\([2-9]\d\d\)[ \xa0-]?[2-9]\d\d{_SEP}|[2-9]\d\d(?P<sep>[.-])[2-9]\d\d(?P=sep))"
        rf"\d{{4}}(?!\w|{_SEP}?\d)",
        re.ASCII,
    ),
    # A national number with its leading 0, in groups.
    re.compile(
        r"(?<![\w.+-])(?<!\d[ :])\(?0[1-9]\d{0,3}\)?[ \xa0./-]\d{2,8}(?:[ \xa0.-]\d{2,8}){0,3}(?![\w:]|[ \xa0./-]?\d)",
        re.ASCII,
    ),
)
_DATE = re.compile(r"\d{1,2}([-./ ])\d{1,2}\1(?:19|20)\d\d|(?:19|20)\d\d([-./ ])\d{1,2}\2\d{1,2}|\d\d/\d\d")
_BARE = re.compile(rf"(?<![\w.+-])(?<!\d )\(?\d\)?(?:{_SEP}?\(?\d\)?){{6,14}}(?!\w|{_SEP}?\d)", re.ASCII)
_PHONE_WORDS = re.compile(
    r"\b(?:phone|tel|telephone|mobile|cell|cellphone|fax|whatsapp|sms|hotline|call(?:ed)? (?:me|us|him|her|them))\b"
    r"[^\d\n]{0,20}\Z",
    re.IGNORECASE,
)


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others, by Luhn's formula (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def in_run(text: str, start: int, kinds: Collection[Personal]) -> list[Found]:
    """Personal data in ``text[start:]``, a run of characters that no piece reaches out of.

    Args:
        text: the run, and up to ``CONTEXT`` characters of what stands before it.
        start: where the run begins.
        kinds: what to look for.

    Returns:
        pieces in their order, none over another.
    """
    found: list[Found] = []
    for kind, finder in _FINDERS.items():
        if kind in kinds:
            for begin, end in finder(text, start):
                if all(end <= f.start or begin >= f.end for f in found):
                    found.append(Found(kind, begin, end))
    return sorted(found, key=lambda f: f.start)


def _before(text: str, start: int) -> str:
    return text[max(0, start - CONTEXT) : start]


def _emails(text: str, start: int) -> Iterator[tuple[int, int]]:
    for match in _EMAIL.finditer(text, start):
        if match["top"].lower() not in _PICTURES:
            yield match.span()


def _ibans(text: str, start: int) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text, start):
        wanted = IBAN_LENGTHS.get(match["country"].upper(), 0)
        characters, end = "", match.start()
        while end < len(text) and len(characters) < wanted:
            if text[end].isascii() and text[end].isalnum():
                characters += text[end].upper()
            elif text[end] not in " \xa0-" or not text[end - 1].isalnum():
                break
            end += 1
        if wanted and len(characters) == wanted and not (end < len(text) and text[end].isalnum()):
            moved = characters[4:] + characters[:4]
            # ISO 13616: letters are numbers from 10 on, and the whole leaves 1 of a division by 97.
            if int("".join(str(int(c, 36)) for c in moved)) % 97 == 1:
                yield match.start(), end


def _cards(text: str, start: int) -> Iterator[tuple[int, int]]:
    groups = [m.span() for m in _GROUP.finditer(text, start)]
    done = start
    for first, (begin, _) in enumerate(groups):
        if begin < done or _glued(text, begin - 1, -1):
            continue
        for last in range(first, min(first + 5, len(groups))):
            gaps = {text[groups[i][1] : groups[i + 1][0]] for i in range(first, last)}
            if gaps and gaps not in ({" "}, {"\xa0"}, {"-"}):
                break
            shape = tuple(e - b for b, e in groups[first : last + 1])
            digits = "".join(text[b:e] for b, e in groups[first : last + 1])
            end = groups[last][1]
            # Groups that go on are a table or an identifier, unless one of these shapes is full.
            if (len(shape) == 1 or shape in _SHAPES) and not _glued(text, end, 1) and _brand(digits) and luhn(digits):
                done = end
                yield begin, end
                break


def _glued(text: str, place: int, step: int) -> bool:
    """Whether a hyphen, dot or slash there ties a number to more letters or digits (a UUID, a decimal, a path)."""
    if not 0 <= place < len(text) or text[place] not in "-./_%":
        return False
    beyond = place + step
    # A date may stand behind a slash, as on a card, but nothing stands before one.
    return 0 <= beyond < len(text) and text[beyond].isalnum() and not (step > 0 and text[place] == "/")


def _brand(digits: str) -> bool:
    return any(len(digits) in lengths and first.match(digits) for first, lengths in _BRANDS)


def _ssns(text: str, start: int) -> Iterator[tuple[int, int]]:
    for match in _SSN.finditer(text, start):
        # With hyphens the form says it; nine digits, or three groups of them, are many other things.
        if match["sep"] == "-" or _SSN_WORDS.search(_before(text, match.start())):
            yield match.span()


def _addresses(text: str, start: int) -> Iterator[tuple[int, int]]:
    for match in _IPV4.finditer(text, start):
        address = ipaddress.IPv4Address(match[0])
        # Loopback, masks and groups are nobody's.
        nobody = address.is_loopback or address.is_multicast or address.is_reserved or int(address) < 1 << 24
        if not nobody and not _NO_ADDRESS.search(_before(text, match.start())):
            yield match.span()
    for match in _IPV6.finditer(text, start):
        try:
            v6 = ipaddress.IPv6Address(match[0])
        except ValueError:
            continue
        # `::2` and `a::b` are code: an address has more in it.
        if sum(1 for part in match[0].split(":") if part) >= 3 or v6.is_link_local:
            yield match.span()


def _phones(text: str, start: int) -> Iterator[tuple[int, int]]:
    for number, pattern in enumerate(_PHONES):
        for match in pattern.finditer(text, start):
            digits = sum(c.isdigit() for c in match[0])
            least, most = ((8, 15), (10, 15), (10, 11), (9, 12))[number]
            dated = number == len(_PHONES) - 1 and _DATE.match(match[0].lstrip("("))
            if least <= digits <= most and not dated and match[0].count("(") == match[0].count(")"):
                yield match.span()
    for match in _BARE.finditer(text, start):
        if not _DATE.match(match[0]) and _PHONE_WORDS.search(_before(text, match.start())):
            yield match.span()


#: In the order in which they win where two would have the same characters.
_FINDERS: dict[Personal, Callable[[str, int], Iterator[tuple[int, int]]]] = {
    Personal.EMAIL: _emails,
    Personal.IBAN: _ibans,
    Personal.CARD: _cards,
    Personal.SSN: _ssns,
    Personal.IP: _addresses,
    Personal.PHONE: _phones,
}
