"""The data sets of the benchmark by name: who reads them, what their rows are, and in which suite they stand.

Sets of one `origin` stand in one suite: nothing that a controller saw in development comes again in the test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from . import sources_images as images
from . import sources_media as media
from . import sources_reference as reference
from . import sources_tables as tables
from . import sources_text as texts
from .raw_rows import Raw

Suite = Literal["development", "test"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set; `read` gives its rows for training, tuning and controllers, and those for the test."""

    read: Callable[[], tuple[Raw, Raw]]
    origin: str
    suite: Suite
    kind: Literal["text", "pairs", "words", "image", "vector", "table"]
    classes: int = 1  # 1: the labels are numbers, or there are none
    width: int = 1  # numbers in a vector or table's row, channels of a picture


def _source(
    read: Callable[[], tuple[Raw, Raw]], origin: str, suite: Suite, kind: str, classes: int = 1, width: int = 1
) -> Source:
    return Source(read=read, origin=origin, suite=suite, kind=kind, classes=classes, width=width)  # type: ignore[arg-type]


SOURCES: Mapping[str, Source] = {
    "20newsgroups": _source(texts.newsgroups, "20newsgroups", "development", "text", 20),
    "reuters-r8": _source(texts.reuters_r8, "reuters", "development", "text", 8),
    "reuters-r52": _source(texts.reuters_r52, "reuters", "development", "text", 52),
    "sotu-year": _source(texts.sotu_year, "sotu", "development", "text"),
    "sotu-next": _source(texts.sotu_next, "sotu", "development", "pairs"),
    "sotu-text": _source(texts.sotu_text, "sotu", "development", "text"),
    "names": _source(texts.names, "names", "development", "text", 2),
    "fashion-mnist": _source(images.fashion, "fashion-mnist", "development", "image", 10),
    "mnist-5000": _source(images.mnist, "mnist", "development", "image", 10),
    "digits": _source(images.digits, "digits", "development", "vector", 10, 64),
    "emoji": _source(images.emoji, "emoji", "development", "image", 8, 3),
    "diabetes": _source(images.diabetes, "diabetes", "development", "table", 1, 10),
    "segment": _source(images.segment, "segment", "development", "table", 1, 13),
    "wordnet": _source(texts.wordnet, "wordnet", "development", "text", 26),
    "wordnet-pairs": _source(texts.wordnet_pairs, "wordnet", "development", "pairs", 2),
    "wordnet-words": _source(texts.wordnet_words, "wordnet", "development", "pairs"),
    "wordnet-text": _source(texts.wordnet_text, "wordnet", "development", "text"),
    "spam": _source(texts.spam, "spamassassin", "development", "text", 2),
    "brown": _source(texts.brown, "brown", "development", "text", 15),
    "brown-tags": _source(texts.brown_tags, "brown", "development", "words", len(texts.TAGS)),
    "fortunes": _source(texts.fortunes, "fortunes", "development", "text", 20),
    "syllables": _source(texts.syllables, "cmudict", "development", "text", 6),
    "valence": _source(texts.valence, "vader", "development", "text"),
    "clipart": _source(images.clipart, "openclipart", "development", "image", 13, 3),
    "icons": _source(images.icons, "oxygen", "development", "image", 6, 3),
    "phishing": _source(images.phishing, "phishing", "development", "table", 2, 9),
    "banana": _source(images.banana, "banana", "development", "table", 2, 2),
    "diamonds": _source(images.diamonds, "diamonds", "development", "table", 1, 9),
    "moby-text": _source(texts.moby_text, "moby-dick", "development", "text"),
    "shuttle": _source(images.shuttle, "shuttle", "development", "table", 2, 9),
    "shuttle-sensor": _source(images.shuttle_sensor, "shuttle", "development", "table", 1, 8),
    "subjects": _source(reference.subjects, "trans-de-en", "test", "text", len(reference.SUBJECTS)),
    "genders": _source(reference.genders, "trans-de-en", "test", "text", len(reference.GENDERS)),
    "foldoc-links": _source(reference.foldoc_links, "foldoc", "test", "words", 3),
    "foldoc-terms": _source(reference.foldoc_terms, "foldoc", "test", "pairs"),
    "manpages-sections": _source(reference.manual_sections, "manpages", "test", "text", 2),
    "manpages-text": _source(reference.manual_text, "manpages", "test", "text"),
    "declaration-language": _source(
        reference.declaration_language, "human-rights", "test", "text", len(reference.LANGUAGES)
    ),
    "declaration-text": _source(reference.declaration_text, "human-rights", "test", "text"),
    "word-counts": _source(reference.word_counts, "subtlex", "test", "text"),
    "letters": _source(media.letters, "fonts", "test", "image", 52),
    "voices": _source(media.voices, "asterisk", "test", "image", len(media.VOICES)),
    "sprites": _source(media.sprites, "crossfire", "test", "image", len(media.SPRITES), 3),
    "defaulters": _source(tables.defaulters, "defaulters", "test", "table", 2, 3),
    "bikes": _source(tables.bikes, "bikeshare", "test", "table", 1, 11),
    "wages": _source(tables.wages, "wages", "test", "table", 1, 7),
    "tumours": _source(tables.tumours, "breast-cancer", "test", "table", 2, 30),
}
"""Every data set by its name."""
