"""A section of the page, and what all sections use: the files beside the page, and blocks for each model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cxr_ray.report.figures.layout import Figure
from cxr_ray.report.page import Block
from cxr_ray.report.rundata import RunData
from cxr_ray.storage import Store


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Attributes:
        anchor: its id on the page.
        title: the heading.
        notes: paragraphs that say how to read it.
        blocks: what it shows of the run.
        models: what it shows of each model, (name, blocks); the first is open.
        otherwise: the sentence that stands there instead of blocks, where there are none.
        level: of the heading, 2 or 3.
    """

    anchor: str
    title: str
    notes: Sequence[str] = ()
    blocks: Sequence[Block] = ()
    models: Sequence[tuple[str, Sequence[Block]]] = ()
    otherwise: str = ""
    level: int = 2


@dataclass(frozen=True)
class Folder:
    """The run's folder, into which pictures are written as files."""

    store: Store

    def picture(self, figure: Figure, name: str, alt: str, caption: str, inline: bool = True) -> Block:
        """Writes the figure as a file, and hands it to the page: inside it, or as a link."""
        drawing = figure.drawing()
        self.store.write(drawing.svg(alt, alone=True).encode(), "figures", name)
        return {
            "kind": "picture",
            "svg": drawing.svg(alt) if inline else None,
            "file": f"figures/{name}",
            "alt": alt,
            "caption": caption,
        }


OfModel = Callable[[RunData, Folder, str], Iterable[Block]]


def of_models(
    data: RunData, folder: Folder, blocks: OfModel, models: Sequence[str] | None = None
) -> list[tuple[str, Sequence[Block]]]:
    """(name, blocks) of each model that has any; by default of those that are shown with everything."""
    found = [(t, list(blocks(data, folder, t))) for t in (data.whole if models is None else models)]
    return [(data.name(t), b) for t, b in found if b]
