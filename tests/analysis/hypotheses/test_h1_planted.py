"""H1 on networks whose use of a corner marker is known by construction."""

import numpy as np
import pytest
from torch import Tensor, nn

from cxr_ray.measure.regions import masks
from cxr_ray.measure.shards import Shard
from cxr_ray.measure.worker import ModelRef, Worker
from cxr_ray.models.networks import Classifier, ModelSpec
from tests.builders.hypotheses import inputs, judged, predictions
from tests.builders.shards import sweep

SIZE, RECIPIENTS = 28, 60
MARKER = (slice(1, 4), slice(1, 4))


class ReadsLungsAndMarker(nn.Module):
    """One log-odds: how bright the middle is, and ``effect`` where the marker lies."""

    def __init__(self, effect: float):
        super().__init__()
        self.effect, self.middle = effect, masks(SIZE)["centre"]

    def forward(self, images: Tensor) -> Tensor:
        lungs = 40 * (images[:, 0, self.middle].mean(1) - 0.5)
        marked = (images[(slice(None), 0, *MARKER)].mean((1, 2)) > 0.9).float()
        return (lungs + self.effect * marked)[:, None]


def shard(rate: float) -> Shard:
    """NORMAL recipients, each with a donor of either class; P(marker | PNEUMONIA) = 1 - P(marker | NORMAL) = rate."""
    rng = np.random.default_rng(0)
    ids, swaps, labels, pixels = [], [], [], []
    marked = {
        label: rng.permutation(np.arange(RECIPIENTS) < round(RECIPIENTS * r)) for label, r in ((0, 1 - rate), (1, rate))
    }
    for r in range(RECIPIENTS):
        for label in (None, 0, 1):
            image = rng.normal(115 if label != 1 else 150, 20, (SIZE, SIZE)).clip(0, 220).astype(np.uint8)
            if marked[label or 0][r]:
                image[MARKER] = 250
            ids.append(f"test{r}" if label is None else f"donor{r}.{label}")
            fact = {"image_id": f"test{r}", "draw": 0, "donor_label": label, "donor_patient": ids[-1]}
            swaps.append(None if label is None else fact)
            labels.append(label or 0)
            pixels.append(np.broadcast_to(image, (3, SIZE, SIZE)))
    return Shard("m", "donors", ids, ids, labels, np.stack(pixels), swaps=swaps)


@pytest.mark.parametrize(
    ("effect", "rate", "verdict"),
    [(2.0, 0.9, "above margin"), (0.0, 0.9, "within margin"), (2.0, 0.5, "within margin")],
    ids=["used and tied to the class", "never used", "used, but not tied to the class"],
)
def test_a_marker_that_speaks_for_the_class_is_found_and_one_that_does_not_is_not(effect, rate, verdict):
    """The lungs outweigh the marker by far, so that a comparison of edges with the middle would miss it."""
    spec = ModelSpec("resnet18", SIZE, outputs=1, mean=(0.0,) * 3, std=(1.0,) * 3)
    model = Classifier(ReadsLungsAndMarker(effect), spec).eval()
    config = sweep(data={"size": SIZE + 4})
    worker = Worker(config, {"m": ModelRef("m", "none", None, SIZE)})
    worker.model = lambda trial_id: model
    rows = worker(shard(rate))["donor_swaps", ""].to_pandas().assign(trial_id="m")
    logit = rows.drop_duplicates("image_id").set_index("image_id")["logit_full"]
    test = predictions("m", logit.to_numpy(), np.zeros(len(logit), int))
    test["image_id"] = logit.index
    found, secondary = judged(inputs(config, predicted=[test], swaps=[rows]))
    contrast = {r["quantity"].split(":")[0]: r["effect"] for r in secondary if r["unit"] == "log-odds"}
    assert found["H1"]["verdict"] == verdict, found["H1"]["reason"]
    assert found["H1"]["effect"] == pytest.approx((2 * rate - 1) * effect, abs=1e-5)
    assert contrast["donor swap of the centre"] > 2 * abs(found["H1"]["effect"])
