"""One process of a team that writes the fake model's store."""

import os
import sys

from fake_model import KINDS, REQUEST, chunk

from vsae.activations.together import Team, write_together

team = Team.of_launch()
delay, fails, differs = (os.environ.get(name) for name in ("DELAY", "FAILS", "DIFFERS"))


def share(start, step):
    import time

    for batch in range(start, 30, step):
        time.sleep(float(delay or 0))
        if fails is not None and int(fails) == team.rank and batch >= 6:
            raise ValueError("batch 6 is beyond me.")
        yield chunk(batch)


different = differs == "both" or (differs is not None and int(differs) == team.rank)
try:
    write_together(
        sys.argv[1],
        share,
        REQUEST | {"data": {"n": 81 if different else 80}},
        team=team,
        rows_per_shard=50,
        kind_names=KINDS,
        max_bad_share=0.2,
    )
except (ValueError, OSError) as error:
    print(error, file=sys.stderr)
    sys.exit(2)
