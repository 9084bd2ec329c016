"""Local paths on several machines: each machine is asked whether it sees them, since a path does not tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cxr_ray.errors import UserError
from cxr_ray.run import lock
from cxr_ray.storage import Store

PATIENCE = 60.0  # seconds for all machines to answer


def check(out: Store, paths: Sequence[str]) -> None:
    """See that every machine of the cluster sees the run's folder and what the run reads; URIs are left out.

    Raises:
        UserError: some machine does not see one of them.
    """
    local = [str(Path(path).absolute()) for path in paths if "://" not in path]
    folder = None if "://" in out.place else out.place
    if not local and folder is None:
        return
    owner = lock.owner(out)
    machines = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]}
    asked = {
        address: ray.remote(missing)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(folder, owner, local)
        for node, address in machines.items()
    }
    refuse(dict(zip(asked, ray.get(list(asked.values()), timeout=PATIENCE), strict=True)))


def missing(folder: str | None, owner: str | None, paths: Sequence[str]) -> list[str]:
    """What this machine does not see: of the paths, and the run's folder, where another one has its name.

    Args:
        folder: the run's, if it is local.
        owner: whose lock lies in it.
        paths: that are read.
    """
    unseen = [path for path in paths if not Path(path).exists()]
    if folder is not None and lock.owner(Store(folder, {})) != owner:
        unseen.insert(0, folder)
    return unseen


def refuse(answers: Mapping[str, Sequence[str]]) -> None:
    """Refuse the first path that a machine does not see. ``answers``: machine to what it misses.

    Raises:
        UserError: there is one.
    """
    for path in (path for unseen in answers.values() for path in unseen):
        blind = sorted(address for address, unseen in answers.items() if path in unseen)
        shown = ", ".join(blind[:3]) + (f" and {len(blind) - 3} more" if len(blind) > 3 else "")
        raise UserError(
            f"got {path}, which {len(blind)} of {len(answers)} machines of the cluster do not see ({shown}); expected "
            "storage that all of them share, or a URI (s3://..., gs://...); give one, or run on one machine."
        )
