"""pytest does not collect this folder: its files import packages that only `nox -s world` installs.

A file that the command line names is collected all the same.
"""

collect_ignore_glob = ["*.py"]
