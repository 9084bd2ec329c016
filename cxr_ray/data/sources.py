"""The kinds of sources: how each is named and opened, and what its images bring. A new one is an entry of SOURCES."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from cxr_ray.config import Data, Sweep
from cxr_ray.data.entries import Entries, Source
from cxr_ray.data.folder import FolderSource
from cxr_ray.data.hub import HUBS, hub_folder
from cxr_ray.data.npz_source import NpzSource
from cxr_ray.data.phantom_source import PhantomSource
from cxr_ray.data.table import PARQUET, TEXT, TableSource
from cxr_ray.errors import DataError
from cxr_ray.registry import Registry
from cxr_ray.results import split_options


@dataclass(frozen=True)
class SourceKind:
    """All that the rest of the package asks of one kind of source.

    Attributes:
        open: the section ``data`` and the sweep's seed to the source. Raises DataError.
        usage: how ``--data`` names it, for help and messages.
        named_by: the text of ``--data`` to the keys of section ``data`` that it sets beside ``source``, where the text
            names this kind; else None. Without it: the kind of any text that names no other.
        description: what the report calls the data.
        limits: sentences that the report says of what such data cannot show.
        masks: parts of an image whose place the source knows.
        truth: the one of them that is the finding, as an expert would mark it.
        counterfactuals: a part to the changes in which its images can be rendered again to show the part's effect.
        on_disk: its files lie at a path that every machine of a cluster must see.
        own_val: its own val split validates, unless ``data.val`` says otherwise.
        reads: keys of section ``data`` that it reads and not every kind does.
    """

    open: Callable[[Data, int], Source]
    usage: str
    named_by: Callable[[str], dict[str, str] | None] | None
    description: str
    limits: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    truth: str | None = None
    counterfactuals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    on_disk: bool = True
    own_val: bool = False
    reads: tuple[str, ...] = ()


def _open_phantoms(settings: Data, seed: int) -> PhantomSource:
    return PhantomSource(**settings.phantom.model_dump(), size=settings.size, seed=seed)


def _open_hub(settings: Data, seed: int) -> FolderSource:
    return replace(_open_folder(settings, seed), path=hub_folder(settings.path))


def _open_folder(settings: Data, seed: int) -> FolderSource:
    s = settings
    return FolderSource(s.path, s.classes, s.splits, s.patient, s.bits, s.label)


def _open_npz(settings: Data, seed: int) -> NpzSource:
    return NpzSource(settings.path, settings.classes)


def _open_table(settings: Data, seed: int) -> TableSource:
    return TableSource(
        settings.path,
        settings.images,
        settings.columns,
        settings.classes,
        settings.splits,
        settings.patient,
        settings.bits,
    )


LABELLED = ("classes", "splits", "patient", "bits", "val")
FROM_FILE_NAMES = "Patients are inferred from file names."

SOURCES: Registry[SourceKind] = Registry(
    "data source",
    {
        "folder": SourceKind(
            open=_open_folder,
            usage="a folder in Kaggle's layout",
            named_by=None,
            description="folder",
            limits=(FROM_FILE_NAMES,),
            reads=(*LABELLED, "label"),
        ),
        "phantom": SourceKind(
            open=_open_phantoms,
            usage="'phantom'",
            named_by=lambda text: {} if text == "phantom" else None,
            description="procedural phantoms, not X-rays: they show how the tool works, not what maps are worth",
            masks=("lungs", "opacity", "marker"),
            truth="opacity",
            counterfactuals={"opacity": ("opacity",), "marker": ("marker", "glyph")},
            on_disk=False,
        ),
        "hub": SourceKind(
            open=_open_hub,
            usage=f"'hub:NAME' ({', '.join(HUBS)})",
            named_by=lambda text: {"path": text.removeprefix("hub:")} if text.startswith("hub:") else None,
            description="hub",
            limits=(FROM_FILE_NAMES,),
            reads=(*LABELLED, "label"),
        ),
        "table": SourceKind(
            open=_open_table,
            usage="a table (.csv, .tsv, .parquet)",
            named_by=lambda text: (
                {"path": text} if split_options(text.lower())[0].endswith((*TEXT, *PARQUET)) else None
            ),
            description="table of labels",
            limits=("Patients are those of the table's column, or without one inferred from file names.",),
            own_val=True,
            reads=(*LABELLED, "images", "columns"),
        ),
        "npz": SourceKind(
            open=_open_npz,
            usage="an .npz file such as PneumoniaMNIST's",
            named_by=lambda text: {"path": text} if split_options(text.lower())[0].endswith(".npz") else None,
            description="arrays of one file",
            limits=("The file names no patients, so each image counts as one: intervals may be too narrow.",),
            own_val=True,
            reads=("classes", "val"),
        ),
    },
)


def source_of(settings: Data, seed: int) -> Source:
    """The source that a sweep's data section names; ``seed`` is the sweep's.

    Raises:
        UnknownNameError: no such kind of source.
        DataError: it cannot be opened, such as a hub that is unknown or cannot be reached.
    """
    return SOURCES[settings.source].open(settings, seed)


def validates_own(settings: Data) -> bool:
    """Whether the source's own val split validates, where it has one."""
    return SOURCES[settings.source].own_val if settings.val is None else settings.val == "own"


