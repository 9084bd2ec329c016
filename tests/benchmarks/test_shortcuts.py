"""The benchmark of planted shortcuts: its markers, its studies of known matrices, and one network."""

import numpy as np
import pytest

from benchmarks import shortcuts


def test_a_marker_is_planted_in_exactly_its_share_and_place():
    pixels = np.zeros((40, 3, 64, 64), np.uint8)
    made = shortcuts.planted(pixels, shortcuts.share(40, 0.75, np.random.default_rng(0)))
    marked = made.any((1, 2, 3))
    assert marked.sum() == 30
    assert (made[marked].sum((1, 2, 3)) == 3 * 5 * 6 * shortcuts.INK).all()
    assert not shortcuts.share(40, None, np.random.default_rng(0)).any()


def test_studies_of_known_matrices_keep_their_error_rates_and_find_a_shortcut():
    rng = np.random.default_rng(0)
    donors = rng.normal(0, 0.3, (2, 1, 80))
    donors -= donors.mean(2, keepdims=True)
    own = rng.normal(0, 0.1, (24, 1))
    shift = np.array([0.0, 1.0])[:, None, None]
    found = {"corners": own + donors + shift, "marker": own + donors}
    rows = [r for r in shortcuts.studies(found, 300, 0) if r["design"] == shortcuts.LIKE_A_RUN]
    corners, marker = (next(r for r in rows if r["region"] == region) for region in ("corners", "marker"))
    assert corners["above"] > 0.99
    assert marker["above"] == 0
    for row in (corners, marker):
        assert 0.91 < row["coverage"] < 0.98
        assert row["at_margin"] < 0.06
        assert row["null"] < 0.09


@pytest.mark.slow
def test_a_small_network_reads_a_planted_marker_of_phantoms(monkeypatch):
    monkeypatch.setattr(shortcuts, "TRAIN", 200)
    monkeypatch.setattr(shortcuts, "DONORS", 40)
    data = shortcuts.images(None, 64)
    found = shortcuts.network_of(data, "small", 0.9, 0)
    assert found["effect"] > 1
    assert shortcuts.contrast(found["marker"]) > 0.5
    assert shortcuts.contrast(found["corners"]) > 0.5
