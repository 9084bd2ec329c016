"""Training on images of 32 pixels that a glance tells apart."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cxr_ray.config import Train
from cxr_ray.errors import TrainingError
from cxr_ray.models import networks, training
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.models.training import Epoch, Split, augment, evaluate, fit, freeze_backbone
from tests.builders.networks import Small

SIZE = 32
SPEC = ModelSpec("resnet18", SIZE)


def split(n: int, seed: int, share: float = 0.5) -> Split:
    """Dark (0) and bright (1) noise, in a random order; the first is always of class 1."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) < n * share).astype(np.int64)
    labels[1:] = rng.permutation(labels[1:])
    pixels = rng.integers(0, 100, (n, 1, SIZE, SIZE)) + 130 * labels[:, None, None, None]
    return Split(np.repeat(pixels, 3, 1).astype(np.uint8), labels)


def classifier(seed: int = 0, arch: str | None = None) -> networks.Classifier:
    """Of random weights; without a name a small network."""
    torch.manual_seed(seed)
    return networks.build(arch, ModelSpec(arch, SIZE)) if arch else Classifier(Small(2), SPEC).eval()


def trained(config: Train, *, train: Split | None = None, model=None, resume=None):
    """The model and its epochs, each with a copy of its state."""
    model, epochs = model or classifier(), []

    def keep(epoch: Epoch) -> None:
        epochs.append((epoch, copy.deepcopy(epoch.state())))

    fit(model, train or split(16, 1), split(8, 2), config, keep, resume=resume)
    return model, epochs


def same(a: networks.Classifier, b: networks.Classifier) -> bool:
    ours, theirs = a.network.state_dict(), b.network.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("loss", ["ce", "weighted", "focal"])
def test_a_separable_problem_is_solved(loss):
    _, epochs = trained(Train(epochs=3, batch_size=8, lr=1e-2, loss=loss, augment="none"))
    last = epochs[-1][0]
    assert [e.epoch for e, _ in epochs] == [1, 2, 3]
    assert last.val_auroc == 1.0
    assert last.best_auroc == 1.0
    assert last.train_loss < epochs[0][0].train_loss


@pytest.mark.parametrize(("loss", "sampler"), [("ce", "shuffle"), ("weighted", "balanced"), ("focal", "shuffle")])
def test_a_network_of_three_classes_learns_them_all_and_is_validated_on_one_against_the_rest(loss, sampler):
    rng = np.random.default_rng(0)
    labels = np.array([1, 0, 2] * 8, np.int64)
    pixels = rng.integers(0, 40, (24, 3, SIZE, SIZE)) + 100 * labels[:, None, None, None]
    images = Split(pixels.astype(np.uint8), labels)
    torch.manual_seed(0)
    model = Classifier(Small(3), SPEC.against_the_rest(("a", "b", "c"), "b")).eval()  # between: no threshold finds it
    val = Split(images.pixels, (labels == 1).astype(np.int64))
    epochs: list[Epoch] = []
    config = Train(epochs=20, batch_size=8, lr=1e-2, loss=loss, sampler=sampler, augment="none")
    fit(model, images, val, config, epochs.append)
    with torch.no_grad():
        z = model.network(model.normalize(torch.from_numpy(images.pixels) / 255))
    assert (z.argmax(1).numpy() == labels).mean() == 1
    assert epochs[-1].val_auroc == 1
    assert epochs[-1].train_loss < epochs[0].train_loss


def test_weights_of_classes_are_their_inverse_frequencies_whatever_their_number():
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0], [1.0, 1.0, 1.0], [0.2, 0.1, 0.0]])
    labels = torch.tensor([0, 2, 1, 0])
    each = F.cross_entropy(logits, labels, reduction="none")
    expected = torch.stack([each[labels == c].mean() for c in range(3)]).mean()  # each class weighs the same
    torch.testing.assert_close(training.weighted_cross_entropy(labels)(logits, labels), expected)


@pytest.mark.parametrize(("sampler", "augmentation"), [("shuffle", "none"), ("balanced", "light")])
def test_training_twice_and_going_on_give_the_same_weights(sampler, augmentation):
    config = Train(epochs=3, batch_size=8, lr=1e-3, sampler=sampler, augment=augmentation)
    once, epochs = trained(config)
    torch.rand(7)  # the global generator must not matter
    again, _ = trained(config)
    assert same(once, again)
    for epoch, state in epochs[:-1]:
        resumed, later = trained(config, model=classifier(seed=9), resume=state)
        assert same(once, resumed), f"resumed after epoch {epoch.epoch}"
        assert [e.epoch for e, _ in later] == list(range(epoch.epoch + 1, 4))
        assert later[-1][0].best_epoch == epochs[-1][0].best_epoch
        assert later[-1][0].val_loss == epochs[-1][0].val_loss


