"""The paper that a controller follows, and its BibTeX entry."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Citation:
    """The paper that a controller follows: number on arXiv ("1608.03983"), title, authors as BibTeX has them, year."""

    arxiv: str
    title: str
    author: str
    year: int

    def bibtex(self, key: str) -> str:
        """The BibTeX entry of that key."""
        fields = {"title": f"{{{self.title}}}", "author": self.author, "year": self.year, "eprint": self.arxiv}
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
        return "\n".join([f"@misc{{{key},", *lines, "  archivePrefix = {arXiv}", "}"])
