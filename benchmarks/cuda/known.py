"""Print which findings of reports are known failures of torch on a CPU: `python -m benchmarks.cuda.known REPORT...`.

The list of torch's known failures was made on a CPU, and many entries apply to the CPU alone. A failure of such an
entry is a new finding on CUDA. So the result of a step says which findings are known failures on a CPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from crossent.report.expected_findings import torch_list
from crossent.report.reader import finding_of, read_json
from crossent.subjects.builtin import BY_NAME


def known_on_cpu(path: Path) -> dict[str, str]:
    """Map the id of each finding of a report that would be a known failure on a CPU to the reason of the failure."""
    report = read_json(path)
    found: dict[str, str] = {}
    for subject in report["subjects"]:
        name = subject["name"]
        entries = torch_list(BY_NAME[name].operation) if name in BY_NAME else []
        here = [entry for entry in entries if entry.applies(report["environment"]["torch"], "cpu")]
        for finding in (finding_of(name, one) for one in subject["findings"] if one["expected"] is None):
            reasons = [str(entry) for entry in here if entry.matches(finding, name)]
            found |= {finding.id: reasons[0]} if reasons else {}
    return found


if __name__ == "__main__":
    print(json.dumps(dict(pair for path in sys.argv[1:] for pair in known_on_cpu(Path(path)).items())))
