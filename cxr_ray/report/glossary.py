"""The page's glossary: each term in a sentence or two, linked where a section first uses it, and listed at the end."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from markupsafe import Markup, escape


class Term(NamedTuple):
    """A term, its explanation, and the words of the page that stand for it (without any: it is only listed)."""

    name: str
    text: str
    forms: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Its id on the page."""
        return "term-" + re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


GLOSSARY = (
    Term(
        "saliency map",
        "A value for each place of an image: how much the method says that the place speaks for the model's answer.",
        ("saliency map", "saliency maps", "Saliency map"),
    ),
    Term(
        "faithful",
        "A map is faithful where the places that it marks are those that the model used: to cover them changes the "
        "model's answer. It may be faithful and still mark no disease.",
        ("faithful", "faithfulness", "Faithfulness"),
    ),
    Term(
        "control",
        "A map that knows less than the one that is tested, covered in the same way. strong: made from other patients' "
        "maps of the same model, so that to beat it says something of this very image.",
        ("control", "controls", "strong control", "strong controls"),
    ),
    Term(
        "advantage over the control",
        "How much more the model's answer changes for the map than for the control: an image's metric minus the mean "
        "of the control's draws, with the sign that makes values above 0 more faithful. The column is called gap.",
        ("advantage", "Advantage", "mean advantage"),
    ),
    Term(
        "win rate",
        "Share of control draws that the map beats, ties half; 0.5 is chance.",
        ("win rate", "win rates", "Win rate"),
    ),
    Term(
        "95% interval",
        "The values that the data allow for patients like these: a range made in this way holds the true value in 95 "
        "of 100 studies. Patients are drawn, since images of one patient are alike.",
        ("95% interval", "95% intervals"),
    ),
    Term(
        "p, p_holm",
        "p: how often chance alone gives a result at least as far above chance as this one. p_holm: the same after "
        "Holm's correction, which makes up for the number of comparisons.",
        ("p_holm",),
    ),
    Term(
        "hardest strong control",
        "The strong control with the smallest mean advantage of an explainer, bucket and setting.",
        ("hardest strong control", "hardest control", "hardest"),
    ),
    Term(
        "beaten",
        "Mean advantage and win rate are both above chance, each by its p after Holm's correction and by its 95% "
        "interval. Not beaten: it is not shown. differs: one of the two is above chance.",
        ("beaten",),
    ),
    Term(
        "log-odds",
        "The logarithm of the odds that the model gives to a class, z_target − z_other: 0 is even, and each step of 1 "
        "multiplies the odds by 2.7. A probability near 0 or 1 hides changes that log-odds show.",
        ("log-odds",),
    ),
    Term(
        "deletion, insertion (direction)",
        "Deletion (MoRF, most relevant first) fills the most salient cells first; insertion restores them first: it is "
        "LeRF (least relevant first) reversed. Sources: Samek et al., IEEE TNNLS 2017; Petsiuk et al., BMVC 2018.",
        ("deletion", "Deletion", "insertion", "Insertion"),
    ),
    Term(
        "drop",
        "How far the model's answer falls when a share of the image is filled: the score of the untouched image minus "
        "that of the filled one.",
        ("drop", "drops"),
    ),
    Term(
        "target rule",
        "The class whose score is explained and measured. pneumonia: PNEUMONIA for every image; predicted: the class "
        "that the model predicts.",
        ("target rule", "target rules"),
    ),
    Term(
        "cell, grid",
        "What is ranked and filled: single pixels (grid pixel) or cells of a g x g grid, by mean saliency.",
        ("grid",),
    ),
    Term("TP, FP, TN, FN", "PNEUMONIA is positive, threshold 0.5. all: every test image.", ("TP", "FP", "TN", "FN")),
    Term("bucket", "A group of test images: those of one outcome (TP, FP, TN, FN), or all.", ("bucket", "buckets")),
    Term("accuracy", "Share of test images that the model calls right.", ("accuracy", "Accuracy")),
    Term(
        "AUROC",
        "The chance that a PNEUMONIA image scores higher than a NORMAL one: 0.5 is chance, 1 perfect. val_auroc: on "
        "the validation split.",
        ("AUROC", "val_auroc"),
    ),
    Term("AUPRC", "Mean precision over all thresholds; chance is the share of PNEUMONIA.", ("AUPRC",)),
    Term("sensitivity", "Share of the PNEUMONIA images that are called PNEUMONIA.", ("sensitivity",)),
    Term("specificity", "Share of the NORMAL images that are called NORMAL.", ("specificity",)),
    Term("Brier", "Mean squared difference of probability and truth: 0 is perfect.", ("Brier",)),
    Term(
        "ECE",
        "Expected calibration error: how far stated probabilities lie from the shares that come true, on average.",
        ("ECE",),
    ),
    Term("Spearman", "Rank correlation: 1: the same order, 0: unrelated, −1: reversed.", ("Spearman",)),
    Term("SSIM", "Structural similarity of two pictures: 1 is the same picture.", ("SSIM",)),
    Term(
        "rank set",
        "The ranks of an explainer that paired comparisons over the same images allow; with 95% confidence the sets of "
        "all explainers hold at once (Mogstad et al., Review of Economic Studies 2024).",
        ("rank set", "rank sets", "Rank sets"),
    ),
    Term(
        "patch swap",
        "A region is replaced by the same pixels of a NORMAL validation image of another patient (the donor image).",
        ("patch swap", "patch swaps", "patch_swap"),
    ),
    Term(
        "counterfactual rendering",
        "A phantom drawn again without one thing: the ground truth of that thing's effect.",
        ("counterfactual rendering", "counterfactual renderings"),
    ),
    Term(
        "Grad-CAM findings study",
        "Grad-CAM Findings (Chest X-ray Pneumonia Classifier): 12 images a bucket, one deletion level, no control. Its "
        "three hypotheses are H1 to H3.",
        ("Grad-CAM findings study",),
    ),
    Term(
        "RAD-XAI",
        "A study of the same test images: fill grey, level 0.5, predicted class, no control "
        "(github.com/Ravevx/RAD-XAI-Radiographic-Deep-Explainable-AI-Framework).",
        ("RAD-XAI",),
    ),
)


class Links:
    """Links each term where it first stands in a section; one for a page."""

    def __init__(self, terms: Iterable[Term] = GLOSSARY):
        self.of_form = {str(escape(form)): term for term in terms for form in term.forms}
        forms = sorted(map(re.escape, self.of_form), key=len, reverse=True)
        self.pattern = re.compile(rf"(?<![\w-])({'|'.join(forms)})(?![\w-])")
        self.linked: set[str] = set()

    def begin(self) -> str:
        """A new section: every term is linked once more. An empty text, for the template."""
        self.linked.clear()
        return ""

    def mark(self, text: str) -> Markup:
        """The text as HTML, with links on terms that the section has not linked yet."""
        return Markup(self.pattern.sub(self._link, str(escape(text))))

    def _link(self, found: re.Match[str]) -> str:
        term = self.of_form[found.group()]
        if term.name in self.linked:
            return found.group()
        self.linked.add(term.name)
        tip = escape(f"{term.name}: {term.text}")
        return f'<a class="term" href="#{term.anchor}" data-tip="{tip}">{found.group()}</a>'