@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
def test_images_that_do_not_fit_on_the_device_train_the_same_network(sampler, monkeypatch, tmp_path):
    config = Train(epochs=2, batch_size=8, lr=1e-3, sampler=sampler, loss="weighted", labels="shuffled")
    images = split(44, 1)
    expected, losses = trained(config, train=images)
    file = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=images.pixels.shape)
    file[:] = images.pixels
    file.flush()
    stored = Split(np.memmap(tmp_path / "pixels", np.uint8, "r", shape=file.shape), images.labels)
    monkeypatch.setattr(training, "room", lambda device: 0)
    monkeypatch.setattr(training, "STAGED", 20 * images.pixels[0].nbytes)  # two batches at a time
    got, same_losses = trained(config, train=stored)
    assert same(got, expected)
    assert [e.train_loss for e, _ in same_losses] == [e.train_loss for e, _ in losses]


def test_another_seed_gives_other_weights():
    first, _ = trained(Train(epochs=1, batch_size=8, augment="none"))
    second, _ = trained(Train(epochs=1, batch_size=8, augment="none", seed=1))
    assert not same(first, second)


def test_the_best_epoch_is_the_first_of_the_highest(monkeypatch):
    aurocs = iter([0.5, 0.75, 0.75, 0.25])
    monkeypatch.setattr(training, "evaluate", lambda *_: (1.0, next(aurocs)))
    _, epochs = trained(Train(epochs=4, batch_size=16, augment="none"))
    assert [(e.best_epoch, e.best_auroc) for e, _ in epochs] == [(1, 0.5), (2, 0.75), (2, 0.75), (2, 0.75)]
    assert [e.improved for e, _ in epochs] == [True, True, False, False]


def test_a_state_goes_through_a_file_without_code(tmp_path):
    config = Train(epochs=2, batch_size=8, augment="none")
    whole, epochs = trained(config)
    torch.save(epochs[0][1], tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert same(whole, trained(config, model=classifier(seed=3), resume=state)[0])


@pytest.mark.parametrize("arch", networks.NETWORKS)
def test_a_frozen_backbone_does_not_move(arch):
    before, model = classifier(arch=arch), classifier(arch=arch)
    freeze_backbone(model)
    trained(Train(epochs=2, batch_size=16, augment="none"), model=model)
    moved = {
        name
        for name, value in model.network.state_dict().items()
        if not torch.equal(value, before.network.state_dict()[name])
    }
    last = {n for n in before.network.state_dict() if n.startswith(("layer4.", "fc."))}
    assert moved == last


def test_shuffled_labels_are_a_permutation_drawn_from_the_seed_and_validation_keeps_its_own(monkeypatch):
    data, validated = split(16, 1), []

    def evaluated(model: networks.Classifier, val: Split, device: str) -> tuple[float, float]:
        validated.append(val.labels)
        return 1.0, 0.5

    monkeypatch.setattr(training, "evaluate", evaluated)
    config = Train(epochs=1, batch_size=8, labels="shuffled", loss="weighted", sampler="balanced")
    shuffled, epochs = trained(config, train=data)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).numpy()
    by_hand = Split(data.pixels, data.labels[order])
    assert 0.2 < (by_hand.labels == data.labels).mean() < 0.8, "about half of them stay right"
    given = config.model_copy(update={"labels": "given"})
    assert same(shuffled, trained(given, train=by_hand)[0])
    assert not same(shuffled, trained(given, train=data)[0])
    assert all(np.array_equal(labels, split(8, 2).labels) for labels in validated)
    assert epochs[0][0].best_epoch == 1
    other = config.model_copy(update={"seed": 1})
    assert not same(
        trained(other, train=data)[0], trained(other.model_copy(update={"labels": "given"}), train=by_hand)[0]
    )


def test_going_on_with_shuffled_labels_shuffles_them_alike():
    config = Train(epochs=2, batch_size=8, labels="shuffled")
    whole, epochs = trained(config)
    assert same(whole, trained(config, model=classifier(seed=3), resume=epochs[0][1])[0])


def test_without_freezing_everything_moves():
    before, model = classifier(), classifier()
    trained(Train(epochs=1, batch_size=16, augment="none"), model=model)
    moved = [n for n, v in model.network.state_dict().items() if not torch.equal(v, before.network.state_dict()[n])]
    assert len(moved) == len(before.network.state_dict())


def test_a_loss_that_is_not_finite_ends_training():
    broken = classifier()
    with torch.no_grad():
        broken.network.fc.weight[0, 0] = math.nan
    with pytest.raises(
        TrainingError, match=r"^got a training loss of nan in epoch 1; expected a finite one; lower train\.lr \(0"
    ):
        trained(Train(epochs=1, batch_size=16), model=broken)


