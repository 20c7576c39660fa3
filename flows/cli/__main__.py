"""Run the command as `python -m changepair.flows.cli`, as scheduled runs do by the code of their clone."""

from changepair.flows.cli import main

main()
