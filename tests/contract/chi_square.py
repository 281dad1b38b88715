"""Statistics of random choices: probabilities of a result at least so uneven, under the claim that is tested.

Tests assert p > 0.01 with a fixed seed, and show beside it that a biased choice is rejected.
"""

import numpy as np
import numpy.typing as npt
from scipy import stats

REJECT = 0.01


def inclusion_p(counts: npt.ArrayLike, replicates: int, size: int) -> float:
    """counts[i]: in how many of `replicates` choices of exactly `size` of n different members member i was included.

    Within a choice members exclude each other, so a member's variance is R p (1 - p) and the sum over all members is
    fixed: sum (O - E)^2 / (R p (1 - p)) * (n - 1) / n follows chi-square with n - 1 degrees of freedom.
    """
    observed = np.asarray(counts, dtype=np.float64)
    members = len(observed)
    share = size / members
    assert 0 < share < 1
    assert observed.sum() == replicates * size
    expected = replicates * share
    statistic = ((observed - expected) ** 2).sum() / (expected * (1 - share)) * (members - 1) / members
    return float(stats.chi2.sf(statistic, members - 1))


def varying_inclusion_p(counts: npt.ArrayLike, replicates: int) -> float:
    """As `inclusion_p`, for choices whose size varies; their sum is then not fixed, which is conservative."""
    observed = np.asarray(counts, dtype=np.float64)
    share = observed.mean() / replicates
    statistic = ((observed - observed.mean()) ** 2).sum() / (replicates * share * (1 - share))
    return float(stats.chi2.sf(statistic, len(observed) - 1))


def equal_p(counts: npt.ArrayLike) -> float:
    """counts of independent outcomes that should be equally likely."""
    return float(stats.chisquare(counts).pvalue)


def independent_p(table: npt.ArrayLike) -> float:
    """Contingency table of two outcomes that should be independent."""
    return float(stats.chi2_contingency(table, correction=False).pvalue)
