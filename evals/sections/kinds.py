"""The kinds of result that the report page shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from evals.reporting.page import Figure
from evals.reporting.results import Evaluation
from evals.sections import headlines
from evals.sections.codelength import compression, likelihood
from evals.sections.completions import completions
from evals.sections.digits import digits
from evals.sections.distances import by_class, clip_scores, distances
from evals.sections.headlines import Headline
from evals.sections.longtail import long_tail
from evals.sections.videos import videos


class Kind(NamedTuple):
    """A kind of result.

    Attributes:
      heading: of its section.
      figures: the figures of the evaluations that have such a result.
      headlines: the cards of one result.
    """

    heading: str
    figures: Callable[[Sequence[Evaluation]], list[Figure]]
    headlines: Callable[[Mapping[str, Any]], list[Headline]] = lambda result: []


KINDS = {
    "metrics": Kind("Distances", distances, headlines.of_metrics),
    "classes": Kind("Classes", by_class),
    "digits": Kind("Digits", digits, headlines.of_digits),
    "clip_score": Kind("CLIP score", clip_scores, headlines.of_clip_score),
    "likelihood": Kind("Likelihood", likelihood, headlines.of_likelihood),
    "compression": Kind("Compression", compression),
    "completion": Kind("Completions", completions, headlines.of_completion),
    "video": Kind("Video", videos, headlines.of_video),
    "longtail": Kind("The long tail", long_tail),
}
