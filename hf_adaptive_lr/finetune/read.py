"""Reads the tables that `finetune` is given: files, folders and data sets of the Hub, in `datasets`' own types."""

from __future__ import annotations

import codecs
import contextlib
import csv
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FinetuneError, one_line, quiet_logger
from .image_folder import check_all_read, split_files

if TYPE_CHECKING:
    from datasets import Dataset

_BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
# Only a blank cell is missing: pandas would drop rows of a class, or a text, named "None" or "NA".
_ONLY_BLANK = {"keep_default_na": False, "na_values": [""]}
_TABLES, _JSON = (".csv", ".tsv"), (".json", ".jsonl")


@dataclass(frozen=True)
class Source:
    """Where the rows are, and how their files are written.

    Raises:
        FinetuneError: by `check`, for what cannot be; by `read`, for what cannot be read.
    """

    data: str
    """A file, a folder, or the id of a data set on the Hub."""
    config: str | None = None
    """Configuration of a Hub data set that has several."""
    delimiter: str | None = None
    """Character between the cells of a CSV file: one, or "tab"."""
    encoding: str | None = None
    """Of CSV and JSON files, by default UTF-8."""

    @property
    def path(self) -> Path:
        """Where the data are, if they are on this machine."""
        return Path(self.data).expanduser()

    def check(self) -> None:
        """Fail fast where nothing is there, or an option does not go with it; the Hub is not asked."""
        check_exists("data", self.data)
        path = self.path
        if path.is_file() and path.suffix not in _BUILDERS:
            raise FinetuneError(f"data file '{self.data}' must end in one of: {', '.join(_BUILDERS)}")
        suffix = path.suffix if path.is_file() else _only_suffix(path) if path.is_dir() else ""
        if self.delimiter is not None:
            if len(_character(self.delimiter)) != 1:
                raise FinetuneError(f"delimiter={self.delimiter!r} must be one character, such as ';', or tab")
            if suffix not in _TABLES:
                raise FinetuneError(f"delimiter={self.delimiter!r} is for CSV files here, not for '{self.data}'")
        if self.encoding is not None:
            if suffix not in (*_TABLES, *_JSON):
                raise FinetuneError(
                    f"encoding={self.encoding!r} is for CSV and JSON files here, not for '{self.data}'"
                )
            try:
                codecs.lookup(self.encoding)
            except LookupError as error:
                known = "utf-8, utf-16, cp1252, latin-1, shift_jis, ..."
                raise FinetuneError(f"encoding={self.encoding!r} is not known; there are: {known}") from error

    def read(self, task: str) -> dict[str, Dataset]:
        """All splits by name; "train" where there is only one."""
        from datasets import DatasetDict, load_dataset, load_from_disk
        from datasets.exceptions import DatasetsError

        path = self.path
        try:
            if path.is_file():
                loaded = self._table(_BUILDERS[path.suffix], path.suffix, data_files={"train": str(path)})
            elif path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
                loaded = load_from_disk(str(path))
            elif path.is_dir() and task == "image":
                loaded = load_dataset("imagefolder", data_dir=str(path), data_files=split_files(path))
                check_all_read(path, loaded)
            elif path.is_dir():
                loaded = self._table(str(path), _only_suffix(path), name=self.config)
            else:
                loaded = load_dataset(self.data, self.config)
        except FinetuneError:
            raise
        except (OSError, ValueError, LookupError, DatasetsError) as error:
            # Around a reader's error `datasets` says no more than that there was one.
            cause = error.__cause__ or error if isinstance(error, DatasetsError) else error
            where = "" if path.exists() else " from the Hub (no such file or folder here)"
            raise FinetuneError(f"data '{self.data}' cannot be read{where}: {_reason(cause)}") from error
        return dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}

    def _table(self, what: str, suffix: str, **how: Any) -> Any:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        options = self._options(suffix)
        if suffix in _TABLES:
            for path in [self.path] if self.path.is_file() else sorted(self.path.rglob(f"*{suffix}")):
                _check_cells(path, options)
        try:
            return load_dataset(what, **how, **options)
        except DatasetsError:
            if "na_values" not in options:
                raise
        # A column is read 10,000 rows at a time: numbers first and an NA later would not fit together.
        options = {key: value for key, value in options.items() if key not in _ONLY_BLANK}
        return load_dataset(what, **how, **options)

    def _options(self, suffix: str) -> dict[str, Any]:
        """What the reader of such files is told."""
        encoding = {} if self.encoding is None else {"encoding": self.encoding}
        if suffix not in _TABLES:
            return encoding if suffix in _JSON else {}
        delimiter = self.delimiter or ("tab" if suffix == ".tsv" else None)
        between: dict[str, Any] = {} if delimiter is None else {"sep": _character(delimiter)}
        if between.get("sep") == "\t":
            between["quoting"] = csv.QUOTE_NONE  # in such files a quote is a quote: an odd one would swallow rows
        # Without index_col the first cell of each row would be no cell where rows are longer than the header.
        return {**_ONLY_BLANK, "index_col": False, **between, **encoding}


