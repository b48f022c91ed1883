"""Does every host hold the same model?"""

from __future__ import annotations

from collections.abc import Mapping

from .facts import Report, usual
from .finding import HostFinding


def model(reports: Mapping[str, Report]) -> list[HostFinding]:
    models = {n: m for n, r in reports.items() if (m := r.get("facts", {}).get("model"))}
    absent = {name: model for name, model in models.items() if "error" in model}
    found = [
        HostFinding(
            gravity="fault",
            what=f"{model['path']} on {name}: {model['error']}",
            hosts=(name,),
            way_out=f"copy the model there: rsync -a {model['path']}/ {name}:{model['path']}/",
        )
        for name, model in absent.items()
    ]
    present = {name: model for name, model in models.items() if "error" not in model}
    content = {n: (m["bytes"], tuple(m["sha256"].items())) for n, m in present.items()}
    if len(set(content.values())) > 1:
        most = usual(list(content.values()))
        for name in (name for name, held in content.items() if held != most):
            parts = [
                f"{file} {mine and mine[:8]} (elsewhere {theirs and theirs[:8]})"
                for (file, mine), (_, theirs) in zip(content[name][1], most[1], strict=True)
                if mine != theirs
            ]
            if content[name][0] != most[0]:
                parts.append(f"{content[name][0]} bytes of weights (elsewhere {most[0]})")
            path = present[name]["path"]
            found.append(
                HostFinding(
                    gravity="fault",
                    what=f"the model on {name} is another one: {', '.join(parts)}",
                    hosts=(name,),
                    way_out=f"copy it again: rsync -ac --delete {path}/ {name}:{path}/",
                )
            )
    return found
