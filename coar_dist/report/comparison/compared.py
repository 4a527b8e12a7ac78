"""What a comparison of two runs or methods found: a sentence, data frames, and a page."""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from coar_dist.errors import StorageError, counted, listed
from coar_dist.report.comparison.measure import BEYOND, Measured, measure
from coar_dist.report.comparison.render import ShownComparison, rendered
from coar_dist.report.comparison.sides import Matching, Side, match
from coar_dist.report.notebook import with_class_names
from coar_dist.report.numbers import number
from coar_dist.report.page import PAGE
from coar_dist.store.record import RUN_FILE

if TYPE_CHECKING:
    from pandas import DataFrame

_MARK, _MARK_WITHIN = b'content="coar_dist compare"', 1024
"""In the first bytes of every page of a comparison."""
_TABLES = ("examples", "components", "largest")
_FEWEST = 20
"""Examples from which on percentiles are told."""


class Comparison:
    """Two runs, or two methods of a run, side by side: what ``coar_dist.compare(a, b)`` returns.

    Columns named ``one`` or ``..._one`` are of ``a``, those named ``other`` or ``..._other`` of ``b``; a difference is
    one less the other.

    Attributes:
        names: what ``one`` and ``other`` are called for people, on the page and in the summary.
        warnings: where the two explain other outputs, other examples, or other ablations.
        only_one, only_other: names of the components of one alone, which are not compared.
        notes: what is to be kept in mind.

    Example:
        >>> comparison = coar_dist.compare(run, run, methods=("coar", "leave_one_out"))
        >>> comparison.examples.columns[:3].tolist(), comparison.components.shape[0]
        (['label', 'prediction', 'spearman'], 12)
        >>> dict(zip(("one", "other"), comparison.names))
        {'one': 'COAR', 'other': 'Leave-one-out'}
    """

    def __init__(self, one: Side, other: Side, matching: Matching, measured: Measured) -> None:
        self._one, self._other, self._matching, self._measured = one, other, matching, measured
        self.names = matching.names
        self.only_one, self.only_other = matching.only
        self.warnings, self.notes = matching.warnings, _notes(matching, measured)

    @classmethod
    def of(cls, one: Side, other: Side, on_progress: Callable[[int], None] | None = None) -> Comparison:
        """Compare two sides.

        Args:
            one, other: the sides.
            on_progress: called with the number of examples that are done.

        Raises:
            ConfigError, RunMismatchError: as of ``match``.
            MissingWorkError, DamagedFileError: attributions are missing or damaged.
        """
        matching = match(one, other)
        return cls(one, other, matching, measure(one, other, matching, on_progress))

    @property
    def summary(self) -> str:
        """The result in a sentence or two."""
        return _summary(self._matching, self._measured)

    @property
    def examples(self) -> DataFrame:
        """A row per example, by ``example_id``: ``label`` and ``prediction``, with the names of classes that have one;
        ``spearman`` and ``pearson`` correlation
        of its weights over the common components, NaN where either side has a constant or a weight that is not finite;
        ``top_10``, how many of the ten strongest components are the same; ``size_one`` and ``size_other``, root mean
        squares of the weights, and ``difference``, that of their differences; ``beyond``, the share of components whose
        difference is more than 1.96 standard errors, where both sides have standard errors."""
        from pandas import DataFrame, Index

        index = Index(self._matching.example_ids, name="example_id")
        classes = with_class_names(self._labels(), self._one.reader.class_names)
        return DataFrame({**classes, **self._measured.of_examples}, index=index)

    @property
    def components(self) -> DataFrame:
        """A row per common component, by ``name``: ``kind``, ``layer``, ``mean_one`` and ``mean_other``, its weights in
        the mean over examples, ``mean_difference`` (one less the other), the ``spread`` of differences, their standard
        deviation over examples, and ``pearson``, the correlation over examples, NaN where either side is constant.
        Where both sides have standard errors, ``standard_error`` is at least that of the mean difference: as if the
        errors of all examples, which come from the same masks, were one."""
        from pandas import DataFrame, Index

        columns = self._component_columns()
        index = Index(columns.pop("name"), name="name")
        return DataFrame(columns, index=index)

    @property
    def largest(self) -> DataFrame:
        """The 100 largest differences of single weights, by ``rank`` from 1 on: ``example_id``, ``name``, ``one``,
        ``other``, ``difference``; where both sides have standard errors, ``z``, the difference in these, by which they
        are then chosen."""
        from pandas import DataFrame, RangeIndex

        columns = self._largest_columns()
        return DataFrame(columns, index=RangeIndex(1, len(columns["name"]) + 1, name="rank"))

    @property
    def differences(self) -> DataFrame:
        """What differs besides the weights, by ``what``: model, examples, design, ... of ``one`` and of ``other``."""
        from pandas import DataFrame

        rows = self._matching.differences
        return DataFrame(rows, columns=["what", "one", "other"]).set_index("what")

    def write_report(self, path: str | Path = "comparison.html") -> Path:
        """Write the comparison as one page, and its tables in full as ``<page>.examples.csv`` and so on beside it.

        Args:
            path: of the page.

        Returns:
            The same.

        Raises:
            StorageError: it cannot be written.

        Example:
            >>> comparison.write_report("comparison.html").name  # doctest: +SKIP
            'comparison.html'
        """
        page = page_at(path)
        matching, measured = self._matching, self._measured
        shown = ShownComparison(
            names=self.names,
            summary=self.summary,
            warnings=self.warnings,
            notes=self.notes,
            example_ids=matching.example_ids,
            labels=self._labels(),
            class_names=self._one.reader.class_names,
            examples=measured.of_examples,
            components=self._component_columns(),
            largest=self._largest_columns(),
            num_strongest=measured.num_strongest,
            differences=matching.differences,
            only=matching.only,
            reports=(_report_of(self._one, page), _report_of(self._other, page)),
        )
        try:
            for name in _TABLES:
                getattr(self, name).to_csv(page.with_suffix(f".{name}.csv"))
            page.write_text(rendered(shown), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{page} cannot be written: {error.strerror}.") from error
        return page

    def _labels(self) -> dict[str, NDArray[Any]]:
        """``label`` and ``prediction`` of the examples, as the first side has them."""
        found = self._one.reader.examples(self._matching.example_ids.tolist())
        return {name: found[name] for name in ("label", "prediction")}

    def _component_columns(self) -> dict[str, Any]:
        table = self._one.reader.components.table()
        of_one = self._matching.components[0].tolist()
        named = {name: [table[name][i] for i in of_one] for name in ("name", "kind", "layer")}
        return {**named, **self._measured.of_components}

    def _largest_columns(self) -> dict[str, Any]:
        columns: dict[str, Any] = dict(self._measured.largest)
        components = self._one.reader.components
        places = self._matching.components[0][columns.pop("component")]
        if "beyond" not in self._measured.of_examples:
            del columns["z"]
        names = [components.name_of(int(i)) for i in places]
        return {"example_id": columns.pop("example_id"), "name": names, **columns}

    def __repr__(self) -> str:
        return "\n".join([f"{type(self).__name__}: {self.summary}", *self._said()])

    def _repr_html_(self) -> str:
        return "".join(f"<p>{html.escape(line)}</p>" for line in (self.summary, *self._said()))

    def _said(self) -> list[str]:
        columns = "Columns: one is {}; other is {}.".format(*self.names)
        return [*(f"Warning: {text}" for text in self.warnings), *self.notes, columns]


def _report_of(side: Side, page: Path) -> str | None:
    """The address of a side's report from a page; None where it is no file."""
    report = Path(side.reader.directory.storage.location, PAGE)
    if not report.is_file():
        return None
    return quote(Path(os.path.relpath(report.resolve(), page.resolve().parent)).as_posix())


def page_at(path: str | Path) -> Path:
    """Where a page is to be written; its folder is made.

    Raises:
        StorageError: it cannot be written there, or would take the place of what is no comparison, or stand among the
            files of a run.
    """
    page = Path(path)
    if page.is_dir():
        raise StorageError(f"{page} cannot be written: it is a folder. Name another page.")
    if page.suffix.lower() not in (".html", ".htm"):
        raise StorageError(f"{page} is no name of a page: let it end in .html.")
    inside = [folder for folder in page.absolute().parents if (folder / RUN_FILE).exists()]
    if inside and page.absolute().relative_to(inside[0]).parts[0] != "report":
        raise StorageError(f"{page} is among the files of a run: name one in {inside[0] / 'report'}, or elsewhere.")
    is_comparison = page.is_file() and _MARK in page.read_bytes()[:_MARK_WITHIN]
    for there in () if is_comparison else (page, *(page.with_suffix(f".{name}.csv") for name in _TABLES)):
        if there.exists():
            raise StorageError(f"{there} is there already, and of no comparison. Name another page, or remove it.")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{page} cannot be written: {error.strerror}.") from error
    if not os.access(page if page.exists() else page.parent, os.W_OK):
        raise StorageError(f"{page} cannot be written: Permission denied. Name another page.")
    return page


def _summary(matching: Matching, measured: Measured) -> str:
    one, other = matching.names
    spearman = measured.of_examples["spearman"]
    defined = spearman[np.isfinite(spearman)]
    over = f"{counted(len(spearman), 'example')} and {counted(matching.components.shape[1], 'component')}"
    if not len(defined):
        return f"{one} and {other} cannot be compared: of {over}, the rank correlation of no example is defined."
    spread = ""
    if len(defined) >= _FEWEST:
        low, high = np.percentile(defined, [5, 95])
        spread = f" ({number(float(low))} to {number(float(high))} for nine examples in ten)"
    shared = float(np.nanmean(measured.of_examples["top_10"]))
    text = (
        f"Weights of {one} and {other} have a mean rank correlation of {number(float(defined.mean()))} per example"
        f"{spread}, over {over}; {shared:.1f} of the {measured.num_strongest} strongest components of an example are "
        f"the same."
    )
    if "beyond" in measured.of_examples:
        beyond = float(np.nanmean(measured.of_examples["beyond"]))
        text += f" {beyond:.0%} of the differences are larger than {BEYOND} standard errors; errors alone make 5% so."
    return text


def _notes(matching: Matching, measured: Measured) -> list[str]:
    notes = []
    if matching.share_masks and "beyond" in measured.of_examples:
        notes.append(
            "Both are of the same masks, so that some of the errors of one are those of the other: z is smaller than "
            "it would be for masks of their own."
        )
    for name, only in zip(matching.names, matching.only, strict=True):
        if only:
            notes.append(
                f"Not compared, because only {name} has them: {counted(len(only), 'component')}, {listed(only, 5)}."
            )
    spearman = measured.of_examples["spearman"]
    num_undefined = int((~np.isfinite(spearman)).sum())
    if num_undefined:
        notes.append(
            f"{counted(num_undefined, 'example')} without a correlation: all weights of one side are the same, or one "
            f"is not finite."
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = measured.of_examples["size_one"] / measured.of_examples["size_other"]
    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    if len(ratio) and not 0.5 < np.median(ratio) < 2.0:
        notes.append(
            f"Weights of {matching.names[0]} are {float(np.median(ratio)):.3g} times the size of the other's (median "
            f"over examples), so that differences tell little; correlations do not depend on it."
        )
    return notes
