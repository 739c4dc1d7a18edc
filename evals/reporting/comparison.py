"""Which settings of several results differ, so that different ones are never unmarked in one row.

`evals.sections` writes the differences next to the figures, in words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evals.reporting.page import Source, setting
from evals.reporting.results import TITLES, Evaluation

# Settings that name what is compared, or where it lies: these differ on purpose.
_COMPARED = frozenset(
    {
        *("workdir", "step", "model_weights", "generated", "file", "classes"),
        # Which files; their contents are identified by hashes and numbers.
        *("network_weights", "clip_weights"),
    }
)
_COUNTS = ("n_generated", "n_references", "n_images")
_MAX_LENGTH = 48  # characters of a value
_MAX_NAMED = 4  # differences that are named; more are counted


def settings_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a result, with the numbers of images, on which distances depend."""
    counts = {name: result[name] for name in _COUNTS if result.get(name) is not None}
    return {**counts, **result["settings"]}


def differing(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each result the settings that are not the same in all of them, in words.

    Args:
      found: the settings of each result.

    Returns:
      As many texts; all "" if the results can be compared.
    """
    names = dict.fromkeys(name for settings in found for name in settings)
    different = [
        name
        for name in names
        if name not in _COMPARED
        and any(settings.get(name) != found[0].get(name) for settings in found)
    ]
    return [_words(settings, different) for settings in found]


def differences(evaluations: Sequence[Evaluation], kind: str) -> list[str]:
    """The same of one kind of result of several evaluations.

    Runs often have eval splits of their own. Where these hold the same documents, the folder that
    they lie in is no difference.
    """
    found = [settings_of(one.results[kind]) for one in evaluations]
    scored = {_scored(one, kind) for one in evaluations}
    if len(scored) == 1 and None not in scored:
        found = [{**settings, "images": None} for settings in found]
    return differing(found)


def _scored(one: Evaluation, kind: str) -> str | None:
    """Which documents a result has scored, from likelihood.jsonl; None if that is not known."""
    path = one.folder / "likelihood.jsonl"
    ours, listed = one.results[kind], one.results.get("likelihood", {})
    name = "bits_per_image"
    if name not in ours or ours[name] != listed.get(name) or not path.is_file():
        return None
    lines = map(json.loads, path.read_text().splitlines())
    return repr([(line["key"], line["label"], line["bytes"]) for line in lines])


def _words(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    values = [setting(settings.get(name)) for name in names[:_MAX_NAMED]]
    short = [f"{text[:_MAX_LENGTH]}…" if len(text) > _MAX_LENGTH else text for text in values]
    words = [f"{title(name)} {text}" for name, text in zip(names, short, strict=False)]
    if len(names) > _MAX_NAMED:
        words.append(f"{len(names) - _MAX_NAMED} more settings")
    return "; ".join(words)


def title(name: str) -> str:
    """The printed name of a setting."""
    return TITLES.get(name, name.replace("_", " "))


def source(evaluation: Evaluation, kind: str) -> Source:
    """Where the figures of one result come from."""
    result = evaluation.results[kind]
    settings = {title(name): value for name, value in settings_of(result).items()}
    return Source(evaluation.name, result["command"], settings, str(evaluation.path(kind)))
