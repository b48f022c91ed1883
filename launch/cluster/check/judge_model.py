"""Does every host hold the driver's model?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from isobit.findings import Finding

from ....runtime.model_files.compare import HostFiles, differences
from ....runtime.model_files.manifest import Manifest
from .facts import Report, facts


def model(reports: Sequence[Report], wanted: Manifest) -> list[Finding]:
    """A finding per host whose files are not the driver's; the tokenizer's concern no rank."""
    seen = [
        HostFiles(
            host=report["host"],
            folder="",
            manifest=Manifest.from_dict(files),
            error=files.get("error", ""),
        )
        for report in reports
        if (files := facts(report).get("model"))
    ]
    details: dict[str, list[str]] = defaultdict(list)
    for each in differences(wanted, seen):
        if each.kind != "tokenizer":
            details[each.host].append(each.detail)
    return [
        Finding(
            severity="error",
            what=f"the model on {host}: {'; '.join(lines)}",
            hosts=(host,),
            remedy="rsync -a --delete FOLDER/ HOST:FOLDER/, or --model-files head, which sends "
            "the driver's files there at the start",
        )
        for host, lines in details.items()
    ]