def require_own_val(settings: Data, entries: Entries) -> None:
    """Raises DataError where ``data.val: own`` is asked for and there is no such split."""
    if settings.val == "own" and not any(e.split == "val" and e.class_name for e in entries):
        raise DataError(
            f"got data.val: own and {settings.path} without a val split; expected one; name it in data.splits.val, or "
            "leave data.val out, which takes val from train by patient."
        )


def known_masks(sweep: Sweep) -> set[str]:
    """Parts of the images whose place is known: by the source, or by masks that ``regions`` names."""
    named = [] if sweep.regions is None else [("lungs", sweep.regions.lungs), ("marker", sweep.regions.marker)]
    return {*SOURCES[sweep.data.source].masks, *(part for part, where in named if where is not None)}


def usages() -> str:
    """What ``--data`` takes.

    >>> usages()
    "a folder in Kaggle's layout; 'phantom'; 'hub:NAME' (kaggle, huggingface); a table (.csv, .tsv, .parquet); \
an .npz file such as PneumoniaMNIST's"
    """
    return "; ".join(kind.usage for kind in SOURCES.values())


def changes_of(text: str) -> dict[str, str]:
    """Dotted keys of a sweep to the values that ``--data TEXT`` gives them.

    >>> changes_of("hub:kaggle")
    {'data.source': 'hub', 'data.path': 'kaggle'}
    >>> changes_of("phantom")
    {'data.source': 'phantom'}
    >>> changes_of("scans/2024")
    {'data.source': 'folder', 'data.path': 'scans/2024'}
    """
    for name, kind in reversed(SOURCES.items()):  # one that was added goes first
        changes = kind.named_by(text) if kind.named_by else None
        if changes is not None:
            return {"data.source": name} | {f"data.{key}": value for key, value in changes.items()}
    by_default = next(name for name, kind in SOURCES.items() if kind.named_by is None)
    return {"data.source": by_default, "data.path": text}


def counterfactuals_of(sweep: Sweep) -> list[str]:
    """The changes in which test images are rendered again, as the truth about the regions' effects."""
    if sweep.regions is None:
        return []
    renderings = SOURCES[sweep.data.source].counterfactuals
    return [change for name in sweep.regions.names for change in renderings.get(name, ())]


def all_counterfactuals() -> dict[str, tuple[str, ...]]:
    """A part to the changes that show its effect, over all kinds of sources.

    >>> all_counterfactuals()
    {'opacity': ('opacity',), 'marker': ('marker', 'glyph')}
    """
    changes: dict[str, tuple[str, ...]] = {}
    for kind in SOURCES.values():
        for part, names in kind.counterfactuals.items():
            changes[part] = tuple(dict.fromkeys([*changes.get(part, ()), *names]))
    return changes
