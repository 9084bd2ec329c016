"""Which outputs of a network stand for which class: as the sweep says, else as the file does, else as the data's order.

The names of classes that a file has are labels, and are matched as those of the data are: by ``data.classes``.

With ``data.classes.several`` a network has an output for each class, and one of them is measured against the rest: its
log-odds are its logit minus the logsumexp of the others, those of its softmax probability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NoReturn

from cxr_ray.config import Classes
from cxr_ray.data.labels import ClassMap
from cxr_ray.errors import CheckpointError
from cxr_ray.models.networks import ModelSpec
from cxr_ray.schemas import CLASSES

KINDS = ("bacteria", "virus")  # of pneumonia, as files of the usual data set are named


def outputs_of_classes(
    path: str, spec: ModelSpec, found: Mapping[str, int] | None, classes: Classes
) -> tuple[ModelSpec, list[str]]:
    """The spec with the columns of both classes, and what was concluded, each a sentence.

    Args:
        path: the file, for messages.
        spec: with the number of outputs that the file has; its columns, where they are known, hold.
        found: the names of its classes to outputs, where the file says so; of one output, that of the class numbered 1.
        classes: those of the data.

    Raises:
        CheckpointError: it is not said which output is which, and cannot be known.
    """
    if spec.columns is not None:
        _require_there(path, spec)
        said = f"its outputs stand for {', '.join(spec.names)}; {spec.target} is measured against the rest"
        return spec, [said] if spec.names else alone(spec)
    is_several = bool(classes.several) and spec.outputs > 2
    if found is not None:
        _require_numbers(path, spec, found, _example(list(classes.several) if is_several else None, spec.outputs))
    if is_several:
        return _of_several(path, spec, found, classes)
    if found is not None:
        return _of_two(path, spec, found, classes)
    if spec.outputs in (1, 2):
        return spec, []
    _refuse(path, spec, found, _example(None, spec.outputs))


def alone(spec: ModelSpec) -> list[str]:
    """What is taken for granted where columns name one class of several outputs; none of other columns."""
    if spec.columns is None or all(spec.columns) or spec.outputs == 1:
        return []
    number = int(bool(spec.columns[1]))
    columns = spec.columns[number]
    which = f"output {columns[0]} alone is" if len(columns) == 1 else f"outputs {', '.join(map(str, columns))} are"
    return [
        f"{which} {CLASSES[number]}, and {'its' if len(columns) == 1 else 'their'} log-odds are taken for those of a "
        f"sigmoid of its own; if the {spec.outputs} outputs are one softmax, name those of {CLASSES[1 - number]} too"
    ]


def names_in(
    path: str,
    outputs: int,
    named: Mapping[str, Mapping[str, int]],
    others: Mapping[str, Mapping[str, int]],
    classes: Classes,
) -> Mapping[str, int] | None:
    """The names of the classes of a file to their outputs; None: it has none.

    Args:
        path: for messages.
        outputs: how many the network has.
        named: what keys say that are meant for names of classes, by key.
        others: what else may be such names, by place; it is where each is a label of ``data.classes``.
        classes: those of the data.

    Raises:
        CheckpointError: two of them differ.
    """
    meant = _meanings(classes)
    found = {key: names for key, names in others.items() if _is_of_classes(names, outputs, meant, classes)}
    found = {**named, **{key: names for key, names in found.items() if key not in named}}
    said: dict[str, tuple[str, tuple[object, ...]]] = {}
    for key, names in found.items():
        meaning = tuple((n, meant(name) or name.casefold()) for name, n in sorted(names.items(), key=lambda i: i[1]))
        first, before = said.setdefault("first", (key, meaning))
        if meaning != before:
            raise CheckpointError(
                f"got {path}, whose {first} says {_listed(found[first])}, and whose {key} says {_listed(names)}; "
                f"expected one order of its classes; {_say(_example(None, outputs))}"
            )
    return next(iter(found.values()), None)


def _is_of_classes(
    names: Mapping[str, int], outputs: int, meant: Callable[[str], str | None], classes: Classes
) -> bool:
    """Whether they are labels of both classes, or each the label of one of several, in an order of the outputs."""
    found = [meant(name) for name in names]
    if not all(found) or any(name.strip().isdecimal() for name in names):  # numbers may be of anything
        return False
    if sorted(names.values()) != list(range(outputs)) and not (outputs == 1 and sorted(names.values()) == [0, 1]):
        return False
    return set(found) == set(classes.groups if classes.several and outputs > 2 else CLASSES)


def _meanings(classes: Classes) -> Callable[[str], str | None]:
    """The class of a name in a file, or its name among several; None: it is no label."""
    usual = classes == Classes()
    class_map = ClassMap(Classes(positive=[*classes.positive, *KINDS]) if usual else classes)
    groups = {group.casefold(): group for group in classes.several}

    def meant(name: str) -> str | None:
        if classes.several:
            return class_map.group([name]) or groups.get(name.strip().casefold())
        return class_map.of([name])[0] or None

    return meant


def _require_numbers(path: str, spec: ModelSpec, found: Mapping[str, int], example: str) -> None:
    """Refuse numbers of classes that are not those of the outputs, each once."""
    numbers = sorted(found.values())
    if numbers != list(range(spec.outputs)) and not (spec.outputs == 1 and numbers == [0, 1]):
        raise CheckpointError(
            f"got {path}, which numbers its classes {_listed(found)}, with a head of {spec.outputs} outputs; expected "
            f"each number from 0 to {spec.outputs - 1} once; {_say(example)}"
        )


def _of_two(path: str, spec: ModelSpec, found: Mapping[str, int], classes: Classes) -> tuple[ModelSpec, list[str]]:
    """The outputs of the two classes, by the labels that the file names."""
    usual = classes == Classes()
    class_map = ClassMap(Classes(positive=[*classes.positive, *KINDS]) if usual else classes)
    groups = {group.casefold(): CLASSES[group == classes.target] for group in classes.several}
    of = {name: class_map.of([name])[0] or groups.get(name.strip().casefold(), "") for name in found}
    if not set(of.values()) <= set(CLASSES) or (len(found) > 1 and len(set(of.values())) == 1):
        labels = " or ".join(f"{name} ({', '.join(labels)})" for name, labels in classes.groups.items())
        raise CheckpointError(
            f"got {path}, which names its classes {_listed(found)}; expected each to be a label of data.classes, "
            f"{labels}, and both classes to have one; name them there, or {_say(_example(None, spec.outputs))}"
        )
    last = max(found.values())  # of one output that is the class whose log-odds it is
    places = {name: 0 for name, n in found.items() if n == last} if spec.outputs == 1 else found
    negative, positive = (tuple(sorted(places[n] for n in places if of[n] == name)) for name in CLASSES)
    if usual and (negative, positive) in (((0,), (1,)), ((), (0,))):
        return spec, []
    parts = [
        f"{', '.join(map(str, columns))} {'is' if len(columns) == 1 else 'are'} {name}"
        for columns, name in zip((negative, positive), CLASSES, strict=True)
        if columns
    ]
    said = f"as the file says ({_listed(found)}), output {' and '.join(parts)}"
    return replace(spec, columns=(negative, positive)), [said]


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
            _refuse(path, spec, found, _example(order, spec.outputs))
        order, why = [str(group) for group in groups], "as the file says"
    if len(order) != spec.outputs:
        _refuse(path, spec, found, _example(order, spec.outputs))
    said = f"its outputs stand for {', '.join(order)}, {why}; {target} is measured against the rest"
    return spec.against_the_rest(order, target), [said]


def _example(order: list[str] | None, outputs: int) -> str:
    """A value of the key outputs: of several classes in their order, or of the two."""
    if order is not None:
        return f"{{{', '.join(f'{name}: [{n}]' for n, name in enumerate(order))}}}"
    if outputs == 1:
        return f"{{{CLASSES[1]}: [0]}}"
    return f"{{{CLASSES[0]}: [0], {CLASSES[1]}: [{', '.join(map(str, range(1, max(outputs, 2))))}]}}"


def _listed(found: Mapping[str, int]) -> str:
    first = sorted(found.items(), key=lambda item: item[1])[:6]
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    return ", ".join(f"{' '.join(name.split())} {n}" for name, n in first) + more


def _say(example: str) -> str:
    return f"give the key outputs (--outputs, ModelSpec.columns), such as outputs: {example}."


def _require_there(path: str, spec: ModelSpec) -> None:
    """Refuse columns beyond the outputs."""
    beyond = [n for columns in spec.columns or () for n in columns if n >= spec.outputs]
    if beyond:
        raise CheckpointError(
            f"got outputs {', '.join(map(str, beyond))} for {path}, whose head has {spec.outputs}; expected numbers "
            f"from 0 to {spec.outputs - 1}; give those of its classes."
        )


def _refuse(path: str, spec: ModelSpec, found: Mapping[str, int] | None, example: str) -> NoReturn:
    names = f" ({_listed(found)})" if found else ""
    raise CheckpointError(
        f"got {path} with a head of {spec.outputs} outputs{names}; expected 1 or 2 ({', '.join(CLASSES)}), or to be "
        f"told which are which; give a file of such a network, or {_say(example).removeprefix('give ')}"
    )
