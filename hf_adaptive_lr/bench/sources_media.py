"""Readers of letters of many fonts, sprites of a game, and voices as pictures of their sound."""

from __future__ import annotations

import io
import re
import string
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .packages import members
from .raw_rows import Raw, divided
from .sources_images import on_white

Split = tuple[Raw, Raw]

_FONTS = {
    "fonts-urw-base35": r"opentype/.*/(?!D050000L|StandardSymbols)[^/]*\.otf$",
    "fonts-linuxlibertine": r"/Lin(Biolinum|Libertine)_[RD][^/]*\.otf$",
    "fonts-dejavu-extra": r"/DejaVuS[^/]*\.ttf$",
    "fonts-lmodern": r"/lm(?!\w*(caps|quot))\w*10-[^/]*\.otf$",
}
"""Packages of fonts, and which of their files have letters of both cases; one size of a design is enough."""
SPRITES = ("armour", "connect", "exit", "ground", "monster", "player", "road", "spell", "wall", "weapon")
"""Crossfire's folders of at least a hundred sprites, but for those whose name does not say what is in them."""
VOICES = ("en", "fr", "it")
"""Languages of asterisk's prompts, each in one voice."""
_LINE = 200  # bytes that a line of the archive has at most
_RATE, _FRAME, _HOP, _SIDE = 8000, 256, 320, 32  # a picture is of 1.28 seconds and up to 4 kHz
_QUIET, _LOUD = -1.0, 7.0  # log power that is black, and white


def letters() -> Split:
    """Letters in 90 fonts, 28 pixels, grey: 26 small and 26 capital ones; a family of fonts is in one part."""
    from PIL import Image, ImageDraw, ImageFont

    pixels, labels, groups = [], [], []
    for package, wanted in _FONTS.items():
        for path, content in members(package, lambda path, wanted=wanted: re.search(wanted, path) is not None):  # type: ignore[misc]
            font = ImageFont.truetype(io.BytesIO(content), 20)
            for number, letter in enumerate(string.ascii_letters):
                picture = Image.new("L", (28, 28))
                ImageDraw.Draw(picture).text((14, 20), letter, fill=255, font=font, anchor="ms")
                pixels.append(np.asarray(picture))
                labels.append(number)
                groups.append(re.split(r"[-_]|10|Condensed", path.split("/")[-1])[0])
    return divided(Raw(pixels, labels, groups))


def sprites() -> Split:
    """Crossfire's sprites, 32 pixels, colour, by folder: ten; those whose names begin alike are in one part."""
    from PIL import Image

    pixels, labels, groups = [], [], []
    for path, content in _sprites():
        folder, name = path.rsplit("/", 1)
        kind = path.split("/")[2]
        sprite = np.asarray(on_white(Image.open(io.BytesIO(content)))) if kind in SPRITES else np.empty(0)
        if sprite.shape == (32, 32, 3):
            pixels.append(sprite)
            labels.append(SPRITES.index(kind))
            groups.append(f"{folder}/{re.split('[-_.0-9]', name)[0]}")
    return divided(Raw(pixels, labels, groups))


def _sprites() -> Iterator[tuple[str, bytes]]:
    """Path and picture of each entry of the game's archive: a line that ends with size and path, then the picture."""
    ((_, content),) = members("crossfire-client-images", lambda path: path.endswith("/crossfire.base"))
    place = 0
    while place < len(content):
        line, _, _ = content[place : place + _LINE].partition(b"\n")
        _, size, path = line.decode().split()
        place += len(line) + 1
        yield path, content[place : place + int(size)]
        place += int(size)


def voices() -> Split:
    """Spectrograms of prompts in English, French and Italian, 32 pixels, grey; a prompt is in one part."""
    pixels, labels, groups = [], [], []
    for number, language in enumerate(VOICES):
        for path, content in members(f"asterisk-core-sounds-{language}-wav", lambda path: path.endswith(".wav")):
            name = "/".join(path.split("/")[5:])
            for picture in [] if name.startswith("silence/") else _spectrograms(content):
                pixels.append(picture)
                labels.append(number)
                groups.append(name)
    return divided(Raw(pixels, labels, groups))


def _spectrograms(content: bytes) -> list[NDArray[Any]]:
    """Pictures of consecutive stretches of a recording, frequency by time; what is left at its end is dropped."""
    with wave.open(io.BytesIO(content)) as recording:
        if (recording.getframerate(), recording.getsampwidth(), recording.getnchannels()) != (_RATE, 2, 1):
            raise ValueError("a recording is not of 8,000 samples a second, 16 bits and one channel")
        sound = np.frombuffer(recording.readframes(recording.getnframes()), "<i2").astype(np.float64) / 256
    stretch, pictures = _HOP * _SIDE, []
    for first in range(0, len(sound) - stretch + 1, stretch):
        frames = sound[first : first + stretch].reshape(_SIDE, _HOP)[:, :_FRAME] * np.hanning(_FRAME)
        power = (np.abs(np.fft.rfft(frames)[:, 1:]) ** 2).reshape(_SIDE, _SIDE, -1).mean(-1).T[::-1]
        shade = (np.log10(power + 1e-9) - _QUIET) / (_LOUD - _QUIET)
        pictures.append((np.clip(shade, 0, 1) * 255).round().astype(np.uint8))
    return pictures
