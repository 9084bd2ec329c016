"""Donor swaps: which donor images a recipient gets, and what its scores become."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_ray.measure import regions
from cxr_ray.measure.cost import passes_of_donor_swaps
from cxr_ray.measure.donor_swaps import assign_donors, blocks, swapped_regions
from cxr_ray.measure.shards import Shard
from tests.builders.shards import SIZE, linear_model, sweep, worker


def images(split: str, labels, patients, contents=None) -> pd.DataFrame:
    ids = [f"{split}{i}" for i in range(len(labels))]
    contents = ids if contents is None else contents
    paths = [f"{i}.png" for i in ids]
    return pd.DataFrame(
        {"image_id": ids, "path": paths, "label": labels, "patient_id": patients, "content_hash": contents},
        dtype=object,
    )


@st.composite
def splits(draw):
    """Test and validation whose patients and contents may be shared."""
    made = []
    for split in ("test", "val"):
        n = draw(st.integers(0, 40))
        labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
        patients = draw(st.lists(st.integers(0, 30).map(lambda p: f"p{p}"), min_size=n, max_size=n))
        contents = draw(st.lists(st.integers(0, 60).map(lambda c: f"c{c}"), min_size=n, max_size=n))
        made.append(images(split, labels, patients, contents))
    return made


@settings(max_examples=40)
@given(both=splits(), most=st.integers(0, 12), seed=st.integers(0, 99))
def test_each_donor_is_used_once_and_is_another_patient(both, most, seed):
    test, val = both
    rows = assign_donors(test, val, most, seed)
    facts = pd.concat(both).set_index("image_id")
    recipients = facts.loc[rows["image_id"].unique()]
    assert rows["donor_id"].is_unique
    assert rows["donor_patient"].is_unique
    assert recipients["patient_id"].is_unique
    assert (recipients["label"] == 0).all()
    assert set(rows["donor_patient"]).isdisjoint(test["patient_id"])
    assert set(facts.loc[rows["donor_id"], "content_hash"]).isdisjoint(test["content_hash"])
    assert (facts.loc[rows["donor_id"], "label"].to_numpy() == rows["donor_label"].to_numpy()).all()
    counts = rows.groupby(["image_id", "donor_label"]).size()
    assert counts.nunique() <= 1, "as many donors of each class for every recipient"
    assert len(counts) == 2 * len(recipients)
    assert (rows["donor_label"] == 1).sum() <= most
    shuffled = assign_donors(test.sample(frac=1, random_state=1), val.sample(frac=1, random_state=2), most, seed)
    pd.testing.assert_frame_equal(rows, shuffled, check_dtype=False)


def test_another_seed_assigns_other_donors():
    n = [f"t{i}" for i in range(60)], [f"v{i}" for i in range(60)]
    test, val = images("test", [0] * 60, n[0]), images("val", [0, 1] * 30, n[1])
    one, other = (assign_donors(test, val, 120, seed)["donor_id"].tolist() for seed in (0, 1))
    assert one != other


@given(n_recipients=st.integers(0, 300), n_donors=st.integers(0, 200))
def test_blocks_are_balanced_and_waste_few_donors(n_recipients, n_donors):
    used, draws = blocks(n_recipients, n_donors)
    assert used <= n_recipients
    assert used * draws <= n_donors
    assert used >= min(40, n_recipients, n_donors)
    assert used * draws >= min(n_recipients, n_donors), "one donor each is never better"


def shard_of_donors(n_recipients: int, n_draws: int, **masks) -> Shard:
    """Recipients r0, r1, ..., each before its donors; random pixels."""
    ids: list[str] = []
    swaps: list[dict[str, Any] | None] = []
    for r in range(n_recipients):
        ids.append(f"r{r}")
        swaps.append(None)
        for draw in range(n_draws):
            for label in (0, 1):
                donor = f"d{r}.{draw}.{label}"
                ids.append(donor)
                swaps.append({"image_id": f"r{r}", "draw": draw, "donor_label": label, "donor_patient": f"p{donor}"})
    pixels = np.random.default_rng(0).integers(0, 256, (len(ids), 3, SIZE, SIZE), np.uint8)
    labels = [0 if s is None else s["donor_label"] for s in swaps]
    return Shard("m", "donors", ids, [f"{i}.png" for i in ids], labels, pixels, masks=masks, swaps=swaps)


def rows_of(shard: Shard, config=None) -> pd.DataFrame:
    return worker(config or sweep(), linear_model())(shard)["donor_swaps", ""].to_pandas()


def test_scores_are_those_of_recipients_with_the_donors_pixels():
    model, given_shard = linear_model(), shard_of_donors(3, 2)
    rows = rows_of(given_shard)
    assert len(rows) == 3 * 2 * 2 * 4
    assert set(rows["region"]) == {"border", "corners", "centre", "whole"}
    pixels = dict(zip(given_shard.image_ids, torch.from_numpy(given_shard.pixels).float() / 255, strict=True))
    masks = {**regions.masks(SIZE), "whole": torch.ones(SIZE, SIZE, dtype=torch.bool)}
    for r in rows.to_dict("records"):
        mask, recipient = masks[r["region"]], pixels[r["image_id"]]
        changed = torch.where(mask, pixels[r["donor_id"]], recipient)[None]
        assert r["logit_pneumonia"] == pytest.approx(float(model.log_odds(model.normalize(changed))), abs=1e-4)
        untouched = model.normalize(recipient[None])
        assert r["logit_full"] == pytest.approx(float(model.log_odds(untouched)), abs=1e-4)
        assert r["share_of_area"] == pytest.approx(float(mask.float().mean()))
        assert r["donor_id"] == f"d{r['image_id'][1:]}.{r['draw']}.{r['donor_label']}"
        assert r["outcome"] == ("FP" if r["logit_full"] >= 0 else "TN")


def test_batches_do_not_change_the_rows():
    one, other = (worker(sweep(), linear_model(), size)(shard_of_donors(4, 3)) for size in (1, 32))
    a, b = (tables["donor_swaps", ""].to_pandas() for tables in (one, other))
    pd.testing.assert_frame_equal(a, b, rtol=0, atol=1e-4)


def test_a_draw_without_one_of_its_donors_is_left_out_of_both_classes():
    whole = shard_of_donors(2, 2)
    kept = np.array([i != "d0.1.1" for i in whole.image_ids])
    rows = rows_of(whole.only(kept))
    assert set(zip(rows["image_id"], rows["draw"], strict=True)) == {("r0", 0), ("r1", 0), ("r1", 1)}
    assert (rows.groupby(["image_id", "region", "draw"])["donor_label"].nunique() == 2).all()


def test_a_shard_without_its_recipient_gives_no_rows():
    whole = shard_of_donors(1, 1)
    tables = worker(sweep(), linear_model())(whole.only(np.array([False, True, True])))
    assert ("donor_swaps", "") not in tables


def test_a_marker_is_swapped_where_recipient_or_donors_have_one_and_lungs_where_the_recipient_has_them():
    given_shard = shard_of_donors(2, 1)
    markers, lungs = (np.zeros((len(given_shard.image_ids), SIZE, SIZE), bool) for _ in range(2))
    for i, column in enumerate((2, 6, 10)):  # r0, its NORMAL and its PNEUMONIA donor; nobody of r1
        markers[i, 1:3, column : column + 2] = True
    lungs[0, 5:9, 5:9] = lungs[1:3, 12:20, 12:20] = True
    phantoms = sweep(data={"size": SIZE + 4, "source": "phantom"})
    rows = rows_of(dataclasses.replace(given_shard, masks={"marker": markers, "lungs": lungs}), phantoms)
    by_region = dict(iter(rows.groupby("region")))
    assert set(by_region["marker"]["image_id"]) == {"r0"}
    assert by_region["marker"]["share_of_area"].tolist() == pytest.approx([12 / SIZE**2] * 2)
    assert by_region["lungs"]["share_of_area"].tolist() == pytest.approx([16 / SIZE**2] * 2)


def test_the_number_of_passes_is_what_the_dry_run_says():
    config, model, passes = sweep(), linear_model(), []
    model.network.register_forward_pre_hook(lambda m, a: passes.append(len(a[0])))
    worker(config, model)(shard_of_donors(3, 2))
    assert sum(passes) == 3 * passes_of_donor_swaps(config, 2)


def test_regions_are_swapped_where_the_data_can_have_them():
    same = ["border", "corners", "centre"]
    assert swapped_regions(sweep()) == same
    assert swapped_regions(sweep(regions={"lungs": "masks"})) == [*same, "lungs"]
    assert swapped_regions(sweep(regions={"marker": "masks"})) == [*same, "marker"]
    assert swapped_regions(sweep(data={"size": 64, "source": "phantom"})) == [*same, "lungs", "marker"]
    assert swapped_regions(sweep(regions={"donors": None})) == []
    assert swapped_regions(sweep(regions=None)) == []
