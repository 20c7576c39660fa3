"""Start the command `changepair`.

Ctrl-C waits until a handler is set. During an import it would print a traceback. A thread of a library could also receive it, in a process
that saves before it ends.
"""

from __future__ import annotations

from changepair.tasks.common.imports import uncollected
from changepair.tasks.common.stopping import defer_ctrl_c


def main() -> None:
    defer_ctrl_c()
    with uncollected(freeze=True):
        from changepair.flows.cli import main as work

    work()


if __name__ == "__main__":
    main()
