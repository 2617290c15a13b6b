from __future__ import annotations

from pathlib import Path

import polars as pl

from tasks.quality import RULES, Found, decide, first_reasons, reasons
from tasks.recipe import Quality


def test_a_rule_with_a_share_of_its_own_stops_the_night_whatever_the_recipe_allows(tmp_path: Path) -> None:
    def findings(broken: int) -> dict[str, bool]:
        n = 100
        flagged = pl.DataFrame({"row_id": [f"{i:032x}" for i in range(n)], "turns": [2] * n}).with_columns(
            (pl.int_range(n) < (broken if rule.name == "tools_malformed" else 0)).alias(rule.name) for rule in RULES
        )
        kept = reasons(flagged, RULES).list.len() == 0
        counts = {rule.name: int(flagged[rule.name].sum()) for rule in RULES}
        aside = sum(first_reasons(reasons(flagged, RULES)).values())
        source_rows = pl.DataFrame({"source_row": range(n)}).with_columns(unconvertible=pl.lit(False), set_aside=~kept)
        found = Found(source_rows, flagged.with_columns(kept=kept), {**counts, "unconvertible": 0, "set_aside": aside})
        decided = decide("try", found, RULES, Quality(max_set_aside=0.9), tmp_path / str(broken))
        return {finding.rule: finding.stops for finding in decided}

    assert findings(5) == {"tools_malformed": False, "set_aside": False}
    assert findings(6) == {"tools_malformed": True, "set_aside": False}