def test_weights_that_break_in_the_last_step_are_not_reported(monkeypatch):
    reported: list[Epoch] = []
    monkeypatch.setattr(training, "evaluate", lambda *_: (math.nan, math.nan))
    with pytest.raises(TrainingError, match="got a validation loss of nan in epoch 1; expected a finite one"):
        fit(classifier(), split(8, 1), split(8, 2), Train(epochs=1, batch_size=8), reported.append)
    assert reported == []


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_any_number_of_steps_trains(steps):
    _, epochs = trained(Train(epochs=1, batch_size=4, augment="none"), train=split(4 * steps, 1))
    assert math.isfinite(epochs[0][0].train_loss)


def test_memory_on_the_device_grows_with_images_and_batch_and_size():
    base = training.device_memory(1000, 224, 32)
    assert training.device_memory(2000, 224, 32) - base == 1000 * 3 * 224**2
    assert training.device_memory(1000, 224, 64) - base == pytest.approx(32 * 40 * 2**20)
    assert training.device_memory(0, 448, 32) - training.device_memory(0, 224, 32) == pytest.approx(96 * 40 * 2**20)


def test_fewer_images_than_a_batch_train():
    _, epochs = trained(Train(epochs=1, batch_size=32, augment="none"), train=split(6, 1))
    assert math.isfinite(epochs[0][0].train_loss)


# Losses, against torch and against numbers worked out by hand

LOGITS = torch.tensor([[2.0, -1.0], [0.5, 0.25], [-3.0, 1.0], [0.0, 4.0]])


def test_weighted_is_cross_entropy_with_inverse_frequencies():
    train_labels = torch.tensor([0, 1, 1, 1, 1, 1, 1, 1])
    chosen = torch.tensor([0, 1, 1, 0])
    expected = F.cross_entropy(LOGITS, chosen, weight=torch.tensor([8.0, 8 / 7]))
    torch.testing.assert_close(training.LOSSES["weighted"](train_labels)(LOGITS, chosen), expected)
    assert not torch.isclose(expected, F.cross_entropy(LOGITS, chosen))


def test_weighted_is_cross_entropy_where_classes_are_equal():
    y = torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(training.LOSSES["weighted"](y)(LOGITS, y), F.cross_entropy(LOGITS, y))
    torch.testing.assert_close(training.LOSSES["ce"](y)(LOGITS, y), F.cross_entropy(LOGITS, y))


