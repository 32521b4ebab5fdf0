"""What schemathesis would ask, made quick and to the point."""

from __future__ import annotations

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    """Nobody waits for jobs: that takes as long as it says, and other tests do it."""
    if isinstance(case.body, dict) and isinstance(case.body.get("timeout_s"), (int, float)) and 0 < case.body["timeout_s"] <= 55:
        case.body = {**case.body, "timeout_s": 0.05}
