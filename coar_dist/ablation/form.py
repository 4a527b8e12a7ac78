"""A form: one way to compute margins of ablated models on a prepared model."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coar_dist.ablation.passes import ForwardPass
from coar_dist.ablation.placement import on_host
from coar_dist.ablation.prefix import Cut, PrefixCuts
from coar_dist.ablation.prepared import PreparedModel
from coar_dist.tasks.example_set import ExampleSet

_EAGER_COST = 1.5
"""What an eager forward pass costs in compiled ones, about: the parts of a model cut in two are not compiled."""
_NUM_TRIALS, _LONG_S = 3, 1.0
Split: TypeAlias = tuple[list[int], list[tuple[Cut, list[int]]]]
"""Rows of masks that run the whole model, and the others per cut that they run behind."""


class Form(ABC):
    """Computes margins under masks; all forms give the same ones.

    ``whole`` and ``behind`` take any masks and examples, so that a form can be held to the truth as it is: eager,
    compiled or recorded, and behind every cut.

    Args:
        model: ablated in place, within calls alone or until ``close``.
        num_rows: rows of every forward pass.

    Attributes:
        forward: the forward pass of the whole model, to be compiled or recorded.
    """

    def __init__(self, model: PreparedModel, num_rows: int) -> None:
        self._model = model
        self.forward = ForwardPass(model, num_rows)

    @abstractmethod
    def whole(self, masks: NDArray[np.bool_], examples: ExampleSet) -> Tensor:
        """Margins by the whole model.

        Args:
            masks: (num_masks, num_components) bool, True = kept.
            examples: of the prepared model, or laid out as they are.

        Returns:
            (num_masks, num_examples) float32 on the device.
        """

    @abstractmethod
    def behind(self, cut: Cut, masks: NDArray[np.bool_], examples: ExampleSet) -> Tensor:
        """Margins as of ``whole``, by the part of the model behind ``cut``, on activations that all masks share.

        Args:
            cut: before every component that a mask ablates.
            masks: (num_masks, num_components) bool, True = kept.
            examples: of the prepared model, or laid out as they are.
        """

    @abstractmethod
    def passes(self, num_masks: int, num_examples: int) -> tuple[float, float]:
        """How many forward passes so many masks take among others, and how many behind a cut of their own."""

    @abstractmethod
    def seconds_per_margin(self) -> float:
        """Measured in one forward pass, with what masking adds to it."""

    @abstractmethod
    def close(self) -> None:
        """Leave the model as it was; the form is of no use after it."""

    def margins(self, masks: NDArray[np.bool_], examples: ExampleSet, parts: Split) -> NDArray[np.float32]:
        """Margins by the whole model, or behind a cut.

        Args:
            masks: (num_masks, num_components) bool, True = kept.
            examples: of the prepared model, or laid out as they are.
            parts: of the masks, as from ``split``.

        Returns:
            (num_masks, num_examples) float32.
        """
        alone, by_cut = parts
        computed = [self.whole(masks[alone], examples)] if alone or not by_cut else []
        computed += [self.behind(cut, masks[rows], examples) for cut, rows in by_cut]
        margins = np.empty((len(masks), len(examples)), dtype=np.float32)
        margins[alone + [row for _, rows in by_cut for row in rows]] = on_host(torch.cat(computed))
        return margins

    def split(
        self,
        masks: NDArray[np.bool_],
        num_examples: int,
        cuts: PrefixCuts | None,
        among: NDArray[np.bool_] | None = None,
    ) -> Split:
        """Rows of ``masks`` that run the whole model, and per cut those that are cheaper behind it when all masks of
        ``among``, by default these, are computed at once."""
        if cuts is None:
            return list(range(len(masks))), []
        alone, behind = cuts.split(masks)
        counts = {cut: len(rows) for cut, rows in (behind if among is None else cuts.split(among)[1])}
        worth = []
        for cut, rows in behind:
            if self._reuse_pays(cut.saved, counts[cut], num_examples):
                worth.append((cut, rows))
            else:
                alone += rows
        return sorted(alone), worth

    def _reuse_pays(self, saved: float, num_masks: int, num_examples: int) -> bool:
        """Whether so many masks are cheaper behind a cut, in forward passes of the whole model."""
        plain, after = self.passes(num_masks, num_examples)
        reused = saved * math.ceil(num_examples / self.forward.num_rows) + (1 - saved) * after
        return reused * (_EAGER_COST if self.forward.is_compiled else 1.0) < plain


def trial_mask(num_components: int) -> NDArray[np.bool_]:
    """The mask (num_components,) of time trials: every twentieth component is ablated."""
    mask: NDArray[np.bool_] = np.arange(num_components) % 20 != 0
    return mask


def smallest_of_trials(measure: Callable[[], float]) -> float:
    """The smallest of three measurements after one to warm up, of fewer once they have taken a second: what takes long
    is disturbed less."""
    measure()
    started, found = time.perf_counter(), [measure()]
    while len(found) < _NUM_TRIALS and time.perf_counter() - started < _LONG_S:
        found.append(measure())
    return min(found)
