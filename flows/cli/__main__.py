"""Run the command as `python -m changepair.flows.cli`. Scheduled runs do so, with the code of their clone."""

from changepair.flows.cli import main

main()