def test_focal_loss_with_gamma_two_is_that_worked_out_by_hand():
    # p = 0.9 and 0.2 for the true class: mean of 0.1^2 (-ln 0.9) and 0.8^2 (-ln 0.2)
    logits = torch.log(torch.tensor([[0.9, 0.1], [0.8, 0.2]]))
    expected = (0.01 * 0.10536052 + 0.64 * 1.60943791) / 2
    loss = training.LOSSES["focal"](torch.tensor([0, 1]))(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_evaluation_equals_closed_forms(monkeypatch):
    model, val = classifier(), split(70, 5)
    z = torch.linspace(-40, 40, 70)[torch.randperm(70, generator=torch.Generator().manual_seed(1))]
    answers = list(z.split(training.EVAL_BATCH))
    monkeypatch.setattr(type(model), "log_odds", lambda self, images: answers.pop(0))
    loss, auroc = evaluate(model, val, "cpu")
    y = torch.from_numpy(val.labels)
    expected = F.binary_cross_entropy_with_logits(z.double(), y.double())
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    pairs = (z[y == 1][:, None] > z[y == 0]).double().mean()
    assert auroc == pytest.approx(pairs.item(), abs=1e-12)


# Sampling


def test_shuffling_visits_each_image_once():
    order = training.SAMPLERS["shuffle"](torch.zeros(50, dtype=torch.int64), torch.Generator().manual_seed(1))
    assert sorted(order.tolist()) == list(range(50))
    assert order.tolist() != list(range(50))


def test_balanced_sampling_draws_classes_equally_and_images_of_a_class_equally():
    labels = torch.tensor([0] * 40 + [1] * 360)
    orders = [training.SAMPLERS["balanced"](labels, torch.Generator().manual_seed(s)) for s in range(25)]
    drawn = torch.cat(orders)
    assert len(drawn) == 10_000
    # 5 standard deviations of a binomial with p = 1/2: 250; the share by chance alone would be 1,000 of 10,000
    assert abs((labels[drawn] == 0).sum().item() - 5_000) < 250
    of_rare = torch.bincount(drawn, minlength=400)[:40]
    assert (of_rare - 125).abs().max() < 5 * math.sqrt(125)


# Augmentation


def batch(n: int = 64, size: int = 24) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def drawn(*values: float) -> torch.Tensor:
    """Numbers of one image or of every one: angle, scale, x, y, contrast, brightness; 0.5 is none."""
    return torch.tensor(values)[:, None]


def some(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(training.NUMBERS_AN_IMAGE, n, generator=torch.Generator().manual_seed(seed))


def test_augmentation_keeps_shape_and_range_and_is_a_function_of_its_numbers():
    images = batch()
    kept = images.clone()
    first = augment(images, some(64, 3))
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(images, kept), "the images themselves are left alone"
    assert torch.equal(first, augment(images, some(64, 3)))
    assert not torch.equal(first, augment(images, some(64, 4)))


def test_augmentation_with_every_draw_at_its_middle_is_the_identity():
    images = batch(2)
    torch.testing.assert_close(augment(images, drawn(*[0.5] * 6).expand(-1, 2)), images, rtol=0, atol=1e-5)


def test_each_draw_does_what_it_says_and_no_more():
    images = torch.zeros(1, 3, 40, 40)
    images[:, :, 20:22, 20:22] = 1
    # x: 5% of 40 pixels are 2 pixels, and the whole image moves
    moved = augment(images, drawn(0.5, 0.5, 1.0, 0.5, 0.5, 0.5))
    torch.testing.assert_close(moved[..., :-2], images[..., 2:], rtol=0, atol=1e-4)
    moved = augment(images, drawn(0.5, 0.5, 0.5, 1.0, 0.5, 0.5))
    torch.testing.assert_close(moved[..., :-2, :], images[..., 2:, :], rtol=0, atol=1e-4)
    grey = torch.full((1, 3, 8, 8), 0.7)
    inner = (..., slice(2, 6), slice(2, 6))
    contrast = augment(grey, drawn(0.5, 0.5, 0.5, 0.5, 1.0, 0.5))
    torch.testing.assert_close(contrast[inner], torch.full((1, 3, 4, 4), 0.5 + 0.2 * 1.2))
    brightness = augment(grey, drawn(0.5, 0.5, 0.5, 0.5, 0.5, 0.0))
    torch.testing.assert_close(brightness[inner], torch.full((1, 3, 4, 4), 0.6))


def test_a_rotation_is_ten_degrees_and_scale_a_tenth():
    y, x = torch.meshgrid(torch.arange(81.0) - 40, torch.arange(81.0) - 40, indexing="ij")
    dot = torch.exp(-((x - 20) ** 2 + y**2) / 8)[None, None].expand(1, 3, -1, -1)  # 20 pixels to the right

    def place(image: torch.Tensor) -> complex:
        mass = image[0, 0] / image[0, 0].sum()
        return complex((mass * x).sum(), (mass * y).sum())

    turned = place(augment(dot, drawn(1.0, 0.5, 0.5, 0.5, 0.5, 0.5)))
    assert abs(turned) == pytest.approx(20, abs=0.1)
    assert abs(math.degrees(math.atan2(turned.imag, turned.real))) == pytest.approx(10, abs=0.3)
    larger = place(augment(dot, drawn(0.5, 1.0, 0.5, 0.5, 0.5, 0.5)))
    assert larger.real == pytest.approx(22, abs=0.1)
    assert larger.imag == pytest.approx(0, abs=0.1)


def test_no_draw_mirrors_a_chest():
    images = torch.zeros(200, 3, 32, 32)
    images[..., 4:12] = 1
    out = augment(images, some(200)).mean((1, 2))
    assert (out[:, :16].mean(1) > out[:, 16:].mean(1) + 0.3).all()


def test_every_image_of_a_batch_gets_its_own_draw():
    out = augment(batch(1).expand(8, -1, -1, -1), some(8))
    assert len({tuple(image.flatten().tolist()) for image in out}) == 8


def test_an_optimizer_of_one_kernel_goes_on_from_the_state_of_the_other(monkeypatch):
    config = Train(epochs=3, batch_size=8, lr=1e-3, augment="none")
    once, epochs = trained(config)
    plain, made = training.optimizer, []

    def as_on_a_gpu(parameters, config, on_gpu):
        assert not on_gpu
        assert plain(parameters, config, on_gpu).param_groups[0]["fused"] is None
        made.append(plain(parameters, config, True))
        return made[-1]

    monkeypatch.setattr(training, "optimizer", as_on_a_gpu)
    resumed, later = trained(config, model=classifier(seed=9), resume=epochs[0][1])
    assert made[0].param_groups[0]["fused"] is True
    for name, value in once.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    monkeypatch.undo()
    back, _ = trained(config, model=classifier(seed=9), resume=later[0][1])
    for name, value in once.network.state_dict().items():
        torch.testing.assert_close(back.network.state_dict()[name], value, atol=1e-3, rtol=1e-3)
