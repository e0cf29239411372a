"""`python -m piagent_daemon` is `piagent run`; a verb may follow as well."""

import sys

from piagent_daemon.cli import main

sys.exit(main(default="run"))
