"""Failing: does something bad on one rank after one step; what tests of several ranks train with.

Paper: none, a test double. Hooks: after_step. State: none.
"""

import os
import signal
import time
from typing import Literal

from mcit.core.config import Field, MethodConfig
from mcit.core.errors import DataError
from mcit.core.types import Claims
from mcit.methods.base import Method


class Failing(Method):
    """Raise, crash, hang, die or be told to stop."""

    name = "failing"
    claims = Claims()

    class Config(MethodConfig):
        how: Literal["error", "crash", "hang", "kill", "term", "never"] = "never"
        """What to do."""
        rank: int = 1
        """On which rank."""
        step: int = Field(3, ge=0)
        """After which step, from 0."""
        once: str = ""
        """A file that is made when it is done; nothing is done again while it is there."""

    def after_step(self, ctx):
        config = self.config
        if ctx.step != config.step or int(os.environ.get("RANK", "0")) != config.rank or os.path.exists(config.once):
            return
        if config.once:
            open(config.once, "w").close()
        if config.how == "error":
            raise DataError("this row is bad", where="rows.jsonl:7:r7", fix="mend it")
        if config.how == "crash":
            raise ZeroDivisionError("nobody foresaw this")
        if config.how == "hang":
            time.sleep(3600)
        if config.how in ("kill", "term"):
            os.kill(os.getpid(), signal.SIGKILL if config.how == "kill" else signal.SIGTERM)
