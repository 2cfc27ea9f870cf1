"""Keep pytest from collecting this folder: its files import packages that only `nox -s world` installs.

pytest still collects a file that is named on the command line.
"""

collect_ignore_glob = ["*.py"]
