"""Captions of images: from a file, or from the names of their classes, for `evals.clip_score`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from etils import epath

from evals.inputs.images import Images


class CaptionError(ValueError):
    """Captions that do not fit the images."""


def read(path: epath.PathLike, images: Images) -> list[str]:
    """The caption of each image, in the order of the images.

    Args:
      path: a .json file, an object of image name -> caption, or a text file with one line for each
        image in the order of the set.
      images: the set of images.

    Raises CaptionError for a missing or damaged file, and for captions that do not fit.
    """
    path = epath.Path(path)
    try:
        text = path.read_text()
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise CaptionError(f"{path} cannot be read as captions: {error}") from error
    if isinstance(found, dict):
        keys = [images.key(number) for number in range(len(images))]
        absent = [key for key in keys if not isinstance(found.get(key), str)]
        if absent:
            raise CaptionError(
                f"{path} has no caption of {len(absent)} of {len(keys)} images, the first is "
                f"{absent[0]!r}; expected an object of image name -> caption"
            )
        return [found[key] for key in keys]
    if not isinstance(found, list) or path.suffix == ".json":
        raise CaptionError(f"{path} holds no object of image name -> caption")
    if len(found) != len(images):
        raise CaptionError(
            f"{path} has {len(found)} lines, expected one for each of the {len(images)} images of "
            f"{images.name}"
        )
    return found


def of_classes(images: Images, template: str, class_names: Sequence[str] = ()) -> list[str]:
    """Captions from the classes of images.

    Args:
      images: labelled images.
      template: a caption with {} in the place of the name of the class.
      class_names: by label; default those of the images.

    Raises CaptionError for a template without {}, and for images without a label or a name of it.
    """
    if template.count("{}") != 1:
        raise CaptionError(f"found the template {template!r}, expected {{}} in it once")
    names = class_names or images.label_names
    captions = []
    for number in range(len(images)):
        label = images.label(number)
        if not 0 <= label < len(names):
            raise CaptionError(
                f"{images.key(number)!r} of {images.name} has the label {label}, and there are "
                f"{len(names)} names of classes; give --class_names or --captions"
            )
        captions.append(template.replace("{}", names[label]))
    return captions
