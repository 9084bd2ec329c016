"""Statistics of means over images that are clustered in patients: bootstrap intervals, sign-flip tests, Holm, matching.

A test split holds up to nine images of one patient, so patients, not images, are resampled and flipped. Every
function works on many columns at once, and all columns share their random numbers: a result depends on the data, the
patients and the seed alone.

Shapes: N, M images; K columns; P patients; B bootstrap samples or permutations. NaN marks an image without a value.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.stats import t as student

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Sums = tuple[Floats, Floats]  # sums_PK and counts_PK of a group of images

MIN_PATIENTS = 20  # an interval over fewer clusters is not to be trusted
CI_METHOD = "symmetric bootstrap-t over patients"
_BLOCK = 2**22  # elements of the largest temporary array: 32 MiB
_PAIRS = 2**24  # distances that one matching looks at: 128 MiB
_KEPT = 32  # sets of random numbers that stay in memory, each of up to 8 MiB

_ROUNDING = 1e-12  # of the largest sum: what equal sums may differ by in float64

# Tables hold win rates, in [0, 1], in float32: each is off by up to 3e-8, and two sums that are equal in exact
# arithmetic differ by up to twice that for each image. Sums that truly differ are 1 / draws apart, far more than this
# unless draws x images nears ten million.
_TIE = 2**-24  # for each image


def patient_codes(patients_N: ArrayLike) -> tuple[Ints, int]:
    """Patient identifiers to (codes_N from 0 in sorted order, number of patients)."""
    names, codes_N = np.unique(np.asarray(patients_N), return_inverse=True)
    return codes_N.astype(np.int64), len(names)


def patient_sums(values_NK: ArrayLike, codes_N: Ints, n_patients: int) -> tuple[Floats, Floats]:
    """Sum and count of the values of each patient, NaN left out: sums_PK, counts_PK."""
    values_NK = np.asarray(values_NK, dtype=np.float64)
    known_NK = ~np.isnan(values_NK)
    members_PN = csr_array((np.ones(len(codes_N)), (codes_N, np.arange(len(codes_N)))), (n_patients, len(codes_N)))
    return members_PN @ np.where(known_NK, values_NK, 0.0), members_PN @ known_NK.astype(np.float64)


def bootstrap_weights(n_patients: int, n_boot: int, seed: int) -> Floats:
    """weights_BP: how often each patient is drawn when n_patients are drawn with replacement, n_boot times."""
    return np.concatenate(list(weight_blocks(n_patients, n_boot, seed)))


def weight_blocks(n_patients: int, n_boot: int, seed: int) -> Iterator[Floats]:
    """``bootstrap_weights`` in consecutive pieces [b, P], each of at most 32 MiB where it has more than one row."""
    if n_patients * n_boot <= _BLOCK:
        yield _kept_counts(n_patients, n_boot, seed).astype(np.float64)
        return
    rng = np.random.default_rng(seed)
    for rows in _chunks(np.arange(n_boot), _BLOCK // n_patients):
        yield _counts(n_patients, len(rows), rng).astype(np.float64)


def resampled(statistic: Callable[[Floats], Floats], n_patients: int, n_boot: int, seed: int) -> Floats:
    """A statistic of all bootstrap samples [B, ...]; it is given some of them at a time, as weights_BP."""
    return np.concatenate([statistic(weights_BP) for weights_BP in weight_blocks(n_patients, n_boot, seed)])


def resampled_sums(sums_PK: Floats, n_boot: int, seed: int) -> Floats:
    """Sums over the patients of each bootstrap sample: sums_BK."""
    return resampled(lambda weights_BP: weights_BP @ sums_PK, len(sums_PK), n_boot, seed)


def _counts(n_patients: int, n_boot: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=n_boot)


@lru_cache(maxsize=_KEPT)
def _kept_counts(n_patients: int, n_boot: int, seed: int) -> NDArray[np.uint16 | np.uint32]:
    """The same, kept: drawing takes longer than all else, and many tables resample the same buckets."""
    counts = _counts(n_patients, n_boot, np.random.default_rng(seed))
    return counts.astype(np.uint16 if n_patients < 2**16 else np.uint32)


def percentile_interval(samples_BK: Floats) -> tuple[Floats, Floats]:
    """2.5% and 97.5% quantiles of each column, NaN left out; NaN for a column of nothing else."""
    bounds_2K = np.quantile(samples_BK, [0.025, 0.975], axis=0)
    for k in np.flatnonzero(np.isnan(bounds_2K[0])):
        known = samples_BK[~np.isnan(samples_BK[:, k]), k]
        if len(known):
            bounds_2K[:, k] = np.quantile(known, [0.025, 0.975])
    return bounds_2K[0], bounds_2K[1]


def patient_bootstrap(
    values_NK: ArrayLike, patients_N: ArrayLike, n_boot: int = 1000, *, seed: int, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Interval of the mean over images, 95% unless `level` says else, patients resampled: lower_K, upper_K.

    Cluster bootstrap (Cameron, Gelbach & Miller 2008) of a ratio, the drawn patients' sums over their counts, by the
    symmetric bootstrap-t (Hall 1988): the mean, plus and minus its standard error times the quantile of |t|. Where
    patients differ in scale, as drops of log-odds do, percentiles of the means cover 90% at 20 patients
    (`benchmarks.null`). NaN for a column whose values come from under 20 patients, or differ in so few of them that
    samples without any difference leave the quantile unbounded.
    """
    codes_N, n_patients = patient_codes(patients_N)
    return _intervals([patient_sums(values_NK, codes_N, n_patients)], n_boot, seed, level)


