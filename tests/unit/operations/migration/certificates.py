"""Certificates for tests, made by openssl(1)."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificates(folder: Path) -> Path:
    """An authority of its own, a server `localhost` and a client."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        *("req", "-x509", *key, "-days", "2", "-subj", "/CN=authority"),
        *("-keyout", "ca-key.pem", "-out", "ca-cert.pem"),
    )
    for role, usage in (("server", "serverAuth"), ("client", "clientAuth")):
        (folder / "extensions").write_text(
            f"subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage={usage}\n"
        )
        openssl("req", *key, "-subj", f"/CN={role}", "-keyout", f"{role}-key.pem", "-out", f"{role}.csr")
        request = ("-req", "-days", "2", "-in", f"{role}.csr", "-extfile", "extensions")
        authority = ("-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial")
        openssl("x509", *request, *authority, "-out", f"{role}-cert.pem")
    return folder
