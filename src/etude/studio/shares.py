"""Shares of right answers in a listening test, with exact intervals and tests, and what they mean in a sentence."""

from dataclasses import dataclass

from etude.wording import counted

LEVEL = 0.05  # a result counts as more than chance if guessing alone is at most this likely to give one as uneven
CONFIDENCE = 0.95
FEWEST = 6  # with fewer answers even all of them right or all wrong are no rarer than LEVEL: 2 / 2^5 = 0.0625


@dataclass(frozen=True)
class Share:
    """How many of some answers are right.

    Both kinds of question have two answers of which one is right, so guessing gives one half. Answers count as independent.
    """

    right: int
    answers: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.answers:
            raise ValueError(f"right is {self.right}, must be 0 to the number of answers, {self.answers}")

    @property
    def share(self) -> float:
        """The share of right answers, 0 to 1; NaN without answers."""
        return self.right / self.answers if self.answers else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The exact interval of the true share at a confidence of 95 %; (0, 1) without answers.

        Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the binomial".
        """
        if not self.answers:
            return 0.0, 1.0
        from scipy.stats import binomtest

        found = binomtest(self.right, self.answers).proportion_ci(CONFIDENCE, method="exact")
        return float(found.low), float(found.high)

    @property
    def p_value(self) -> float:
        """The probability that guessing gives a result at least as uneven, in either direction: the exact two-sided test."""
        if not self.answers:
            return 1.0
        from scipy.stats import binomtest

        return float(binomtest(self.right, self.answers, 0.5).pvalue)

    def told(self) -> str:
        """Returns the share in words, such as "14 of 20 answers are right (70 %)"."""
        are = "answer is" if self.answers == 1 else "answers are"
        return f"{self.right} of {self.answers} {are} right" + (f" ({percent(self.share)})" if self.answers else "")


def percent(share: float) -> str:
    """Returns a share from 0 to 1 in percent; 0 % and 100 % only where it is exactly that."""
    rounded = round(100 * share)
    if rounded in (0, 100) and 0 < share < 1:
        return "under 1 %" if rounded == 0 else "over 99 %"
    return f"{rounded} %"


def chance(p_value: float) -> str:
    """Returns a probability as words: "1 in 50", "less than 1 in 1,000"."""
    if p_value < 0.001:
        return "less than 1 in 1,000"
    return f"about {percent(p_value)}" if p_value > 0.095 else f"about 1 in {round(1 / p_value):,}"


def verdict(run: str, found: Share) -> str:
    """Returns what the answers say about a run, for a reader who knows no statistics."""
    low, high = (percent(limit) for limit in found.interval)
    basis = f"{found.told()}, where guessing gives half"
    if found.answers < FEWEST:
        return (
            f"{run}: {counted(found.answers, 'answer')}, too few to say anything: of fewer than {FEWEST}, even all could be "
            "right by luck. Go on listening."
        )
    if found.p_value > LEVEL:
        return (
            f"{run}: these answers do not show that listeners can tell it from real music. {basis}; "
            f"the true share may be anything from {low} to {high}."
        )
    rare = f"Guessing gives a result so far from half with a chance of {chance(found.p_value)}"
    if found.share > 0.5:
        return f"{run}: listeners can tell it from real music. {basis}; the true share is likely {low} to {high}. {rare}."
    return (
        f"{run}: listeners tell it from real music, but take one for the other: what it made seems real to them. {basis}; "
        f"the true share is likely {low} to {high}. {rare}."
    )
