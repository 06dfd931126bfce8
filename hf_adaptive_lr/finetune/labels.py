"""Makes what a model trains on of label columns: one class, several, or a number for each row.

A label is compared as people read it: without outer and double blanks, and `2.0` is `2`.
"""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..artifacts import printable
from .errors import FinetuneError, some

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

CLASSES, SEVERAL, NUMBER = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (CLASSES, SEVERAL, NUMBER)
"""transformers' names of what a head can be trained for."""

_NOT_AVAILABLE = frozenset(("na", "n/a", "#n/a", "<na>", "nan", "none", "null", "nil", "-", "?"))
_WHOLE = re.compile(r"[+-]?\d{1,300}$", re.ASCII)  # a float would make neighbours of large ones equal
_CODE = re.compile(r"0\d+$")  # 02134 is not 2134
_MANY = 20  # rows from which more labels than half the rows are no labels


@dataclass(frozen=True)
class LabelColumns:
    """Where the labels stand, and how a cell is read."""

    names: tuple[str, ...]
    """One column, or several of 0 and 1, each named as its label."""
    delimiter: str | None = None
    """Between the labels of one cell."""

    def read(self, rows: Dataset) -> list[Any]:
        """For each row the label (text, number or bool), a tuple of several, or None where it is missing."""
        if len(self.names) > 1:
            columns = [[_tidy(value) for value in rows[name]] for name in self.names]
            return [self._marked(cells) for cells in zip(*columns, strict=True)]
        feature = rows.features[self.names[0]]
        values = list(rows[self.names[0]])
        named = _class_names(feature)
        if named:
            return [_named(value, named) for value in values]
        read = [_tidy(value) for value in values]
        if self.delimiter is None or any(isinstance(value, tuple) for value in read):
            return read
        return [_words(value, self.delimiter) for value in read]

    def known(self, rows: Dataset) -> list[str]:
        """All labels in their order, where the data say so beforehand."""
        if len(self.names) > 1:
            return list(self.names)
        return list(dict.fromkeys(str(_tidy(name)) for name in _class_names(rows.features[self.names[0]])))

    def _marked(self, cells: tuple[Any, ...]) -> tuple[str, ...] | None:
        if any(cell is None for cell in cells):
            return None
        odd = next((cell for cell in cells if cell not in (0, 1)), None)
        if odd is not None:
            raise FinetuneError(
                f"label columns {', '.join(self.names)}: each must hold 0 or 1 (its label is on a row, or not), got "
                f"{odd!r}"
            )
        return tuple(name for name, cell in zip(self.names, cells, strict=True) if cell)


@dataclass(frozen=True)
class Labels:
    """The labels of rows as a model takes them."""

    problem_type: str  # one of PROBLEM_TYPES
    names: list[str]  # of the classes; of a regression, its column
    values: list[Any]  # a class number, a 0 or 1 for each name, or a number; one for each row

    @property
    def keys(self) -> list[int] | None:
        """A number for each row by which rows are alike, to keep the shares; None where there is none."""
        if self.problem_type == NUMBER:
            return None
        seen: dict[Any, int] = {}
        return [seen.setdefault(_key(value), len(seen)) for value in self.values]


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def without_missing(parts: Sequence[list[Any]]) -> None:
    """Turn words such as NA into None, in place, where the columns of all parts otherwise hold only numbers."""
    words = {value for part in parts for value in part if isinstance(value, str)}
    absent = {word for word in words if word.lower() in _NOT_AVAILABLE}
    if not absent:
        return
    numbers = any(isinstance(value, int | float) for part in parts for value in part)
    if (numbers or words > absent) and all(_number(word) is not None for word in words - absent):
        codes = any(_CODE.match(word) for word in words)
        for part in parts:
            blank = [None if value in absent else value for value in part]
            part[:] = [_number(value) if isinstance(value, str) and not codes else value for value in blank]
    else:
        logger.warning(
            "%s is taken as a label like any other; leave the cell blank where none is known",
            some(sorted(map(repr, absent))),
        )


def name_marks(where: str, column: str, parts: Sequence[list[Any]]) -> None:
    """Turn lists of 0 and 1, in place, into the numbers of the labels that are on; lists of labels lose their blanks.

    What the lists are is decided once for all parts. They are marks where all hold only zeros and ones and are
    equally long; a row with a blank mark has no known labels.

    Raises:
        FinetuneError: lists that can only be marks, as one repeats a number, are not equally long.
    """
    lists = [value for part in parts for value in part if isinstance(value, tuple)]
    lengths = {len(value) for value in lists}
    only = bool(lists) and all(item is None or item in (0, 1) for value in lists for item in value)
    marks = only and len(lengths) == 1 and max(lengths) > 1
    if only and not marks and any(value.count(sign) > 1 for value in lists for sign in (0, 1)):
        raise FinetuneError(
            f"{where}: column '{column}' holds lists of 0 and 1 of {min(lengths)} to {max(lengths)} items; each needs "
            "one for every label"
        )
    read = _marked if marks else _without_blanks
    for part in parts:
        part[:] = [read(value) if isinstance(value, tuple) else value for value in part]


