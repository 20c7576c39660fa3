"""The command `changepair`. Ctrl-C waits until there is somebody to hear it: in the middle of an import it would end in a traceback, and by
threads that libraries have begun it would be heard in a process that saves before it ends."""

from __future__ import annotations

from changepair.tasks.common.stopping import defer_ctrl_c


def main() -> None:
    defer_ctrl_c()
    from changepair.flows.cli import main as work

    work()


if __name__ == "__main__":
    main()
