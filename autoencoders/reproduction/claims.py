"""What a write-up claims: a printed number, and where a run of ours leaves the like of it.

The tolerance is not chosen by eye. A published number is one more draw from the runs over seeds, printed with so
many digits: it is reproduced when it lies within half a unit of its last digit plus the 95 % prediction interval of
one draw (Student's t), from the spread over at least three seeds. One claim in twenty may miss that by chance.
"""

import math
from dataclasses import dataclass

_T95 = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # by number of seeds


@dataclass(frozen=True)
class Claim:
    """A published number.

    flags     of the run that answers it, beside the recipe's name
    place     `metrics.NAME` of run.json; `EPOCH.NAME` of history.csv; `analysis.NAME` of the untrained model;
              `pca.components`; `compression.CODE_SIZE`. Of an ensemble the mean counts.
    dataset   the image set that it was published for
    relation  `=` within the tolerance; `>` above the value; `<` below what the run `against` has in the same place
    rounding  half a unit of the last digit printed; of a printed range half its width, too
    spread    standard deviation over the recipe's seed and the next two, for when fewer are run
    why       of a claim that is known not to hold, the reason; a mean that agrees with what is `known` to come out
              instead does not fail the reproduction
    """

    what: str
    place: str
    value: float | None = None
    rounding: float = 0.0
    spread: float = 0.0
    flags: tuple[str, ...] = ()
    relation: str = "="
    against: tuple[str, ...] = ()
    unit: str = ""
    source: str = "published"
    dataset: str = "mnist"
    why: str = ""
    known: float = math.nan

    def tolerance(self, spread: float | None, seeds: int) -> float:
        """How far the mean of `seeds` runs with this spread may lie from the value; of fewer than 3, ours counts."""
        known = spread is not None and seeds >= 3
        spread, by = (spread or 0.0, min(seeds, 10)) if known else (self.spread, 3)
        return self.rounding + _T95[by] * spread * math.sqrt(1 + 1 / seeds)

    def holds(self, measured: float, reference: float, tolerance: float) -> bool:
        """Whether the measured mean agrees; `reference` is the value, or what the run `against` has."""
        if self.relation == "=":
            return abs(measured - reference) <= tolerance
        return measured > reference if self.relation == ">" else measured < reference