def bootstrap_difference(
    a_NK: ArrayLike, patients_a_N: ArrayLike, b_MK: ArrayLike, patients_b_M: ArrayLike, n_boot: int = 1000, *, seed: int
) -> tuple[Floats, Floats]:
    """95% interval of mean(a) - mean(b), as `patient_bootstrap`: lower_K, upper_K.

    Both groups are resampled, through the union of their patients: a patient with images in both is drawn as often in
    one as in the other. NaN where either group has values from under 20 patients.
    """
    patients_a_N, patients_b_M = np.asarray(patients_a_N), np.asarray(patients_b_M)
    codes, n_patients = patient_codes(np.concatenate([patients_a_N, patients_b_M]))
    a, b = codes[: len(patients_a_N)], codes[len(patients_a_N) :]
    return _intervals([patient_sums(a_NK, a, n_patients), patient_sums(b_MK, b, n_patients)], n_boot, seed, 0.95)


def mean_p(mean_K: ArrayLike, lower_K: ArrayLike, n_patients_K: ArrayLike) -> Floats:
    """One-sided p-value that a mean is above 0, of the interval of `patient_bootstrap`: p_K.

    The interval is the mean plus and minus h, where h is the standard error times the bootstrap's 95% quantile of |t|.
    Student's t of P - 1 degrees of freedom, scaled to the same quantile q, gives p = P(|t| >= q mean / h) for a mean
    above 0 and 1 for any other. So p <= 0.05 exactly where lower >= 0, and every p follows from its row of a table.
    Both tails count: where values are skewed, one of them holds most of the error, and half of it would reject up to
    9% of true nulls at 5% (`benchmarks.null`). Tails are Student's since 1,000 samples end at p = 0.001, which no
    family of fifty tests survives.

    NaN without an interval. Never below 2**-P: no test of signs says more, also where all values are equal.

    >>> mean_p([2.0, 2.0, -1.0], [0.0, 1.0, -2.0], [30, 30, 30]).round(4).tolist()
    [0.05, 0.0003, 1.0]
    """
    mean_K, lower_K = np.asarray(mean_K, dtype=np.float64), np.asarray(lower_K, dtype=np.float64)
    n_patients_K = np.asarray(n_patients_K, dtype=np.float64)
    freedom_K = np.maximum(n_patients_K - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t_K = student.ppf(0.975, freedom_K) * mean_K / (mean_K - lower_K)
    p_K = np.maximum(2 * student.sf(t_K, freedom_K), 0.5**n_patients_K)
    return np.where(np.isnan(lower_K), np.nan, np.where(mean_K > 0, p_K, 1.0))


def simultaneous_bootstrap(
    values_NK: ArrayLike, patients_N: ArrayLike, n_boot: int = 1000, *, seed: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """95% intervals that cover all K means at once, and p-values that each is 0: lower_K, upper_K, p_K, p_max_K.

    Single-step max-T over columns (Westfall & Young 1993; Romano & Wolf 2005) by the bootstrap-t over patients of
    `patient_bootstrap`: every interval is a mean plus and minus its standard error times the 95% quantile of the
    largest |t| of a sample. p_K is two-sided for a column alone, p_max_K corrected: the share of samples whose largest
    |t| reaches the column's own, at most 0.05 where the interval leaves out 0.

    NaN for a column whose values come from under 20 patients, or differ from their median in some, but under 20: it
    takes no part in the largest |t|, whose quantile it would raise tenfold. A column of equal values has an interval
    without width.
    """
    codes_N, n_patients = patient_codes(patients_N)
    sums_PK, counts_PK = patient_sums(values_NK, codes_N, n_patients)
    outcome_4K = np.full((4, sums_PK.shape[1]), np.nan)
    enough = np.flatnonzero((counts_PK > 0).sum(0) >= MIN_PATIENTS)
    if not len(enough):
        return outcome_4K[0], outcome_4K[1], outcome_4K[2], outcome_4K[3]
    t_BK, mean_K, error_K, rounding_K = _sampled_t([(sums_PK, counts_PK)], enough, n_boot, seed)
    known_K = ~np.isinf(np.quantile(t_BK, 0.95, axis=0, method="higher"))
    differ_K = _patients_that_differ(sums_PK[:, enough], counts_PK[:, enough], rounding_K)
    known_K &= (differ_K == 0) | (differ_K >= MIN_PATIENTS)
    largest_B = t_BK[:, known_K].max(1, initial=0.0)
    half_K = np.quantile(largest_B, 0.95, method="higher") * error_K
    size_K = np.where(np.abs(mean_K) <= rounding_K, 0.0, np.abs(mean_K))
    reach_K = size_K / np.maximum(error_K, np.finfo(float).tiny)
    p_K, p_max_K = ((1 + (x >= reach_K).sum(0)) / (1 + n_boot) for x in (t_BK, largest_B[:, None]))
    found_4K = np.stack([mean_K - half_K, mean_K + half_K, p_K, p_max_K])
    outcome_4K[:, enough] = np.where(known_K & np.isfinite(half_K), found_4K, np.nan)
    return outcome_4K[0], outcome_4K[1], outcome_4K[2], outcome_4K[3]


def _patients_that_differ(sums_PK: Floats, counts_PK: Floats, rounding_K: Floats) -> Ints:
    """Patients whose mean is not the median of all patients' means, [K]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_PK = np.where(counts_PK > 0, sums_PK / counts_PK, np.nan)
    differ_K: Ints = (np.abs(mean_PK - np.nanmedian(mean_PK, axis=0)) > rounding_K).sum(0)
    return differ_K


def _intervals(groups: Sequence[Sums], n_boot: int, seed: int, level: float) -> tuple[Floats, Floats]:
    """Interval of the first group's mean, minus the second's if there is one."""
    lower_K, upper_K = (np.full(groups[0][0].shape[1], np.nan) for _ in range(2))
    enough = np.flatnonzero(np.all([(counts_PK > 0).sum(0) >= MIN_PATIENTS for _, counts_PK in groups], axis=0))
    if len(enough):
        t_BK, mean_K, error_K, _ = _sampled_t(groups, enough, n_boot, seed)
        quantile_K = np.quantile(t_BK, level, axis=0, method="higher")  # no mean of a number and infinity
        half_K = np.where(np.isinf(quantile_K), np.nan, quantile_K) * error_K
        lower_K[enough], upper_K[enough] = mean_K - half_K, mean_K + half_K
    return lower_K, upper_K


def _sampled_t(groups: Sequence[Sums], chosen: Ints, n_boot: int, seed: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Of the chosen columns |t| of each sample [B, K], the mean (difference of means), its error, what rounding hides.

    Weights are drawn once for all columns, some samples at a time, and columns are weighed in pieces: memory holds a
    part of either.
    """
    n_patients = len(groups[0][0])
    pieces = _chunks(chosen, _BLOCK // max(4 * n_boot, n_patients))
    known: list[tuple[Floats, Floats, Floats]] = []
    for piece in pieces:
        means = [sums_PK[:, piece].sum(0) / counts_PK[:, piece].sum(0) for sums_PK, counts_PK in groups]
        _, error_1K = _shift_and_error(_centred(groups, piece), np.ones((1, n_patients)))
        rounding_K = _ROUNDING * np.max([np.abs(sums_PK[:, piece]).max(0) for sums_PK, _ in groups], axis=0)
        known.append((means[0] - means[1] if len(means) > 1 else means[0], error_1K[0], rounding_K))

    def t_of(weights_BP: Floats) -> Floats:
        parts = [
            _t(*_shift_and_error(_centred(groups, piece), weights_BP), error_K, rounding_K)
            for piece, (_, error_K, rounding_K) in zip(pieces, known, strict=True)
        ]
        return np.concatenate(parts, axis=1)

    mean_K, error_K, rounding_K = (np.concatenate(values) for values in zip(*known, strict=True))
    return resampled(t_of, n_patients, n_boot, seed), mean_K, error_K, rounding_K


def _centred(groups: Sequence[Sums], columns: Ints) -> list[Sums]:
    """Sums and counts of some columns; the sums those of values minus their mean."""
    chosen = [(sums_PK[:, columns], counts_PK[:, columns]) for sums_PK, counts_PK in groups]
    return [(sums_PK - sums_PK.sum(0) / counts_PK.sum(0) * counts_PK, counts_PK) for sums_PK, counts_PK in chosen]


def _t(shift_BK: Floats, error_BK: Floats, error_K: Floats, rounding_K: Floats) -> Floats:
    """|t| of each sample. ``error_K``: the standard error of the data."""
    with np.errstate(invalid="ignore", divide="ignore"):
        t_BK = np.abs(shift_BK) / error_BK
    # A sample without any patient of a group says nothing, nor does one in which all patients agree.
    t_BK[~(error_BK > 1e-6 * error_K)] = np.inf
    t_BK[np.abs(shift_BK) <= rounding_K] = 0.0
    return t_BK


def _shift_and_error(groups: Sequence[Sums], weights_BP: Floats) -> tuple[Floats, Floats]:
    """Mean (difference of means) of each weighted sample and its linearised standard error over patients: [B, K] each.

    A mean d = sum(w s) / sum(w c) moves with patient p by (s_p - d c_p) / sum(w c). The squares of these add up to
    a quadratic form in products of sums and counts, which one matrix product weighs for all samples.
    """
    columns = [column_PK for group in groups for column_PK in group]  # sums, counts(, sums, counts)
    slopes: list[Floats] = []
    shift_BK: Floats = np.zeros(())
    with np.errstate(invalid="ignore", divide="ignore"):
        for sign, (sums_PK, counts_PK) in zip((1.0, -1.0), groups, strict=False):
            counts_BK = weights_BP @ counts_PK
            mean_BK = (weights_BP @ sums_PK) / counts_BK
            shift_BK = shift_BK + sign * mean_BK
            slopes += [sign / counts_BK, -sign * mean_BK / counts_BK]
        square_BK = np.zeros_like(shift_BK)
        for i, j in itertools.combinations_with_replacement(range(len(columns)), 2):
            weight = 1.0 if i == j else 2.0
            square_BK += weight * slopes[i] * slopes[j] * (weights_BP @ (columns[i] * columns[j]))
        return shift_BK, np.sqrt(np.maximum(square_BK, 0.0))


def sign_flip(win_NK: ArrayLike, patients_N: ArrayLike, n_perm: int = 9999, *, seed: int) -> Floats:
    """One-sided p-value that win rates minus 1/2 are greater than a quantity symmetric about 0: p_K.

    Small: the map beats its control.

    The signs of the patients' sums of win rate - 1/2 are flipped, each patient as a whole. All 2**P flips are counted
    where these are at most n_perm + 1 (P: patients whose sum is not zero, the only ones that matter); otherwise
    p = (1 + #{flipped >= observed}) / (1 + n_perm), which is valid at any n_perm (Davison & Hinkley 1997, 4.3;
    Phipson & Smyth 2010). NaN for a column without values.
    """
    win_NK = np.asarray(win_NK, dtype=np.float64)
    codes_N, n_patients = patient_codes(patients_N)
    sums_PK, counts_PK = patient_sums(win_NK, codes_N, n_patients)
    sums_PK[np.abs(sums_PK) <= _TIE * counts_PK] = 0.0  # but for rounding
    observed_K = sums_PK.sum(0) - _TIE * counts_PK.sum(0)  # minus what rounding may hide
    p_K = np.full(win_NK.shape[1], np.nan)
    known_K = counts_PK.sum(0) > 0
    nonzero_K = (sums_PK != 0).sum(0)
    exact_K = nonzero_K <= np.log2(n_perm + 1)

    few = np.flatnonzero(known_K & exact_K)
    for size in np.unique(nonzero_K[few]):  # enumerate: at most log2(n_perm + 1) sizes
        signs_BP = 1.0 - 2.0 * ((np.arange(2**size)[:, None] >> np.arange(size)) & 1)
        for columns in _chunks(few[nonzero_K[few] == size], _BLOCK // 2**size):
            sums_KP = sums_PK[:, columns].T
            flipped_BK = signs_BP @ sums_KP[sums_KP != 0].reshape(len(columns), size).T
            p_K[columns] = (flipped_BK >= observed_K[columns]).mean(0)

    many = np.flatnonzero(known_K & ~exact_K)
    if len(many):
        sums_PM, observed_M, reached_M = sums_PK[:, many], observed_K[many], np.zeros(len(many))
        rows = max(1, _BLOCK // max(n_patients, len(many)))
        draw = _kept_signs if n_patients * n_perm <= 2 * _BLOCK else _signs
        for flips_BP in draw(n_patients, n_perm, rows, seed):
            reached_M += (flips_BP.astype(np.float64) @ sums_PM >= observed_M).sum(0)
        p_K[many] = (1 + reached_M) / (1 + n_perm)
    return p_K


def _signs(n_patients: int, n_perm: int, rows: int, seed: int) -> Iterator[NDArray[np.int8]]:
    """Random signs of patients, [n_perm, P] in blocks of so many rows."""
    rng = np.random.default_rng(seed)
    for start in range(0, n_perm, rows):
        yield 1 - 2 * rng.integers(0, 2, (min(rows, n_perm - start), n_patients), dtype=np.int8)


@lru_cache(maxsize=_KEPT)
def _kept_signs(n_patients: int, n_perm: int, rows: int, seed: int) -> tuple[NDArray[np.int8], ...]:
    return tuple(_signs(n_patients, n_perm, rows, seed))


def holm(p_K: ArrayLike) -> Floats:
    """Holm's (1979) adjusted p-values: to reject those up to alpha keeps the family-wise error rate at alpha.

    NaN stays NaN and is not counted: the family is the p-values that are known.

    >>> holm([0.01, 0.04, 0.03]).round(6).tolist()
    [0.03, 0.06, 0.06]
    """
    p_K = np.asarray(p_K, dtype=np.float64)
    adjusted_K = np.full_like(p_K, np.nan)
    order = np.argsort(p_K, kind="stable")[: np.count_nonzero(~np.isnan(p_K))]  # NaN sorts last
    adjusted_K[order] = np.minimum(np.maximum.accumulate(p_K[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted_K


def matched_pairs(a_N: ArrayLike, b_M: ArrayLike, caliper: float = 0.25) -> Ints:
    """One-to-one pairs of nearest log-odds, at most `caliper` apart: rows (index in a, index in b), by index in a.

    As many pairs as can be, and among these the smallest total distance (optimal matching, Rosenbaum 1989): unlike a
    greedy choice it does not depend on where one begins. Whoever is left over, or NaN, is in no pair. Above 2**24
    possible pairs the images, in order of their log-odds, are cut into the fewest strata of equal numbers that hold
    fewer each, and matched within them: the cost grows with the square of the images otherwise. A cut can part a pair.

    >>> matched_pairs([0.0, 1.0, 5.0], [1.1, 0.2]).tolist()
    [[0, 1], [1, 0]]
    """
    a_N, b_M = np.asarray(a_N, dtype=np.float64), np.asarray(b_M, dtype=np.float64)
    if len(a_N) * len(b_M) <= _PAIRS:
        return _pairs(a_N, b_M, caliper)
    order = np.argsort(np.concatenate([a_N, b_M]), kind="stable")
    found = []
    for stratum in _strata(order, order < len(a_N)):
        is_a = stratum < len(a_N)
        a, b = stratum[is_a], stratum[~is_a] - len(a_N)
        pairs = _pairs(a_N[a], b_M[b], caliper)
        found.append(np.stack([a[pairs[:, 0]], b[pairs[:, 1]]], axis=1))
    together = np.concatenate(found)
    return together[np.argsort(together[:, 0])]


def _strata(order: Ints, is_a: NDArray[np.bool_]) -> list[Ints]:
    """The fewest pieces of as many images each of which none allows more than _PAIRS pairs."""
    places = np.arange(len(order))
    cuts = (np.array_split(places, n) for n in itertools.count(2))
    fits = next(cut for cut in cuts if all(is_a[p].sum() * (~is_a[p]).sum() <= _PAIRS for p in cut))
    return [order[p] for p in fits]


def _pairs(a_N: Floats, b_M: Floats, caliper: float) -> Ints:
    distance_NM = np.abs(a_N[:, None] - b_M[None, :])
    allowed_NM = distance_NM <= caliper
    forbidden = 1.0 + caliper * min(len(a_N), len(b_M))  # dearer than all allowed pairs together
    rows, columns = linear_sum_assignment(np.where(allowed_NM, distance_NM, forbidden))
    return np.stack([rows, columns], axis=1)[allowed_NM[rows, columns]].astype(np.int64)


def _chunks(items: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Consecutive pieces of at most `size` items."""
    size = max(1, size)
    return [items[start : start + size] for start in range(0, len(items), size)]