def _check_cells(path: Path, options: Mapping[str, Any]) -> None:
    """Raise FinetuneError where rows have more cells than the header: which is which, no one can tell."""
    longest = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding=options.get("encoding", "utf-8"), newline="") as file:
            rows = csv.reader(
                file, delimiter=options.get("sep", ","), quoting=options.get("quoting", csv.QUOTE_MINIMAL)
            )
            width = len(next(rows, []))
            counts = [any(row[width:]) for row in rows if row]
    except (OSError, UnicodeError, csv.Error):
        return  # pandas says it
    finally:
        csv.field_size_limit(longest)
    if width and any(counts):
        raise FinetuneError(
            f"{path}: {sum(counts)} of {len(counts)} rows have more cells than the header, which has {width} (the "
            f"first is row {counts.index(True) + 1}); put cells that hold the delimiter in quotes, or name all columns"
        )


def check_exists(what: str, source: str) -> None:
    """Fail fast where a data or model source can only be a path, and nothing is there; the Hub is not asked."""
    path = Path(source).expanduser()
    looks_so = source.startswith((".", "~")) or source.endswith("/") or path.suffix in _BUILDERS
    is_path = looks_so or path.is_absolute() or len(path.parts) > 2
    if is_path and not path.exists():
        raise FinetuneError(f"{what} '{source}' does not exist; pass a local folder or file, or an id on the Hub")


def check_model(source: str) -> None:
    """Fail fast where a model's folder does not exist, or has no config.json."""
    check_exists("model", source)
    path = Path(source).expanduser()
    if path.exists() and not (path / "config.json").is_file():
        raise FinetuneError(f"model '{source}' is not a folder with config.json; save_pretrained writes one")


def other_delimiter(columns: list[str]) -> str:
    """A hint where a table was read as one column although its header has several."""
    names = {";": "';'", "\t": "tab", "|": "'|'", ",": "','"}
    found = next((sign for sign in names if len(columns) == 1 and sign in columns[0]), None)
    return "" if found is None else f"; if that is several, pass --delimiter {names[found]}"


def _character(delimiter: str) -> str:
    return "\t" if delimiter in ("tab", r"\t") else delimiter


def _only_suffix(folder: Path) -> str:
    """The suffix that all data files in a folder have, or nothing."""
    found = {path.suffix for path in folder.rglob("*") if path.is_file() and path.suffix in _BUILDERS}
    return found.pop() if len(found) == 1 else ""


def _reason(error: BaseException) -> str:
    if "corresponds to no data" in str(error):  # how `datasets` says it of a file with nothing but a header
        return "it has no rows"
    if isinstance(error, UnicodeError):
        return f"{one_line(error)}; name its encoding with --encoding (cp1252, utf-16, ...)"
    return one_line(error)


@contextlib.contextmanager
def quiet(local: bool) -> Iterator[None]:
    """Keep `datasets` from reporting in its own words what is about to be reported in one line."""
    from datasets.utils import logging as datasets_logging

    level, bars = datasets_logging.get_verbosity(), datasets_logging.is_progress_bar_enabled()
    datasets_logging.set_verbosity(datasets_logging.CRITICAL)
    if local:  # a download may take its time and shows how far it is
        datasets_logging.disable_progress_bar()
    try:
        with quiet_logger("huggingface_hub", logging.CRITICAL):  # it reports every try to reach the Hub
            yield
    finally:
        datasets_logging.set_verbosity(level)
        if bars:
            datasets_logging.enable_progress_bar()
