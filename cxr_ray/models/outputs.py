"""Which outputs of a network stand for which class: as the sweep says, else as the file does, else as the data's order.

With ``data.classes.several`` a network has an output for each class, and one of them is measured against the rest: its
log-odds are its logit minus the logsumexp of the others, those of its softmax probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from cxr_ray.config import Classes
from cxr_ray.data.labels import ClassMap
from cxr_ray.errors import CheckpointError
from cxr_ray.models.networks import ModelSpec
from cxr_ray.schemas import CLASSES

CLASS_OF = {"normal": 0, "pneumonia": 1, "bacteria": 1, "virus": 1}  # names of folders of this data set to labels


def outputs_of_classes(
    path: str, spec: ModelSpec, found: Mapping[str, int] | None, classes: Classes
) -> tuple[ModelSpec, list[str]]:
    """The spec with the columns of both classes, and what was concluded, each a sentence.

    Args:
        path: the file, for messages.
        spec: with the number of outputs that the file has; its columns, where they are known, hold.
        found: the file's class_to_idx.
        classes: those of the data.

    Raises:
        CheckpointError: it is not said which output is which, and cannot be known.
    """
    if spec.columns is not None:
        _require_there(path, spec)
        said = f"its outputs stand for {', '.join(spec.names)}; {spec.target} is measured against the rest"
        return spec, [said] if spec.names else []
    if classes.several and spec.outputs > 2:
        return _of_several(path, spec, found, classes)
    if found is not None and spec.outputs > 1:
        of = {name: CLASS_OF.get(name.strip().lower()) for name in found}
        if None not in of.values() and set(of.values()) == {0, 1}:
            columns = (
                tuple(sorted(found[name] for name in found if of[name] == 0)),
                tuple(sorted(found[name] for name in found if of[name] == 1)),
            )
            if columns == ((0,), (1,)):
                return spec, []
            said = f"as its class_to_idx says, outputs {columns[0]} are {CLASSES[0]} and {columns[1]} {CLASSES[1]}"
            return replace(spec, columns=columns), [said]
    if spec.outputs in (1, 2):
        return spec, []
    _refuse(path, spec, found, "{NORMAL: [0], PNEUMONIA: [1, 2]}")


def _of_several(
    path: str, spec: ModelSpec, found: Mapping[str, int] | None, classes: Classes
) -> tuple[ModelSpec, list[str]]:
    """The outputs of several classes: as the file names them, else in the order of the data's."""
    target = str(classes.target)
    order, why = list(classes.several), "in the order of data.classes.several"
    class_map = ClassMap(classes)
    named = list(spec.names) or (sorted(found, key=lambda name: found[name]) if found is not None else [])
    if named:
        groups = [
            class_map.group([name]) or next((o for o in order if o.casefold() == name.casefold()), None)
            for name in named
        ]
        places = list(range(len(named))) if spec.names else sorted((found or {}).values())
        if set(groups) != set(order) or len(groups) != len(order) or places != list(range(spec.outputs)):
            _refuse(path, spec, found, _example(order))
        order, why = [str(group) for group in groups], "as the file says"
    if len(order) != spec.outputs:
        _refuse(path, spec, found, _example(order))
    said = f"its outputs stand for {', '.join(order)}, {why}; {target} is measured against the rest"
    return spec.against_the_rest(order, target), [said]


def _example(order: list[str]) -> str:
    return f"{{{', '.join(f'{name}: [{n}]' for n, name in enumerate(order))}}}"


def _require_there(path: str, spec: ModelSpec) -> None:
    """Refuse columns beyond the outputs."""
    beyond = [n for columns in spec.columns or () for n in columns if n >= spec.outputs]
    if beyond:
        raise CheckpointError(
            f"got outputs {', '.join(map(str, beyond))} for {path}, whose head has {spec.outputs}; expected numbers "
            f"from 0 to {spec.outputs - 1}; give those of its classes."
        )


def _refuse(path: str, spec: ModelSpec, found: Mapping[str, int] | None, example: str) -> NoReturn:
    names = f" ({', '.join(f'{k} {v}' for k, v in found.items())})" if found else ""
    raise CheckpointError(
        f"got {path} with a head of {spec.outputs} outputs{names}; expected 1 or 2 ({', '.join(CLASSES)}), or to be "
        f"told which are which; give a file of such a network, or the key outputs, such as outputs: {example}."
    )
