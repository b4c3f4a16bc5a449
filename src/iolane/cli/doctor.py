"""`iolane doctor`: what this machine has and lacks, each with its remedy."""

from __future__ import annotations

from iolane.cli.output import Json, print_json


def doctor(json: Json = False) -> int:
    """Check what iolane needs on this machine. The exit code is 1 when something needed is missing.

    \b
    Examples:
      iolane doctor
      iolane doctor --json
    """
    from iolane.operations.doctor import examine

    findings = examine()
    if json:
        print_json(findings)
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            print(f"{finding.verdict.value:8} {finding.subject:{width}}  {finding.detail}")
            if finding.remedy:
                print(f"{'':8} {'':{width}}  -> {finding.remedy}")
    return 1 if any(finding.verdict.value == "missing" for finding in findings) else 0
