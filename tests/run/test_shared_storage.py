"""Local paths on a cluster; benchmarks.hosts asks machines with file systems of their own."""

import json

import pytest

from cxr_ray.errors import UserError
from cxr_ray.run import lock, shared_storage
from cxr_ray.storage import Store


def test_a_machine_sees_a_run_where_the_lock_in_it_is_the_sweeps(tmp_path):
    here, data = str(tmp_path / "run"), tmp_path / "data.csv"
    data.touch()
    paths = [str(data), str(tmp_path / "elsewhere")]
    with lock.held(here):
        owner = lock.owner(Store(here, {}))
        assert owner
        assert shared_storage.missing(here, owner, paths) == paths[1:]
        assert shared_storage.missing(here, "another sweep", []) == [here]
    assert shared_storage.missing(here, owner, []) == [here], "the lock was given back"
    assert shared_storage.missing(None, None, paths[:1]) == []


def test_a_folder_of_the_same_name_without_a_lock_is_not_the_run(tmp_path):
    (tmp_path / lock.NAME).write_text(json.dumps({"pid": 1}))
    assert shared_storage.missing(str(tmp_path), "owner", []) == [str(tmp_path)]


def test_the_message_names_the_path_and_the_machines_that_miss_it():
    shared_storage.refuse({"10.0.0.1": [], "10.0.0.2": []})
    with pytest.raises(UserError, match=r"got /data, which 1 of 2 machines .* \(10\.0\.0\.2\); expected storage"):
        shared_storage.refuse({"10.0.0.1": [], "10.0.0.2": ["/data", "/other"]})
    many = {f"10.0.0.{n}": ["/data"] for n in range(5)}
    with pytest.raises(UserError, match=r"5 of 5 machines .* \(10\.0\.0\.0, 10\.0\.0\.1, 10\.0\.0\.2 and 2 more\)"):
        shared_storage.refuse(many)
