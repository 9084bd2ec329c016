"""Shards that ended their workers, image by image: what is asked of workers, and the file that results. Without Ray."""

from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cxr_ray.measure import steps
from cxr_ray.run import deaths, one_by_one, rounds
from cxr_ray.run.deaths import Died
from cxr_ray.run.one_by_one import OneByOne
from cxr_ray.run.plan import ShardPlan
from cxr_ray.schemas import ERRORS
from cxr_ray.storage import Store


def shard(*ids: str, name: str = "m.test.3.00000", split: str = "test") -> ShardPlan:
    rows = tuple({"image_id": i, "path": f"{i}.png", "label": 0} for i in ids)
    return ShardPlan(name, "m", split, 32, "none", rows)


@dataclass(eq=False)
class FakeCall:
    """A call, or a task without refs."""

    refs: tuple[Any, ...] = ()

    @property
    def is_task(self):
        return not self.refs


class Pool:
    """Makes calls when they are waited for. An image named bad ends its worker; many does so beside others."""

    def __init__(self):
        self.running: deque[Any] = deque()
        self.asked: list[tuple[tuple[str, ...], int]] = []

    @property
    def is_busy(self):
        return bool(self.running)

    @property
    def is_free(self):
        return len(self.running) < 2

    def submit(self, function, plan, *, num_returns, topic, kind, most):
        ids = tuple(row["image_id"] for row in plan["rows"])
        self.asked.append((ids, most))
        call = FakeCall(refs=(None, {("errors", ""): rows_of(ids)}))
        dies = "bad" in ids or ("many" in ids and len(ids) > 1)
        told = {"name": plan["name"], "images": len(ids), "backend": "toy", "notes": []}
        self.running.append((call, Died("it crashed") if dies else told))
        return call

    def add(self, told):
        self.running.append((FakeCall(), told))

    def wait(self):
        return self.running.popleft()


def rows_of(ids):
    return ERRORS.from_rows([{"path": i, "image_id": i, "stage": "toy", "reason": ""} for i in ids])


@pytest.fixture
def computed(tmp_path, monkeypatch):
    """Computes shards: what was asked, what was told, and by shard the images of rows and the errors."""
    monkeypatch.setattr(one_by_one, "ray", SimpleNamespace(remote=lambda **_: lambda f: SimpleNamespace(remote=f)))

    def compute(*shards):
        pool, store = Pool(), Store(str(tmp_path), {})
        alone = OneByOne(cast(Any, pool), [None], store, "shards", is_map_pass=False)
        told = list(alone.run(shards))
        found = {}
        for s in shards:
            rows = store.read_shard(s.name, "shards")["errors", ""].to_pylist()
            toys = [r["image_id"] for r in rows if r["stage"] == "toy"]
            found[s.name] = (toys, [r for r in rows if r["stage"] != "toy"])
        return pool.asked, told, found, alone.given_up

    return compute


def test_a_shard_that_lives_when_it_is_tried_again_stays_whole(computed):
    asked, told, found, given_up = computed(shard("a", "b"))
    assert asked == [(("a", "b"), 1)]
    assert [t.images for t in told] == [2]
    assert found == {"m.test.3.00000": (["a", "b"], [])}
    assert given_up == []


def test_guilty_images_become_errors_and_the_others_rows_of_one_file(computed):
    asked, told, found, given_up = computed(shard("a", "bad", "b"), shard("c", "d", name="m.test.3.00001"))
    assert asked[:2] == [(("a", "bad", "b"), 1), (("c", "d"), 1)]
    assert sorted(asked[2:]) == [((i,), deaths.ALONE) for i in ("a", "b", "bad")]
    rows, errors = found["m.test.3.00000"]
    assert sorted(rows) == ["a", "b"]
    assert errors == given_up
    assert errors == [
        {
            "path": "bad.png",
            "image_id": "bad",
            "stage": "worker:m:test",
            "reason": "The worker's process ended 2 times on this image alone: it crashed.",
        }
    ]
    assert found["m.test.3.00001"] == (["c", "d"], [])
    assert sum(t.images for t in told) == 4


def test_images_that_are_too_many_together_lose_nothing_alone(computed):
    _, _, found, given_up = computed(shard("a", "many", "b"))
    assert sorted(found["m.test.3.00000"][0]) == ["a", "b", "many"]
    assert given_up == []


def test_a_shard_of_guilty_images_alone_has_a_file(computed):
    _, told, found, _ = computed(shard("bad"))
    assert found["m.test.3.00000"][0] == []
    assert told[0][:2] == (0, "none")


def test_donor_images_stay_with_their_recipient():
    swaps = [None, {"draw": 0}, {"draw": 1}, None, {"draw": 0}]
    rows = tuple({"image_id": str(n), "path": "", "label": 0, "swap": swap} for n, swap in enumerate(swaps))
    plan = ShardPlan("m.donors.2.00000", "m", "donors", 32, "none", rows)
    assert [[r["image_id"] for r in piece.rows] for piece in one_by_one.pieces(plan)] == [["0", "1", "2"], ["3", "4"]]


def test_tables_of_pieces_are_those_of_the_shard():
    first, second = {("errors", ""): rows_of("a")}, {("errors", ""): rows_of("b")}
    joined = one_by_one.joined([first, second], [{"path": "c", "image_id": "c", "stage": "worker", "reason": "x"}])
    assert joined["errors", ""]["image_id"].to_pylist() == ["a", "b", "c"]


def test_a_block_of_verdicts_that_ends_its_workers_is_scored_image_by_image(tmp_path):
    """The guilty image has no win and a row of errors; the round goes on with the others."""
    store = Store(str(tmp_path), {})
    made: list[str] = []
    verdicts = SimpleNamespace(position=0, add=lambda tables: made.extend(str(t.num_rows) for t in tables))
    of_round = cast(Any, object.__new__(rounds._Rounds))
    block = shard("a", "bad", name="m.round.4.00000.000")
    other = "m.round.4.00000.001"
    model = rounds._Model(cast(Any, verdicts), names=[block.name, other], open={block.name})
    of_round.models, of_round.waiting, of_round.store, of_round.errors = {"m": model}, deque(), store, []
    of_round._advance = of_round._plan = lambda *_: None
    store.write_shard(other, one_by_one.pack({("wins", ""): steps.WINS.empty_table()}), rounds.ROUNDS)
    of_round._take_block(block, Died("it crashed"))
    names = [f"{block.name}.{n:02d}" for n in range(2)]
    assert [piece.name for piece in of_round.waiting] == names
    assert model.names == [*names, other]
    assert model.open == set(names)
    first, second = of_round.waiting
    store.write_shard(first.name, one_by_one.pack({("wins", ""): steps.WINS.empty_table()}), rounds.ROUNDS)
    of_round._take_block(first, None)
    assert made == [], "waits for the rest of the round"
    of_round._take_block(second, Died("it crashed"))
    assert made == ["0", "0", "0"]
    assert [(e["image_id"], e["stage"]) for e in of_round.errors] == [("bad", "worker:m:verdicts")]
