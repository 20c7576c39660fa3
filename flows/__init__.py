import signal
import sys

if sys.argv[:1] == ["-m"]:  # Python is about to run a module of this package: Ctrl-C waits until there is somebody to hear it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