def _marked(value: tuple[Any, ...]) -> tuple[int, ...] | None:
    return None if None in value else tuple(index for index, item in enumerate(value) if item)


def _without_blanks(value: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(item for item in value if item is not None)


def encode(where: str, column: str, values: list[Any], known: list[str], problem_type: str | None) -> Labels:
    """The labels of all rows, none missing.

    `known` are all labels where the data say them. Without a `problem_type`, lists are several classes, numbers with
    fractions a regression, all else one class.

    Raises:
        FinetuneError: the column holds something else, or less than two labels.
    """
    said = f"{where}: column '{column}'"
    lists = any(isinstance(value, tuple) for value in values)
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    _check_kind(said, flat, str | int | float)
    if problem_type is None:
        fractions = any(isinstance(value, float) for value in values)
        problem_type = SEVERAL if lists else NUMBER if fractions else CLASSES
        if problem_type == CLASSES and not known:
            _check_repeats(said, values)
    if lists != (problem_type == SEVERAL):
        held = "lists" if lists else "one label a row"
        hint = "" if lists else "; pass --label-delimiter, or several columns of 0 and 1"
        raise FinetuneError(f"{said} holds {held}, which is not {problem_type}{hint}")
    if problem_type == NUMBER:
        return Labels(NUMBER, [column], _numbers(said, values))
    _check_kind(said, flat, str | int)
    found = {str(item): item for item in flat}
    numeric = all(isinstance(item, int) for item in found.values())
    new = sorted(found.keys() - set(known), key=(lambda name: (found[name], name)) if numeric else None)
    names = [*known, *new]
    if len(names) < 2:
        raise FinetuneError(f"{said} has {len(names)} label; at least 2 are needed")
    _warn_of_case(said, names)
    number = {name: index for index, name in enumerate(names)}
    if not lists:
        return Labels(CLASSES, names, [number[str(value)] for value in values])
    sets = [{number[str(item)] for item in value} for value in values]
    return Labels(SEVERAL, names, [[float(index in one) for index in range(len(names))] for one in sets])


def _check_kind(said: str, values: list[Any], kind: Any) -> None:
    odd = next((value for value in values if not isinstance(value, kind)), None)
    if odd is not None:
        held = f"{type(odd).__name__} ({printable(repr(odd), 60)})"
        raise FinetuneError(f"{said} holds {held}; labels are strings or whole numbers")


def _check_repeats(said: str, values: list[Any]) -> None:
    """Fail fast on a column of names, numbers or texts, which no model can learn as classes."""
    distinct, rows = len(set(values)), len(values)
    if distinct == rows > 2 or (rows >= _MANY and distinct > rows / 2):
        numbers = all(isinstance(value, int) for value in values)
        hint = ", or pass --problem-type regression to predict a number" if numbers else ""
        raise FinetuneError(
            f"{said} has {distinct} values in {rows} rows, so they do not look like labels; name another with "
            f"--label-column{hint} (--problem-type {CLASSES} takes them all the same)"
        )


def _warn_of_case(said: str, names: list[str]) -> None:
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.casefold(), []).append(repr(name))
    found = [" and ".join(group) for group in alike.values() if len(group) > 1]
    if found:
        logger.warning("%s: labels that differ only by case are several: %s", said, some(found))


def _numbers(said: str, values: list[Any]) -> list[float]:
    for value in values:
        if isinstance(value, bool | str) or not math.isfinite(value):
            raise FinetuneError(f"{said} holds {value!r}; a regression needs finite numbers")
    if len(set(values)) < 2:
        raise FinetuneError(f"{said} holds the same number in every row; there is nothing to predict")
    largest = max(map(abs, values))
    if largest > 1000:
        logger.warning(
            "%s holds numbers up to %.3g; a model learns them more easily when they are scaled to about -1 ... 1",
            said,
            largest,
        )
    return [float(value) for value in values]


def _number(word: str) -> int | float | None:
    """The number that a word is, or None."""
    try:
        number: int | float | None = int(word) if _WHOLE.match(word) else _tidy(float(word))
    except ValueError:
        return None
    return number


def _tidy(value: Any) -> Any:
    """A label as it is compared; None where it is missing, a tuple where it is a list."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", " ".join(value.split())) or None
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    if isinstance(value, list | tuple):
        return tuple(map(_tidy, value))
    return value


def _words(cell: Any, delimiter: str) -> tuple[Any, ...]:
    """The labels of one cell; none applies to a row with a blank one."""
    return () if cell is None else _without_blanks(tuple(map(_tidy, str(cell).split(delimiter))))


def _class_names(feature: Any) -> list[str]:
    """Names of a `ClassLabel`, also inside a list; else nothing."""
    inner = getattr(feature, "feature", feature)
    return list(getattr(inner, "names", None) or ())


def _named(value: Any, names: list[str]) -> Any:
    """The names of class numbers; public sets mark a missing label with -1."""
    if isinstance(value, list):
        return tuple(str(_tidy(names[item])) for item in value if item is not None and item >= 0)
    return None if value is None or value < 0 else str(_tidy(names[value]))
